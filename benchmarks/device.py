"""Device of the benchmarks, a GPU if there is one, and its clock."""

import time

import torch
from results import CPU

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
MACHINE = torch.cuda.get_device_name() if GPU else CPU
PRECISION = "bf16" if GPU else "fp32"


def now() -> float:
    """Time in seconds, after synchronisation with the device."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def one_thread() -> None:
    """One thread on a CPU: on a busy machine, threads wait for the slowest, and steps of 4 s took 19 s."""
    if not GPU:
        torch.set_num_threads(1)
