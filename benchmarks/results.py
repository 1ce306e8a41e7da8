"""What the benchmarks share: the form of a result. Imports no torch, which worker processes would load with it."""

import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
CPU = f"{platform.machine()}, CPU"  # where benchmarks run that use nothing else


@dataclass(frozen=True)
class Result:
    """One number of a benchmark, beside what it should be."""

    name: str
    ratio: float | None  # None: it could not be measured here, and `details` say why
    target: str  # ">= 4" or "<= 0.5"; "" = none
    unit: str  # what the ratio counts: "times faster", "of the memory"
    details: dict = field(default_factory=dict)  # plain JSON

    @property
    def met(self) -> bool | None:
        """None where nothing was measured, or no target is set."""
        if self.ratio is None or not self.target:
            return None
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def show(results: Iterable[Result]) -> None:
    """Prints results as a JSON list: to read, and for run.py."""
    print(json.dumps([asdict(result) | {"met": result.met} for result in results], indent=1, ensure_ascii=False))
