"""Shared by all tests: import paths, scripts as modules, reset of Accelerate's state."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests must not need the network,
os.environ["HF_HUB_CACHE"] = "no_hub_cache"  # nor the cache of this machine

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = [file.parent for file in sorted(ROOT.glob("*/project.json"))]
sys.path[:0] = [str(ROOT), *map(str, PROJECTS), str(ROOT / "tests")]
torch.set_num_threads(1)  # more are not faster for small networks, and much slower beside other tests
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # set by shells for background jobs and their children
    signal.signal(signal.SIGINT, signal.default_int_handler)


def load_script(path: str):
    """A script as a module: `load_script("cephalometric/train.py").main([...])`."""
    return load_module(ROOT / path)


def load_module(file: Path):
    """A Python file of the repository as a module named by its path."""
    name = "_".join(file.relative_to(ROOT).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def loads_nothing(page: str) -> bool:
    """Whether a page has no external addresses. Embedded pictures are ignored."""
    return "http" not in re.sub(r"base64,[\w+/=]+", "", page).replace("http-equiv", "")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Resets the state of Accelerate, which is global, after each test."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
