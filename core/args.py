"""Command lines: one parser for `--batch-size` and `--batch_size`, the arguments that every training script has, and
one clear line instead of a traceback for a user's mistake."""

import argparse
import difflib
import errno
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from core.errors import UserError, first_line

# What the system says of a place that cannot be written: a user can mend it, the program cannot.
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST,
)  # fmt: skip


def script(main: Callable[[], None]) -> None:
    """Runs a script's `main`. `UserError`, and a place that cannot be written, end it with one line on stderr and exit
    code 2; Ctrl-C ends it with 130."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NOT_WRITABLE:
            raise
        if int(os.environ.get("RANK", "0")) == 0:  # several processes make the same mistake: say it once
            print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the commands in a script's docstring as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is hidden for hidden in (None, False, argparse.SUPPRESS)) or action.default == []:
            return action.help  # 0 is a default like others
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse that reads `--batch-size` and `--batch_size` as one flag, and refuses in one line, with the nearest flag
    for a misspelt one. Abbreviations are refused: a flag that is added later must not change what an old command
    means."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        spelling = {flag.replace("_", "-"): flag for flag in self._option_string_actions}

        def respell(argument: str) -> str:
            name, equals, value = argument.partition("=")
            if not name.startswith("--"):
                return argument
            return spelling.get(name.replace("_", "-"), name) + equals + value

        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([respell(str(argument)) for argument in args], namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if unknown != message.split()[0] and unknown.startswith("--"):
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(unknown.partition("=")[0].replace("-", "_"), flags, 1, 0.5)
            message = f"unknown flag {unknown}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def non_negative_int(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def non_negative(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:  # NaN is not
        raise argparse.ArgumentTypeError(f"{text} is not a finite number from 0")
    return value


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, value


def add_training_arguments(
    parser: argparse.ArgumentParser,
    *,
    epochs: int,
    batch_size: int,
    lr: float | None,
    warmup_epochs: int = 0,
    weight_decay: float = 1e-4,
    grad_clip: float = 1.0,
    early_stopping_patience: int = 0,
    num_workers: int = 4,
) -> None:
    """The arguments that `core.run.Run` reads, in two groups; each project brings its own defaults."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=positive_int, default=epochs, help="number of epochs")
    group.add_argument("--batch_size", type=positive_int, default=batch_size, help="batch size per process")
    group.add_argument("--lr", "--learning_rate", type=non_negative, default=lr, help="peak learning rate of AdamW")
    group.add_argument("--warmup_epochs", type=non_negative, default=warmup_epochs, help="linear warm-up, in epochs")
    group.add_argument(
        "--weight_decay", type=non_negative, default=weight_decay, help="weight decay (none on biases and norms)"
    )
    group.add_argument(
        "--grad_clip", type=non_negative, default=grad_clip, help="maximum gradient norm; 0 = no clipping"
    )
    group.add_argument(
        "--accumulate_grad_batches", type=positive_int, default=1, help="gradient accumulation: batches per update"
    )
    group.add_argument(
        "--early_stopping_patience",
        type=non_negative_int,
        default=early_stopping_patience,
        help="early stopping after this many epochs without improvement; 0 = never",
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--save_dir",
        type=Path,
        help="output folder of the run (default: runs/<project>, or the folder given to --resume)",
    )
    group.add_argument("--log_dir", type=Path, help="folder of the TensorBoard events (default: inside --save_dir)")
    group.add_argument(
        "--log_with", choices=("tensorboard", "mlflow", "none"), default="tensorboard", help="experiment tracker"
    )
    group.add_argument("--experiment_name", metavar="NAME", help="experiment name in the tracker (default: project)")
    group.add_argument(
        "--tags", nargs="+", type=_tag, default=[], metavar="NAME=VALUE", help="tags stored by the tracker"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="FOLDER",
        help="resume an interrupted run: a run folder or its last/; no value = the run in --save_dir",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --save_dir already holds")
    group.add_argument(
        "--seed", type=non_negative_int, default=0, help="random seed of initial weights, data order and augmentation"
    )
    group.add_argument(
        "--num_workers", type=non_negative_int, default=num_workers, help="data loader workers per process"
    )
    group.add_argument(
        "--mixed_precision",
        nargs="?",
        const="fp16",
        choices=("no", "fp16", "bf16"),
        help="mixed precision; no value = fp16 (default: as set by accelerate launch or accelerate config)",
    )
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")


def add_evaluation_arguments(
    parser: argparse.ArgumentParser, *, output: str, batch_size: int | None, per: str, seed: str = "the bootstrap"
) -> None:
    """The arguments that every evaluation has. `output`: name of the default folder beside best/; `per`: what a batch
    counts; `batch_size` None = no batches; `seed`: what is drawn with it."""
    parser.add_argument("--output", type=Path, help=f"output folder (default: {output}/ beside best/)")
    if batch_size:
        parser.add_argument(
            "--batch_size", type=positive_int, default=batch_size, help=f"batch size per process, in {per}"
        )
        parser.add_argument("--num_workers", type=non_negative_int, default=2, help="data loader workers per process")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="bootstrap resamples of the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help=f"random seed of {seed}")
