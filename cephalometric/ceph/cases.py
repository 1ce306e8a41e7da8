"""The cases of a data set, whatever its format."""

from pathlib import Path

from ceph.aariz import is_aariz, read_aariz
from ceph.dataset import Cephalogram
from ceph.isbi2015 import is_isbi2015, read_isbi2015
from ceph.reading import GROUND_TRUTHS as GROUND_TRUTHS
from ceph.reading import SPLITS
from core.errors import UserError
from core.processes import no_collection
from core.validation import DataReport

FORMATS = ("auto", "aariz", "isbi2015")


def read_cases(
    root: Path, dataset_format: str = "auto", ground_truth: str = "mean", splits: tuple[str, ...] = SPLITS
) -> tuple[dict[str, list[Cephalogram]], DataReport]:
    """The cases of `splits`, {split: [Cephalogram, …]}, and a report of all that is wrong with the data.

    `dataset_format`: one of FORMATS; `auto` knows a tree by its folders. `ground_truth`: one of GROUND_TRUTHS,
    official_ceil for Aariz only. Raises UserError if the tree is of no known format, or a split has no usable case.
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
    reader = {"aariz": read_aariz, "isbi2015": read_isbi2015}[dataset_format]
    with no_collection():
        return reader(root, ground_truth, splits)
