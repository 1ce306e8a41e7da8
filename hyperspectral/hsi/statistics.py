"""Statistics of the training split: mean and standard deviation of each band, range of values, fingerprint."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from core.console import make_console, progress
from core.errors import UserError, first_line
from core.files import must_hold, read_json
from core.processes import in_processes
from core.results import write_json
from core.validation import DataReport
from hsi.files import H5_KEY, BadCube, Cube, Splits, foreground, read_cube, report_bad

SAMPLE = 1_000_000  # values per cube for percentiles: all 7.5 million take ten times as long


@dataclass(frozen=True)
class Statistics:
    """Statistics of the training split for normalisation and metrics, in the units of the files.

    `mean` and `std`: over all foreground pixels of all training cubes. `low` and `high`: smallest 0.1st and largest
    99.9th percentile of a cube, which are robust to hot pixels.
    """

    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,), positive
    low: float
    high: float
    cubes: int
    pixels: int
    key: str
    fingerprint: dict[str, str]  # ID of each cube, all splits -> split, size, checksum
    unusable: dict[str, str]  # ID, all splits -> problem of its file or values

    def save(self, file: Path) -> None:
        """Writes the statistics as JSON."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> "Statistics":
        """Inverse of `save`. Raises UserError for a missing file or other content."""
        try:
            must_hold(content := read_json(file), mean=list, std=list, fingerprint=dict, unusable=dict)
            values = {name: tuple(map(float, content[name])) for name in ("mean", "std")}
            if len(values["mean"]) != len(values["std"]) or not all(value > 0 for value in values["std"]):
                raise ValueError("mean and std do not fit")
            return cls(**content | values)
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; {_stats_command(file)}") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file} holds no statistics ({first_line(error)}); {_stats_command(file)}") from error


def statistics_file(csv_file: Path) -> Path:
    """Default file of the statistics: DATA_stats.json beside DATA.csv."""
    return Path(csv_file).with_name(f"{Path(csv_file).stem}_stats.json")


def _stats_command(file: Path) -> str:
    project = Path(__file__).resolve().parents[1].name
    return f"make it by: python {project}/cubes.py stats --csv_file DATA.csv --output {file}"


@dataclass(frozen=True)
class Measured:
    """Measurements of one cube for the statistics."""

    shape: tuple[int, int, int]
    pixels: int  # of the foreground
    mean: np.ndarray  # (C,) float64, over the foreground
    squares: np.ndarray  # (C,) float64: Σ (x − mean)² over the foreground
    low: float  # 0.1st percentile of all values
    high: float  # 99.9th


def measure(file: Path, key: str) -> Measured | str:
    """Reads and measures a cube; returns its problem if it is unusable."""
    try:
        cube = read_cube(file, key)
    except BadCube as error:
        return error.reason
    inside = foreground(cube)
    pixels = int(inside.sum())
    if not pixels:
        return "no foreground: no pixel is brighter than black; 0 should be black"
    mean, squares = np.empty(len(cube)), np.empty(len(cube))
    for i, band in enumerate(cube):  # band by band: fits into the CPU cache, with small float64 copies
        values = band[inside].astype(np.float64)
        mean[i] = values.mean()
        values -= mean[i]
        squares[i] = values @ values
    sample = cube.reshape(-1)[:: max(1, cube.size // SAMPLE)]
    low, high = np.percentile(sample, (0.1, 99.9))
    return Measured(cube.shape, pixels, mean, squares, float(low), float(high))


def measure_all(splits: Splits, key: str, workers: int, console: Console, accelerator=None) -> dict:
    """ID -> result of `measure` for all cubes, by `workers` processes with one cube in memory each.

    The ranks of an accelerate.Accelerator share the cubes and return the same results.
    """
    cubes = [cube for part in splits.values() for cube in part]
    rank, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    jobs, shares = [(cube.file, key) for cube in cubes[rank::count]], [[]]
    with progress(console, "reading", len(jobs)) as advance:
        for result in in_processes(measure, jobs, workers):
            shares[0].append(result)
            advance()
    if count > 1:
        from accelerate.utils import gather_object

        shares = gather_object(shares)
    return {cube.id: shares[place % count][place // count] for place, cube in enumerate(cubes)}


def unusable(measured: Mapping[str, Measured | str]) -> dict[str, str]:
    """ID -> problem, of the unusable cubes in the results of `measure_all`."""
    return {name: result for name, result in measured.items() if isinstance(result, str)}


def compute_statistics(
    splits: Splits, key: str = H5_KEY, workers: int = 1, console: Console | None = None, accelerator=None,
    report: DataReport | None = None,
) -> Statistics:  # fmt: skip
    """Reads all cubes once: statistics of train, and unusable cubes of all splits.

    `splits`: as of `read_cubes`; cubes whose number of bands differs from most are unusable, too. Cubes are merged by
    the pairwise update of Chan, Golub and LeVeque (1979). Raises UserError if a band is constant over train, or if no
    cube of train is usable; the `report` then lists why.
    """
    measured = measure_all(splits, key, workers, console or make_console(quiet=True), accelerator)
    good = [result for cube in splits["train"] if isinstance(result := measured[cube.id], Measured)]
    if not good:
        for cube in splits["train"] if report else ():
            report_bad(report, cube, measured[cube.id])
        first = next((f" ({cube.file}: {measured[cube.id]})" for cube in splits["train"]), "")
        raise UserError(f"none of {len(splits['train'])} train cubes can be used{first}: statistics are of train")
    bands = Counter(result.shape[0] for result in good).most_common(1)[0][0]
    bad = unusable(measured)
    for name, result in measured.items():
        if isinstance(result, Measured) and result.shape[0] != bands:
            bad[name] = f"other number of bands: {result.shape[0]}, most have {bands}"
    good = [result for result in good if result.shape[0] == bands]

    pixels, mean, squares = 0, np.zeros(bands), np.zeros(bands)
    for result in good:
        total = pixels + result.pixels
        difference = result.mean - mean
        mean = mean + difference * (result.pixels / total)
        squares = squares + result.squares + difference**2 * (pixels * result.pixels / total)
        pixels = total
    for band in constant_bands(pixels, mean, squares):
        raise UserError(
            f"band {band} (the first is 0) has the same value in all of the training foreground: remove it from "
            "the cubes and --wavelengths"
        )
    fingerprint = {cube.id: fingerprint_of(cube) for part in splits.values() for cube in part}
    low, high = min(result.low for result in good), max(result.high for result in good)
    mean, std = tuple(mean.tolist()), tuple(np.sqrt(squares / pixels).tolist())
    return Statistics(mean, std, low, high, len(good), pixels, key, fingerprint, bad)


def constant_bands(pixels: int, mean: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Numbers of the constant bands, for arguments as in `Measured`; the resolution of float32 is 1e-6."""
    return np.flatnonzero(np.sqrt(squares / pixels) <= 1e-6 * np.abs(mean))


def fingerprint_of(cube: Cube) -> str:
    """Split, size and checksum of four short pieces of the file: fast, and sufficient to recognise other files."""
    size = cube.file.stat().st_size
    checksum = 0
    with open(cube.file, "rb") as file:
        for place in (1, 3, 5, 7):
            file.seek(size * place // 8)
            checksum = zlib.crc32(file.read(1024), checksum)
    return f"{cube.split} {size} {checksum:08x}"


def matching_statistics(file: Path, splits: Splits, key: str = H5_KEY) -> Statistics:
    """Statistics in `file`, if they are of these cubes; `splits` as of `read_cubes`, before `inspect`.

    Raises UserError, with the command for new ones, if files, their sizes, contents or splits differ.
    """
    statistics = Statistics.load(file)
    if statistics.key != key:
        raise UserError(f"{file} is of the data set {statistics.key}, not {key}; {_stats_command(file)} --h5_key {key}")
    now = {cube.id: fingerprint_of(cube) for part in splits.values() for cube in part}
    then = statistics.fingerprint
    expected = now.keys() | (then.keys() - statistics.unusable.keys())  # unusable ones may have been removed
    differing = sum(now.get(name) != then.get(name) for name in expected)
    if differing:
        raise UserError(f"{file} is of other data: {differing} of {len(now)} cubes differ; {_stats_command(file)}")
    return statistics
