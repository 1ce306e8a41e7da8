"""Cases of a data set in any supported format, and their letterboxed frames."""

from argparse import Namespace
from pathlib import Path

from accelerate import Accelerator

from ceph.aariz import is_aariz, read_aariz
from ceph.anatomy import ANATOMY, Anatomy
from ceph.dataset import Cephalogram, FrameCache
from ceph.isbi2015 import is_isbi2015, read_isbi2015
from ceph.reading import GROUND_TRUTHS, SPLITS, Reading
from core.errors import UserError
from core.processes import no_collection
from core.validation import DataReport, leave_out_unreadable

FORMATS = ("auto", "aariz", "isbi2015")


def add_data_arguments(group, ground_truth: str | None = None) -> None:
    """Adds the arguments of a data set. `ground_truth`: default; None = that of the checkpoint."""
    group.add_argument(
        "--dataset_path", type=Path, default=Path("Aariz"), help="data set folder: Aariz, its layout, or ISBI 2015"
    )
    group.add_argument("--dataset_format", choices=FORMATS, default="auto", help="format of the data set")
    group.add_argument(
        "--ground_truth", choices=GROUND_TRUTHS, default=ground_truth,
        help="ground truth: mean of both readers, or one" + ("" if ground_truth else " (default: as in training)"),
    )  # fmt: skip
    group.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="cache of letterboxed images")


def read_frames(
    args: Namespace,
    ground_truth: str,
    splits: tuple[str, ...],
    image_size: tuple[int, int],
    anatomy: Anatomy,
    report: DataReport,
    accelerator: Accelerator,
) -> tuple[dict[str, list[Cephalogram]], FrameCache]:
    """({split: [Cephalogram, …]}, frame cache) of the data set of `args`, without unreadable pictures.

    `image_size`: (height, width) of the frames in px. The ranks of `accelerator` share the decoding. Raises UserError
    as `read_cases`, and for a split without readable picture.
    """
    cache = FrameCache(args.cache_dir, image_size)
    cases = read_cases(args.dataset_path, report, anatomy, args.dataset_format, ground_truth, splits)
    return leave_out_unreadable(cases, report, accelerator, cache.prepare), cache


def read_cases(
    root: Path,
    report: DataReport,
    anatomy: Anatomy = ANATOMY,
    dataset_format: str = "auto",
    ground_truth: str = "mean",
    splits: tuple[str, ...] = SPLITS,
) -> dict[str, list[Cephalogram]]:
    """Cases of `splits`, {split: [Cephalogram, …]}; data problems are added to `report`.

    `dataset_format`: one of FORMATS; `auto` detects it by the folders. `ground_truth`: one of GROUND_TRUTHS,
    official_ceil for Aariz only. Raises UserError for an unknown format or a split without usable case.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--dataset_path {root}: no such folder")
    if dataset_format == "auto":
        found = {"isbi2015": is_isbi2015(root), "aariz": is_aariz(root)}
        dataset_format = next((name for name, looks_so in found.items() if looks_so), None)
    if dataset_format is None:
        raise UserError(
            f"--dataset_path {root}: neither Aariz (train/, valid/, test/, each with Cephalograms/ and Annotations/) "
            "nor ISBI 2015 (RawImage/ and AnnotationsByMD/ with 400_junior/ and 400_senior/); give the folder of one"
        )
    read = {"aariz": read_aariz, "isbi2015": read_isbi2015}[dataset_format]
    with no_collection():
        return read(root, Reading(anatomy, ground_truth, report), splits)
