"""Extracts slices from CT volumes into a slice store, which training reads at random.

    python ct_multilabel/extract_slices.py --dataset_path CT-RATE --output slices

Reads NIfTI, MetaImage and DICOM, unifies the orientation, checks for Hounsfield units, finds the lungs, and writes
--slices slices per volume to --output (see ct/store.py), with manifest.csv and data_report.json. Columns of the label
tables with 0, 1 and -1 are labels. Unusable volumes are listed. The same command resumes after an interruption and adds
new volumes.
"""

import multiprocessing
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

# No imports of torch: every worker process loads the imports of this file.
from core.args import ArgumentParser, positive, positive_int, script
from core.console import make_console, progress
from core.errors import UserError, first_line
from core.processes import cores
from core.validation import DataReport
from ct import store
from ct.ct_rate import find_volumes, patient_of
from ct.extraction import Extraction, extract, start_worker
from ct.labels import in_order, with_labels
from ct.store import MANIFEST, SETTINGS, SPLITS, StoredVolume
from ct.volumes import CHANNELS, VolumeError


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_path", type=Path, default=Path("CT-RATE"), help="data folder, with dataset/ in it")
    group.add_argument("--output", type=Path, default=Path("slices"), help="output folder: the slice store")
    group.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to extract")
    group.add_argument("--overwrite", action="store_true", help="extract all slices again, also with other settings")
    group = parser.add_argument_group("slices")
    group.add_argument("--slices", type=positive_int, default=32, help="slices per volume, evenly spaced in the chest")
    group.add_argument("--size", type=positive_int, default=224, help="slice size in px")
    field = "field of view in mm, around the centre of the body"
    group.add_argument("--field_mm", type=positive, default=360.0, help=field)
    channels = "lung, mediastinum and bone windows of a slice, or three adjacent slices in the lung window"
    group.add_argument("--channels", choices=CHANNELS, default="windows", help=channels)
    group = parser.add_argument_group("run")
    workers = "worker processes; each needs about 0.7 GB for a volume of 512×512×400"
    group.add_argument("--workers", type=positive_int, default=cores(), help=workers)
    args = parser.parse_args(argv)
    if not 50 <= args.field_mm <= 1000:
        raise UserError(f"--field_mm {args.field_mm:g} is out of range; use 50 to 1000")
    return args


def main(argv=None):
    args = parse_args(argv)
    settings = {name: getattr(args, name) for name in ("slices", "size", "field_mm", "channels")}
    check_store(args.output, settings, args.overwrite)
    report, console = DataReport(), make_console()
    with report.written_to(args.output / "data_report.json"):
        labels, volumes = find_volumes(args.dataset_path, report, args.splits)
        store.write_settings(args.output, settings)
        jobs = {}
        for volume in volumes:
            file = args.output / volume.split / f"{volume.name}.h5"
            attributes = {"volume": volume.name, "patient": volume.patient, "split": volume.split}
            attributes["source"] = volume.path.relative_to(args.dataset_path).as_posix()
            jobs[volume.name] = (volume.path, volume.metadata, file, attributes, settings, args.overwrite)

        by_name = {volume.name: volume for volume in volumes}
        done: dict[str, StoredVolume | None] = {}  # None: could not be used
        counts = Counter()
        try:
            with progress(console, "volumes", len(jobs)) as advance:
                for name, outcome in run_jobs(jobs, min(args.workers, len(jobs))):
                    volume, file = by_name[name], jobs[name][2]
                    done[name] = None
                    if isinstance(outcome, Extraction):
                        counts["kept" if outcome.kept else "extracted"] += 1
                        scan = name.rpartition("_")[0] if patient_of(name) else name
                        labelled = (volume.patient, scan, volume.split, outcome.slices, volume.labels)
                        done[name] = StoredVolume(file, name, *labelled)
                        problems, action = outcome.warnings, "kept"
                    else:
                        problems, action = [outcome], "volume skipped"
                    for problem in problems:
                        reason, _, detail = problem.partition(": ")
                        report.add(reason, volume.path, action, detail)
                    advance()
        except KeyboardInterrupt:
            console.print(f"stopped after {len(done)} of {len(jobs)} volumes; the same command goes on")
            raise
        finally:
            before, old = earlier(args.output, done, settings)
            both = in_order([*labels, *before])
            stored = with_labels((volume for volume in done.values() if volume), labels, both)
            stored += with_labels(old, before, both)
            stored.sort(key=lambda volume: (volume.split, volume.name))
            store.write_manifest(args.output, both, stored)
            report.cases = dict(Counter(volume.split for volume in stored))
            report.problems.sort(key=lambda problem: problem.where)  # instead of the order of completion
    report.print(console, args.output / "data_report.json")
    skipped = sum(volume is None for volume in done.values())
    if skipped == len(done):
        first = next(problem for problem in report.problems if problem.action == "volume skipped")
        raise UserError(
            f"no volume could be used; {args.output / 'data_report.json'} lists why "
            f"({first.where}: {first.reason}{': ' * bool(first.detail)}{first.detail})"
        )
    console.print(
        f"{counts['extracted']} volumes extracted, {counts['kept']} kept from before, {skipped} skipped; "
        f"{len(stored)} with {len(both)} labels in {args.output / MANIFEST}"
    )


def check_store(folder: Path, settings: dict, overwrite: bool) -> None:
    """Raises UserError if the store was made with other settings."""
    if overwrite or not (folder / SETTINGS).exists():
        return
    found = store.read_settings(folder)
    differing = [
        f"{name} {found.get(name)} there, {value} now" for name, value in settings.items() if found.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(differing)}): name another --output, or add --overwrite"
        )


def earlier(folder: Path, done: dict, settings: dict) -> tuple[tuple[str, ...], list[StoredVolume]]:
    """(labels, volumes) of the manifest of earlier runs: volumes that are not in `done` and whose files have the same
    settings; no labels without such volumes."""
    if not (folder / MANIFEST).exists():
        return (), []
    try:
        labels, listed = store.read_manifest(folder)
    except UserError:  # damaged or empty: it is written again
        return (), []
    found = [volume for volume in listed if volume.name not in done and store.has_settings(volume.file, settings)]
    return labels if found else (), found


def run_jobs(jobs: dict[str, tuple], workers: int) -> Iterator[tuple[str, Extraction | str]]:
    """Runs `extract` with the arguments of each job in worker processes; yields (name, result or error message).

    A killed process (probably out of memory) breaks its pool. The unfinished volumes are then repeated one by one, so
    that only the faulty volume is lost.
    """
    waiting, suspects = deque(jobs), deque()
    context = multiprocessing.get_context("spawn")  # the same start method on all systems
    while waiting or suspects:
        queue, width = (suspects, 1) if suspects else (waiting, workers)
        running = {}
        with ProcessPoolExecutor(width, mp_context=context, initializer=start_worker) as pool:
            try:
                while queue or running:
                    while queue and len(running) < width:  # no look-ahead, so that few are repeated
                        future = pool.submit(extract, *jobs[queue[0]])
                        running[future] = queue.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = _outcome(future, jobs[running[future]][0])
                        yield running.pop(future), outcome
            except BrokenProcessPool:
                if width == 1:
                    for name in running.values():
                        yield name, "process died: out of memory?"
                else:
                    suspects.extend(running.values())


def _outcome(future, path: Path) -> Extraction | str:
    try:
        return future.result()
    except VolumeError as error:
        return str(error).removeprefix(f"{path}: ")
    except (BrokenProcessPool, OSError):
        raise
    except Exception as error:  # of a library: the other volumes continue
        return f"unexpected {type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    script(main)
