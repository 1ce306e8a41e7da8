"""Command lines: one parser for `--batch-size` and `--batch_size`, the arguments that every training script has, and
one clear line instead of a traceback for a user's mistake."""

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line that names the file or flag, and the way out."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    if lines and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]  # a worker's traceback, whose last line says what it is
    return next(iter(lines), "") or type(error).__name__


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
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse that reads `--batch-size` and `--batch_size` as one flag. Abbreviations are refused: a flag that is
    added later must not change what an old command means."""

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
    group.add_argument("--epochs", type=positive_int, default=epochs, help="passes over the training data")
    group.add_argument("--batch_size", type=positive_int, default=batch_size, help="samples a process and step")
    group.add_argument("--lr", "--learning_rate", type=non_negative, default=lr, help="peak learning rate of AdamW")
    group.add_argument("--warmup_epochs", type=non_negative, default=warmup_epochs, help="epochs of linear warm-up")
    group.add_argument(
        "--weight_decay", type=non_negative, default=weight_decay, help="on weights; none on biases and norms"
    )
    group.add_argument(
        "--grad_clip", type=non_negative, default=grad_clip, help="largest gradient norm; 0 = no clipping"
    )
    group.add_argument("--accumulate_grad_batches", type=positive_int, default=1, help="batches an update")
    group.add_argument(
        "--early_stopping_patience",
        type=non_negative_int,
        default=early_stopping_patience,
        help="epochs without a new best; 0 = never",
    )

    group = parser.add_argument_group("run")
    group.add_argument("--save_dir", type=Path, help="of results (default: runs/<project>, or what --resume names)")
    group.add_argument("--log_dir", type=Path, help="folder of the TensorBoard events (default: inside --save_dir)")
    group.add_argument("--log_with", choices=("tensorboard", "mlflow", "none"), default="tensorboard", help="tracker")
    group.add_argument("--experiment_name", metavar="NAME", help="under which the tracker files it (default: project)")
    group.add_argument("--tags", nargs="+", type=_tag, default=[], metavar="NAME=VALUE", help="that the tracker keeps")
    group.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="FOLDER",
        help="go on with an interrupted run: no value = the one in --save_dir, or a run folder, or its last/",
    )
    group.add_argument("--overwrite", action="store_true", help="start anew where --save_dir already holds a run")
    group.add_argument("--seed", type=non_negative_int, default=0, help="of weights, order and augmentation")
    group.add_argument(
        "--num_workers", type=non_negative_int, default=num_workers, help="loader processes a training process"
    )
    group.add_argument(
        "--mixed_precision",
        nargs="?",
        const="fp16",
        choices=("no", "fp16", "bf16"),
        help="no value = fp16; left out, `accelerate launch` or `accelerate config` decides",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the model")
