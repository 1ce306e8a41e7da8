"""Tools for hyperspectral cubes: checks, band statistics, copies that are faster to read.

    python hyperspectral/cubes.py check  --csv_file DATA.csv                    # reads all files and values
    python hyperspectral/cubes.py stats  --csv_file DATA.csv                    # mean and SD of each band
    python hyperspectral/cubes.py repack --csv_file DATA.csv --output FOLDER    # contiguous copies

`check` writes nothing unless --output is given. `stats` writes DATA_stats.json beside the CSV. `repack` writes
uncompressed, contiguous copies and a CSV of them; the same command resumes after an interruption. The README describes
the CSV and the files.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

from collections import Counter, defaultdict
from contextlib import nullcontext

from rich.console import Console
from rich.table import Table

from core.args import ArgumentParser, positive_int, script
from core.console import make_console, progress
from core.errors import UserError
from core.processes import cores, in_processes
from core.results import write_csv
from core.validation import DataReport
from hsi.files import Splits, add_data_arguments, inspect, leave_out, read_cubes
from hsi.repack import claim, repack_cube, repack_targets, repacked_table
from hsi.statistics import compute_statistics, constant_bands, measure_all, statistics_file, unusable

# No imports of torch: every worker process loads the imports of this file.


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    for name, text in (
        ("check", "check of every file and value"),
        ("stats", "mean and SD of every band over the foreground of the training split"),
        ("repack", "uncompressed, contiguous copies and a CSV of them"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add_data_arguments(command)
        command.add_argument(
            "--workers", type=positive_int, default=cores(), help="processes; each holds one cube in memory"
        )
        if name == "check":
            command.add_argument("--output", type=Path, metavar="FILE", help="report of all problems, as JSON")
        elif name == "stats":
            text = "output file (default: DATA_stats.json beside the CSV)"
            command.add_argument("--output", type=Path, metavar="FILE", help=text)
        else:
            command.add_argument("--output", type=Path, metavar="FOLDER", required=True, help="folder of the copies")
            command.add_argument("--dtype", choices=("keep", "float32"), default="keep", help="data type of the copies")
            command.add_argument("--overwrite", action="store_true", help="replace existing copies")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console, report = make_console(), DataReport()
    with report.written_to(args.output) if args.command == "check" and args.output else nullcontext():
        splits = read_cubes(args.csv_file, report, args.valid_fraction, args.test_fraction)
        {"check": check, "stats": stats, "repack": repack}[args.command](args, splits, report, console)


def check(args, splits: Splits, report: DataReport, console: Console) -> None:
    """Prints the contents of the splits and all problems."""
    usable = inspect(splits, args.h5_key, len(args.wavelengths), None, report)
    measured = measure_all(usable, args.h5_key, args.workers, console)
    good = defaultdict(list)  # (split, shape) -> cubes
    for split, cubes in leave_out(usable, unusable(measured), report).items():
        for cube in cubes:
            result = measured[cube.id]
            good[split, result.shape].append(cube)
            for band in constant_bands(result.pixels, result.mean, result.squares):
                report.add("a band is constant", cube.file, "kept", f"{args.wavelengths[band]:g} nm")
            if result.low < -0.1 * result.high:
                detail = f"from {result.low:.3g} to {result.high:.3g}; black should be 0"
                report.add("values far below 0", cube.file, "kept", detail)

    table = Table("split", "cubes", "patients", "labels", "shape", "range", "foreground", box=None, pad_edge=False)
    for (split, shape), cubes in good.items():
        results = [measured[cube.id] for cube in cubes]
        low, high = min(result.low for result in results), max(result.high for result in results)
        share = sum(result.pixels for result in results) / (len(cubes) * shape[1] * shape[2])
        patients, labels = {cube.patient for cube in cubes}, sorted({cube.label for cube in cubes} - {""})
        counts = str(len(cubes)), str(len(patients)), str(len(labels))
        table.add_row(split, *counts, "x".join(map(str, shape)), f"{low:.3g} to {high:.3g}", f"{share:.0%}")
    console.print(table)
    report.print(console, args.output)


def stats(args, splits: Splits, report: DataReport, console: Console) -> None:
    """Measures the cubes and writes the statistics."""
    usable = inspect(splits, args.h5_key, len(args.wavelengths), None, report)  # first, as it is fast
    statistics = compute_statistics(splits, args.h5_key, args.workers, console)
    leave_out(usable, statistics.unusable, report)
    if len(statistics.mean) != len(args.wavelengths):
        raise UserError(f"most train cubes have {len(statistics.mean)} bands, --wavelengths {len(args.wavelengths)}")
    report.print(console)
    file = args.output or statistics_file(args.csv_file)
    statistics.save(file)
    ranges = (f"{min(values):.3g} to {max(values):.3g}" for values in (statistics.mean, statistics.std))
    console.print(
        f"{file}: {statistics.cubes} train cubes, {statistics.pixels} foreground pixels; mean {next(ranges)}, SD "
        f"{next(ranges)} over the bands; values {statistics.low:.3g} to {statistics.high:.3g}"
    )


def repack(args, splits: Splits, report: DataReport, console: Console) -> None:
    """Copies the cubes and writes a CSV of the copies."""
    cubes = [cube for part in splits.values() for cube in part]
    targets = repack_targets(args.csv_file, args.output, cubes)
    settings = {"csv_file": args.csv_file.name, "h5_key": args.h5_key, "dtype": args.dtype}
    claim(args.output, settings, args.overwrite)
    jobs = [(cube.file, targets[cube.id], args.h5_key, args.dtype, args.overwrite) for cube in cubes]
    results = {}
    with progress(console, "copying", len(cubes)) as advance:
        for cube, result in zip(cubes, in_processes(repack_cube, jobs, args.workers), strict=True):
            results[cube.id] = result
            advance()
    copied = leave_out(splits, unusable(results), report)
    targets = {cube.id: targets[cube.id] for part in copied.values() for cube in part}
    counts = Counter(results[name] for name in targets)
    report.write(args.output / "data_report.json")
    report.print(console, args.output / "data_report.json")
    if not targets:
        raise UserError(f"no cube could be copied; {args.output / 'data_report.json'} lists why")
    table = args.output / args.csv_file.name
    write_csv(table, *repacked_table(args.csv_file, args.output, targets))
    console.print(f"{table}: {counts[True]} cubes copied, {counts[False]} there already")


if __name__ == "__main__":
    import cubes  # the module name in worker processes

    script(cubes.main)
