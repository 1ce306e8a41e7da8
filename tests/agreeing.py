"""Runs a training script, the first argument, with the other arguments, as `python` does; at its end the processes
compare their weights."""

import runpy
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path[:0] = [str(Path(sys.argv[0]).parent), str(Path(__file__).parents[1])]

import torch

from core.run import Run


def finish(run, finish=Run.finish):
    weights = torch.cat([tensor.detach().double().flatten() for tensor in run.model.parameters()])
    gathered = run.accelerator.gather(weights[None])
    run.console.print(f"weights agree: {bool((gathered == gathered[0]).all())} ({len(gathered)})")
    finish(run)


Run.finish = finish
runpy.run_path(sys.argv[0], run_name="__main__")
