"""Runs a training script (first argument) with the other arguments; at its end, the ranks compare their weights and
batch norm statistics."""

import runpy
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path[:0] = [str(Path(sys.argv[0]).parent), str(Path(__file__).parents[1])]

import torch

from core.run import Run


def finish(run, finish=Run.finish):
    state = torch.cat([tensor.detach().double().flatten() for tensor in run.model.state_dict().values()])
    gathered = run.accelerator.gather(state[None])
    run.console.print(f"weights agree: {bool((gathered == gathered[0]).all())} ({len(gathered)})")
    finish(run)


Run.finish = finish
runpy.run_path(sys.argv[0], run_name="__main__")
