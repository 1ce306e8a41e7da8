"""What the benchmarks share: the form of a result, the device, the clock. Measures nothing itself."""

import json
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
MACHINE = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, CPU"
PRECISION = "bf16" if GPU else "fp32"


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


def now() -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def one_thread() -> None:
    """On a CPU that others use as well, more threads wait for the one whose core was just taken: steps of 4 s took
    19 s."""
    if not GPU:
        torch.set_num_threads(1)
