"""What the tests share: import paths, scripts as functions, a small Aariz tree, a fresh Accelerate state."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a wrong test,
os.environ["HF_HUB_CACHE"] = "no_hub_cache"  # and so is one that needs what this machine happens to have

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = [file.parent for file in sorted(ROOT.glob("*/project.json"))]
sys.path[:0] = [str(ROOT), *map(str, PROJECTS), str(ROOT / "tests")]
torch.set_num_threads(1)  # small networks gain nothing by more, and lose much where other tests compute beside them
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background, children too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def load_script(path: str):
    """A script as a module of its own name: `load_script("cephalometric/train.py").main([...])`."""
    return load_module(ROOT / path)


def load_module(file: Path):
    """A Python file below the repository as a module of its own name."""
    name = "_".join(file.relative_to(ROOT).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def loads_nothing(page: str) -> bool:
    """Whether a page names no address. Its pictures are left out: their letters may spell anything."""
    return "http" not in re.sub(r"base64,[\w+/=]+", "", page).replace("http-equiv", "")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state in the process; each test starts without."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
