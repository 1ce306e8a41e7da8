"""Software and hardware of a result: versions, system, device, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "safetensors", "albumentations", "numpy")


def environment(accelerator: Accelerator) -> dict:
    """Software and hardware as plain JSON types, for `environment.json` and reports."""
    device = accelerator.device
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None  # without git, or outside a repository
