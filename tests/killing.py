"""Interrupts a training script at a chosen moment: `killing.py PLACE NUMBER BLOW train.py …`.

At the NUMBER-th passing of PLACE, BLOW is applied: SIGKILL, SIGTERM, or a "full disk". Places:

    backward       after a backward pass
    validation     before a validation batch is used
    half a row     the last line of metrics.jsonl is partly written
    state          before last/ is written
    half NAME      the text file NAME, or the weights in the folder NAME, are partly written
    rename NAME    before NAME is renamed
    remove NAME    the folder NAME is partly removed
    finish         after all epochs
"""

import os
import resource
import runpy
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

place, number, blow, *sys.argv = sys.argv[1:]
sys.path[:0] = [str(Path(sys.argv[0]).parent), str(Path(__file__).parents[1])]

from accelerate import Accelerator

from core import checkpoints, figures
from core.run import Run
from core.run_folder import RunFolder

passings = count(1)


def come_to(name, spoil=lambda: None):
    if name != place or next(passings) != int(number):
        return
    spoil()
    if blow == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # longer files fail, as on a full disk
    else:
        os.kill(os.getpid(), signal.Signals[blow])


def cut(file, share=0.5):
    os.truncate(file, int(share * file.stat().st_size))


def backward(accelerator, loss, backward=Accelerator.backward):
    backward(accelerator, loss)
    come_to("backward")


def validation(run, loader, batches=Run._validation_batches):
    for batch in batches(run, loader):
        come_to("validation")
        yield batch


def log(files, row, log=RunFolder.log):
    log(files, row)
    come_to("half a row", lambda: cut(files.metrics, 0.99))


def save_state(run, save=Run._save_state):
    come_to("state")
    save(run)


def finish(run, finish=Run.finish):
    come_to("finish")
    finish(run)


def seal(folder, seal=checkpoints.seal):
    come_to(f"half {folder.name}", lambda: cut(folder / checkpoints.WEIGHTS))
    seal(folder)


def write_text(file, text, *args, write=Path.write_text, **kwargs):
    half = text[: len(text) // 2]
    come_to(f"half {file.name.removesuffix('.unfinished')}", lambda: write(file, half, *args, **kwargs))
    return write(file, text, *args, **kwargs)


def replace(source, target, replace=os.replace):
    come_to(f"rename {Path(source).name}")
    replace(source, target)


def rmtree(folder, *args, rmtree=shutil.rmtree, **kwargs):
    come_to(f"remove {Path(folder).name}", lambda: next(Path(folder).iterdir()).unlink())
    rmtree(folder, *args, **kwargs)


Accelerator.backward, Run._validation_batches, Run._save_state, Run.finish = backward, validation, save_state, finish
figures.save = lambda figure, file, dpi=0: file  # drawing takes most of the time
RunFolder.log, checkpoints.seal, Path.write_text, os.replace, shutil.rmtree = log, seal, write_text, replace, rmtree
runpy.run_path(sys.argv[0], run_name="__main__")
