"""Inputs and outputs of a training script in a SageMaker container; without effect outside one.

Framework containers run `python train.py --NAME VALUE …`, one pair per hyperparameter, with the SM_* variables of the
SageMaker training toolkit (its ENVIRONMENT_VARIABLES.md). Order of use in a script:

    args = parser.parse_args(sagemaker_container.words(argv))
    sagemaker_container.fill_in(args)                   # paths of data, checkpoints and results
    sagemaker_container.relaunch_on_all_gpus()          # early, as it restarts the process
    …
        if sagemaker_container.end_epoch(run, metrics, "avg_mae"):  # in place of run.end_epoch(metrics)
            break
    sagemaker_container.finish(run, "avg_mae")
"""

import argparse
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError, first_line

CHECKPOINTS = Path("/opt/ml/checkpoints")  # synchronised with S3; missing if the job keeps no checkpoints
ARCHIVE = "model.tar.gz"  # archive of SM_MODEL_DIR after a job


def inside() -> bool:
    """Whether this process runs in a SageMaker training container."""
    return "SM_MODEL_DIR" in os.environ


def words(argv: Sequence[str] | None) -> Sequence[str] | None:
    """`argv`; in a container by default sys.argv, split as by a shell: the toolkit passes each value as one word, so
    that "20 40" becomes two words, and the empty value of a switch none."""
    if argv is not None or not inside():
        return argv
    return [word for argument in sys.argv[1:] for word in shlex.split(argument)]


def fill_in(args: argparse.Namespace) -> None:
    """Sets train_json, val_json, company_checkpoint, model_checkpoint, save_dir and resume where they are None.

    Data and checkpoints: channels train, val, company and model. Results: the checkpoint folder if the job has one, so
    that an interrupted job resumes; otherwise SM_OUTPUT_DATA_DIR. Raises UserError for ambiguous records in a channel
    and damaged archives.
    """
    if not inside():
        return
    missing = {name for name, value in vars(args).items() if value is None}
    for split in ("train", "val"):
        if f"{split}_json" in missing:
            setattr(args, f"{split}_json", records_file(split))
    for kind in ("company", "model"):
        if f"{kind}_checkpoint" in missing and (folder := channel(kind)):
            setattr(args, f"{kind}_checkpoint", checkpoint(folder))
    if "save_dir" in missing:
        if CHECKPOINTS.is_dir():
            # One folder per job: the jobs of a tuning job may share one location in S3.
            args.save_dir = CHECKPOINTS / os.environ.get("TRAINING_JOB_NAME", "run")
            if "resume" in missing and args.save_dir.is_dir():
                args.resume = "latest"
        else:
            args.save_dir = Path(os.environ["SM_OUTPUT_DATA_DIR"])


def channel(name: str) -> Path | None:
    """Folder of an input channel; None without it."""
    folder = os.environ.get(f"SM_CHANNEL_{name.upper()}")
    return Path(folder) if folder else None


def records_file(split: str) -> Path | None:
    """Records of `split` ("train", "val"): SPLIT.json, …_SPLIT.json, or the only JSON file in its channel.

    Without channel val, val.json in channel train. None without channel. Raises UserError for ambiguous files.
    """
    own = channel(split)
    folder = own or channel("train")
    if folder is None:
        return None
    for pattern in (f"{split}.json", f"*_{split}.json", "*.json")[: 3 if own else 2]:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
    raise UserError(f"{folder}: cannot tell which file holds the records; name one of them {split}.json")


def checkpoint(folder: Path) -> Path:
    """Model in a channel: model.tar.gz of an earlier job (unpacked), a model folder, or a single legacy weights
    file."""
    if (folder / ARCHIVE).is_file():
        folder = unpacked(folder / ARCHIVE)
    legacy = [*folder.glob("*.pth"), *folder.glob("*.pt")]
    return legacy[0] if len(legacy) == 1 else folder


def unpacked(archive: Path) -> Path:
    """Folder of the unpacked .tar.gz, made once for all processes of the machine.

    Raises UserError for a damaged archive, and for links, devices and paths outside the folder.
    """
    folder = Path(tempfile.gettempdir()) / f"unpacked_{archive.parent.name}"
    if not folder.is_dir():
        writing = Path(tempfile.mkdtemp())
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    _unpack(tar, member, writing)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            shutil.rmtree(writing)
            raise UserError(f"{archive} was not unpacked: {first_line(error)}") from error
        writing.rename(folder)
    return folder


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes one entry below `folder`. Raises ValueError for links, devices and paths outside. (Filters of tarfile need
    Python 3.10.12 or 3.11.4.)"""
    place = Path(os.path.normpath(folder / member.name.lstrip("/\\")))
    if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder):
        raise ValueError(f"{member.name} is no plain file in it")
    if member.isfile():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tar.extractfile(member) as source, open(place, "wb") as target:
            shutil.copyfileobj(source, target)


def relaunch_on_all_gpus() -> None:
    """Restarts the script under `accelerate launch`, one process per GPU, if there are several and no launcher yet.

    The launcher replaces this process, so that SIGTERM of SageMaker reaches the script.
    """
    gpus = int(os.environ.get("SM_NUM_GPUS", "0"))
    if not inside() or gpus < 2 or "RANK" in os.environ:
        return
    launch = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(gpus)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # defaults for the flags of the script
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *launch, *sys.argv])


def end_epoch(run, metrics: dict[str, float], name: str) -> bool:
    """`run.end_epoch(metrics)`; also reports the monitored metric as `name`, and delivers a new best model at once, as
    the job may be stopped at any time."""
    report(name, metrics[run.monitor])
    stop = run.end_epoch(metrics)
    if run.best_epoch == run.epoch:  # incremented by end_epoch
        deliver(run.folder / "best")
    return stop


def finish(run, name: str) -> None:
    """Reports the best value again, as the last one counts, and delivers the best model, also after a resume."""
    if run.best is not None:
        report(name, run.best)
    deliver(run.folder / "best")


def report(name: str, value: float) -> None:
    """Prints a metric in the format of the tuning job. The result of a job is its last printed value, so the best one
    must be last."""
    if inside() and _is_main():
        print(f"{name}={value:.6g};", flush=True)


def deliver(best: Path) -> None:
    """Copies the model folder `best` to SM_MODEL_DIR, the content of model.tar.gz."""
    if inside() and _is_main() and best.is_dir():
        shutil.copytree(best, os.environ["SM_MODEL_DIR"], dirs_exist_ok=True)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
