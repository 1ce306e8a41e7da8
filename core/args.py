"""Command-line interface: argument parser, types, the arguments shared by all scripts, and one-line errors."""

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

# System errors of a path that cannot be written, which the user can correct.
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST,
)  # fmt: skip


def script(main: Callable[[], None]) -> None:
    """Runs a script's `main`. `UserError` and unwritable paths give one line on stderr and exit code 2, Ctrl-C 130."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NOT_WRITABLE:
            raise
        if int(os.environ.get("RANK", "0")) == 0:  # the error is the same on all ranks
            print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows default values and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is hidden for hidden in (None, False, argparse.SUPPRESS)) or action.default == []:
            return action.help  # without a default; 0 is shown
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Argument parser that accepts `--batch-size` for `--batch_size` and reports errors in one line.

    Abbreviations are not accepted: a flag added later would change the meaning of existing commands.
    """

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Parses `args` (default: sys.argv) after unifying the spelling of the flags."""
        spelling = {flag.replace("_", "-"): flag for flag in self._option_string_actions}

        def respell(argument: str) -> str:
            name, equals, value = argument.partition("=")
            if not name.startswith("--"):
                return argument
            return spelling.get(name.replace("_", "-"), name) + equals + value

        args = [respell(str(argument)) for argument in (sys.argv[1:] if args is None else args)]
        for argument in args[: args.index("--") if "--" in args else None]:  # before argparse misses a required one
            if (
                argument.startswith("--")
                and argument.partition("=")[0] not in spelling.values()
                and not self._subparsers
            ):
                self.error(f"unrecognized arguments: {argument}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 and one line, which suggests the nearest flag for an unknown one."""
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0]
        if unknown.startswith("--") and message.startswith("unrecognized"):
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(unknown.partition("=")[0].replace("-", "_"), flags, 1, 0.5)
            message = f"unknown flag {unknown}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def at_least(low: int) -> Callable[[str], int]:
    """argparse type: an integer of at least `low`."""

    def integer(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is not at least {low}")
        return int(text)

    return integer


positive_int, non_negative_int = at_least(1), at_least(0)


def non_negative(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:  # also false for NaN
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def positive(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
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
    """Adds the arguments of `core.run.Run`, with the project's defaults, in the groups "optimisation" and "run"."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=positive_int, default=epochs, help="number of epochs")
    group.add_argument("--batch_size", type=positive_int, default=batch_size, help="batch size per process")
    group.add_argument("--lr", "--learning_rate", type=non_negative, default=lr, help="peak learning rate of AdamW")
    group.add_argument("--warmup_epochs", type=non_negative, default=warmup_epochs, help="linear warm-up, in epochs")
    group.add_argument("--weight_decay", type=non_negative, default=weight_decay, help="weight decay (no biases/norms)")
    group.add_argument("--grad_clip", type=non_negative, default=grad_clip, help="maximum gradient norm; 0 = none")
    group.add_argument(
        "--accumulate_grad_batches", type=positive_int, default=1, help="gradient accumulation: batches per update"
    )
    patience = "early stopping after this number of epochs without improvement; 0 = never"
    group.add_argument(
        "--early_stopping_patience", type=non_negative_int, default=early_stopping_patience, help=patience
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--save_dir", type=Path, help="output folder of the run (default: runs/<project>, or the folder of --resume)"
    )
    group.add_argument("--log_dir", type=Path, help="folder of the TensorBoard events (default: inside --save_dir)")
    group.add_argument(
        "--log_with", choices=("tensorboard", "mlflow", "none"), default="tensorboard", help="experiment tracker"
    )
    group.add_argument("--experiment_name", metavar="NAME", help="experiment name in the tracker (default: project)")
    group.add_argument("--tags", nargs="+", type=_tag, default=[], metavar="NAME=VALUE", help="tags in the tracker")
    group.add_argument(
        "--resume", nargs="?", const="latest", metavar="FOLDER", help="run folder to resume; no value = --save_dir"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --save_dir already holds")
    group.add_argument(
        "--seed", type=non_negative_int, default=0, help="random seed of initial weights, data order and augmentation"
    )
    workers = "data loader workers per process"
    group.add_argument("--num_workers", type=non_negative_int, default=num_workers, help=workers)
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
    """Adds the arguments of an evaluation. `output`: name of the default output folder; `batch_size`: default, None =
    no batches; `per`: unit of the batch size; `seed`: use of the random seed."""
    parser.add_argument("--output", type=Path, help=f"output folder (default: {output}/ beside best/)")
    if batch_size:
        parser.add_argument(
            "--batch_size", type=positive_int, default=batch_size, help=f"batch size per process ({per})"
        )
        parser.add_argument("--num_workers", type=non_negative_int, default=2, help="data loader workers per process")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="bootstrap resamples of the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help=f"random seed of {seed}")
