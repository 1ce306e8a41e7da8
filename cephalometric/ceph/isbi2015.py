"""Reader of the ISBI 2015 data set (Wang et al. 2016, "A benchmark for comparison of dental radiography analysis
algorithms").

RawImage/{TrainingData,Test1Data,Test2Data}/NNN.bmp         1935×2400 px of 0.1 mm
AnnotationsByMD/400_{junior,senior}/NNN.txt                 19 lines x,y in px; the classes after them are ignored

Splits by number: 001-150 train, 151-300 (Test1) valid, 301-400 (Test2) test. Publications report Test1 and Test2
separately; evaluate valid and test. Training selects the epoch by valid, which favours Test1.
"""

from pathlib import Path

from ceph.dataset import Cephalogram
from ceph.reading import SPLITS, Places, Reading, child, files_by_id, files_in
from core.errors import UserError
from core.files import read_bytes
from core.images import SUFFIXES
from core.validation import DataReport

# In the order of the files; other landmarks of the anatomy are unknown. Names in Wang et al.: sella, nasion, orbitale,
# porion, subspinale, supramentale, pogonion, menton, gnathion, gonion, lower and upper incisal incision, upper and
# lower lip, subnasale, soft tissue pogonion, posterior and anterior nasal spine, articulare.
ORDER = (
    "S", "N", "Or", "Po", "A", "B", "Pog", "Me", "Gn", "Go", "LIT", "UIT", "Ls", "Li", "Sn", "Pog`", "PNS", "ANS", "Ar"
)  # fmt: skip
LAST = {"train": 150, "valid": 300, "test": 400}  # last number of each split
FOLDERS = {"trainingdata": "train", "test1data": "valid", "test2data": "test"}
SIZE, MM_PER_PX, DEVICE = (1935, 2400), 0.1, "Soredex CRANEX Excel"


def is_isbi2015(root: Path) -> bool:
    """Whether a folder has the layout of ISBI 2015."""
    return any(_reader_folder(root, reader) for reader in ("junior", "senior"))


def read_isbi2015(root: Path, reading: Reading, splits: tuple[str, ...]) -> dict[str, list[Cephalogram]]:
    """Cases of `splits`, {split: [Cephalogram, …] sorted by number}, without maturation stage.

    Ground truth: mean (unrounded), senior or junior. Pictures may be in any folder below RawImage (below `root`, if
    there is none) except those of another split; 400_junior and 400_senior may also be in `root`. Bad cases are left
    out, bad landmarks become NaN; both are reported. Raises UserError for another layout or ground truth, or without
    usable case in one of `splits`.
    """
    root, report, ground_truth = Path(root), reading.report, reading.ground_truth
    if ground_truth not in ("mean", "senior", "junior"):
        raise UserError(f"--ground_truth {ground_truth} is not for ISBI 2015; choose mean, senior or junior")
    if not is_isbi2015(root):
        raise UserError(f"{root} holds no AnnotationsByMD/400_senior or 400_junior; give the ISBI 2015 folder")
    files = [file for file in (child(root, "RawImage") or root).rglob("*") if _in_its_split(file, report)]
    pictures = files_by_id(files, SUFFIXES, report, _number)
    readers = {
        reader: files_by_id(files_in(_reader_folder(root, reader)), (".txt",), report, _number)
        for reader in ("junior", "senior")
    }
    cases = {split: [] for split in SPLITS}
    for identity, image, size, points in reading.annotated(pictures, readers, _read_places):
        if size != SIZE:
            report.add("not 1935×2400 px", image, "kept, uncalibrated, px only", f"{size[0]}×{size[1]}")
        mm_per_px = MM_PER_PX if size == SIZE else None
        cases[_split(identity)].append(Cephalogram(identity, image, size, points, mm_per_px, DEVICE, None))
    return reading.usable(cases, splits, root)


def _reader_folder(root: Path, reader: str) -> Path | None:
    return child(child(root, "AnnotationsByMD"), f"400_{reader}") or child(root, f"400_{reader}")


def _number(file: Path) -> str | None:
    """Id "001" to "400" from the file name; None for other names."""
    number = int(file.stem) if file.stem.isdecimal() else 0
    return f"{number:03d}" if 1 <= number <= LAST["test"] else None


def _split(identity: str) -> str:
    return next(split for split, last in LAST.items() if int(identity) <= last)


def _in_its_split(file: Path, report: DataReport) -> bool:
    """Whether a picture is not in the folder of another split; otherwise the problem is reported."""
    folder, identity = FOLDERS.get(file.parent.name.casefold()), _number(file)
    if folder and identity and folder != _split(identity):
        report.add("picture in another split's folder", file, "file left out", f"{identity} is of {_split(identity)}")
        return False
    return True


def _read_places(file: Path, reading: Reading) -> Places | None:
    """Landmark -> (x, y) of one annotation file; None if it is unreadable or has fewer points than ORDER."""
    try:
        lines = [line.strip() for line in read_bytes(file).decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reading.report.add("annotation unreadable", file, "annotation left out", f"{type(error).__name__}: {error}")
        return None
    pairs = [tuple(line.split(",")) for line in lines[: len(ORDER)]]
    if len(pairs) < len(ORDER) or any(len(pair) != 2 for pair in pairs):
        count = next((row for row, pair in enumerate(pairs) if len(pair) != 2), len(pairs))
        reading.report.add("annotation unreadable", file, "annotation left out", f"{count} lines x,y, not {len(ORDER)}")
        return None
    return dict(zip(ORDER, pairs, strict=True))
