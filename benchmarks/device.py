"""The device that benchmarks of networks run on, and its clock: a GPU where there is one."""

import time

import torch
from results import CPU

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
MACHINE = torch.cuda.get_device_name() if GPU else CPU
PRECISION = "bf16" if GPU else "fp32"


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
