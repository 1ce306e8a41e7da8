"""Results of the benchmarks. Imports no torch, which worker processes would load with it."""

import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
CPU = f"{platform.machine()}, CPU"  # machine of benchmarks on the CPU


@dataclass(frozen=True)
class Result:
    """A number of a benchmark and its target."""

    name: str
    ratio: float | None  # None = not measured, with the reason in `details`
    target: str  # ">= 4" or "<= 0.5"; "" = none
    unit: str  # "times faster", "of the memory" …
    details: dict = field(default_factory=dict)  # plain JSON

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a ratio or a target."""
        if self.ratio is None or not self.target:
            return None
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def show(results: Iterable[Result]) -> None:
    """Prints results as a JSON list, which run.py reads."""
    print(json.dumps([asdict(result) | {"met": result.met} for result in results], indent=1, ensure_ascii=False))
