"""What a training script finds in a SageMaker container, and what it leaves there. Outside of one, all of this does
nothing.

The framework containers run `python train.py --NAME VALUE …`, a pair a hyperparameter, with the SM_* variables of the
SageMaker training toolkit (its ENVIRONMENT_VARIABLES.md). A script uses it in this order:

    args = parser.parse_args(sagemaker_container.words(argv))
    sagemaker_container.fill_in(args)                   # data, checkpoints and results where SageMaker has them
    sagemaker_container.relaunch_on_all_gpus()          # before anything heavy: the process starts anew
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

CHECKPOINTS = Path("/opt/ml/checkpoints")  # there if the job keeps checkpoints: SageMaker copies it to S3 and back
ARCHIVE = "model.tar.gz"  # as which SageMaker stores what a job left in SM_MODEL_DIR


def inside() -> bool:
    """Whether this process runs in a SageMaker training container."""
    return "SM_MODEL_DIR" in os.environ


def words(argv: Sequence[str] | None) -> Sequence[str] | None:
    """`argv`, or in a container the process's own, split as by a shell.

    The toolkit hands over every value as one word, whatever is in it: "20 40" becomes two words, and the empty value
    of a switch none.
    """
    if argv is not None or not inside():
        return argv
    return [word for argument in sys.argv[1:] for word in shlex.split(argument)]


def fill_in(args: argparse.Namespace) -> None:
    """Sets those of train_json, val_json, company_checkpoint, model_checkpoint, save_dir and resume that are None.

    Data and checkpoints come from the channels train, val, company and model. Results go where SageMaker keeps them:
    to the checkpoints if the job has such a folder, and an interrupted job then resumes; else to SM_OUTPUT_DATA_DIR.
    Raises UserError for a channel with no clear records, and for an archive that cannot be unpacked.
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
            # The jobs of one tuning job may share one place in S3: each keeps to a folder of its own.
            args.save_dir = CHECKPOINTS / os.environ.get("TRAINING_JOB_NAME", "run")
            if "resume" in missing and args.save_dir.is_dir():
                args.resume = "latest"
        else:
            args.save_dir = Path(os.environ["SM_OUTPUT_DATA_DIR"])


def channel(name: str) -> Path | None:
    """The folder of an input channel; None if the job has no such channel."""
    folder = os.environ.get(f"SM_CHANNEL_{name.upper()}")
    return Path(folder) if folder else None


def records_file(split: str) -> Path | None:
    """The JSON of records of `split` ("train", "val"): SPLIT.json in its channel, or …_SPLIT.json, or the only JSON.

    Without a channel val, val.json may lie in the channel train. None where there is no channel to look in.
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
    """The model in a channel: an earlier job's model.tar.gz (unpacked first) or a model folder, or the one legacy
    weights file that lies there."""
    if (folder / ARCHIVE).is_file():
        folder = unpacked(folder / ARCHIVE)
    legacy = [*folder.glob("*.pth"), *folder.glob("*.pt")]
    return legacy[0] if len(legacy) == 1 else folder


def unpacked(archive: Path) -> Path:
    """The folder that holds the files of a .tar.gz. It is made once, for all processes of the machine.

    Raises UserError for a damaged archive, and for one with links, devices, or paths that lead out of the folder.
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
    """Writes one entry below `folder`. Raises ValueError for one that is neither file nor folder, or leads out of it.
    (tarfile's own filters came with 3.10.12 and 3.11.4.)"""
    place = Path(os.path.normpath(folder / member.name.lstrip("/\\")))
    if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder):
        raise ValueError(f"{member.name} is no plain file in it")
    if member.isfile():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tar.extractfile(member) as source, open(place, "wb") as target:
            shutil.copyfileobj(source, target)


def relaunch_on_all_gpus() -> None:
    """Starts the script anew under `accelerate launch`, one process a GPU, if there are several and no launcher yet.

    The launcher takes this process's place, so that SageMaker's SIGTERM reaches it, and through it the script.
    """
    gpus = int(os.environ.get("SM_NUM_GPUS", "0"))
    if not inside() or gpus < 2 or "RANK" in os.environ:
        return
    launch = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(gpus)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # unless the script's own flags say otherwise
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *launch, *sys.argv])


def end_epoch(run, metrics: dict[str, float], name: str) -> bool:
    """`run.end_epoch(metrics)`; reports the monitored metric as `name`, and delivers a new best at once: the job may be
    stopped at any time."""
    report(name, metrics[run.monitor])
    stop = run.end_epoch(metrics)
    if run.best_epoch == run.epoch:  # which has counted on
        deliver(run.folder / "best")
    return stop


def finish(run, name: str) -> None:
    """Reports the best value once more, as the last one counts, and delivers the best model, also after a resume."""
    if run.best is not None:
        report(name, run.best)
    deliver(run.folder / "best")


def report(name: str, value: float) -> None:
    """Prints a metric as the tuning job reads it. SageMaker takes the latest value that a job printed for its result,
    not the best: the best one has to come last."""
    if inside() and _is_main():
        print(f"{name}={value:.6g};", flush=True)


def deliver(best: Path) -> None:
    """Copies the model folder `best` to where SageMaker takes the job's model.tar.gz from."""
    if inside() and _is_main() and best.is_dir():
        shutil.copytree(best, os.environ["SM_MODEL_DIR"], dirs_exist_ok=True)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
