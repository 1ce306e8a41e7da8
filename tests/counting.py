"""Runs a training script up to its first step and counts its reads: `counting.py MODULE:FUNCTION FOLDER train.py …`.

Each call of the function appends its first argument (a file, or an object with `path`) as a line to FOLDER/<rank>.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

reader, folder, *sys.argv = sys.argv[1:]
sys.path[:0] = [str(Path(sys.argv[0]).parent), str(Path(__file__).parents[1])]
module, _, name = reader.partition(":")
module = importlib.import_module(module)
read = getattr(module, name)


def counted(source, *args, **kwargs):
    with open(Path(folder) / os.environ.get("RANK", "0"), "a") as file:
        file.write(f"{getattr(source, 'path', source)}\n")
    return read(source, *args, **kwargs)


setattr(module, name, counted)  # before other modules import it by name

from core.run import Run


def prepare(self, *args, **kwargs):
    self.accelerator.wait_for_everyone()
    sys.exit(0)


Run.prepare = prepare
runpy.run_path(sys.argv[0], run_name="__main__")
