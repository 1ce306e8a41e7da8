"""Evaluates a model on held-out images: MRE and SDR in mm with confidence intervals, and the mean-shape baseline.

    python cephalometric/evaluate.py --checkpoint runs/cephalometric/best --dataset_path Aariz --split test
    python cephalometric/evaluate.py --checkpoint … --refiner runs/cephalometric_refiner/best --tta 10 --output both
    python cephalometric/evaluate.py --compare evaluation_test both             # compares two evaluations

Writes metrics.json, predictions.csv (one row per case), data_report.json, figures/ and report.html to --output;
--compare writes comparison.json and comparison.html.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.cases import add_data_arguments, read_frames
from ceph.dataset import CephalogramDataset, keep_taught
from ceph.evaluation import THRESHOLDS, Evaluation
from ceph.predictor import Predictor, add_arguments, predict_dataset
from ceph.reading import SPLITS
from ceph.report import compare, write_results
from core.args import ArgumentParser, add_evaluation_arguments, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.metrics import success_detection_rate
from core.results import cells, evaluation_folder, number
from core.validation import DataReport


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser, needed=False)
    add_data_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="split to evaluate on")
    add_evaluation_arguments(parser, output="evaluation_<split>", batch_size=6, per="images")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FOLDER", help="two evaluation folders to compare")
    args = parser.parse_args(argv)
    if not args.checkpoint and not args.compare:
        parser.error("give --checkpoint, best/ of a run of train.py, or two evaluations with --compare")
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    if args.compare:
        output = args.output or Path("runs") / f"{Path(__file__).resolve().parent.name}_comparison"
        return compare(args.compare, output, console, environment(accelerator), args.bootstrap, args.seed)
    predictor = Predictor(args.checkpoint, args.refiner, args.refine_crops, args.tta)
    config, anatomy = predictor.config, predictor.anatomy
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.split}")
    args.ground_truth = args.ground_truth or config["ground_truth"]

    report, size = DataReport(), config["model"]["image_size"]
    with report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        cases, cache = read_frames(args, args.ground_truth, (args.split,), size, anatomy, report, accelerator)
    keep_taught(cases[args.split], args.split, anatomy.names, config["taught"])
    dataset = CephalogramDataset(cases[args.split], cache, anatomy=anatomy)
    findings = predict_dataset(accelerator, predictor, dataset, args.batch_size, args.num_workers)
    if accelerator.is_main_process:
        evaluation = Evaluation(dataset, findings, np.array(config["mean_shape"], float), args.bootstrap, args.seed)
        metrics = write_results(evaluation, args, report, environment(accelerator))
        report.print(console, args.output / "data_report.json")
        print_summary(metrics, success_detection_rate(evaluation.baseline_errors, THRESHOLDS), console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def print_summary(metrics: dict, baseline_sdr: dict[float, float], console: Console) -> None:
    """Prints MRE and SDR of the model, of stage 1 alone and of the mean shape."""
    unit = metrics["unit"]
    table = Table("", f"MRE [{unit}]", "95 % interval", *[f"SDR {t:g} {unit}" for t in THRESHOLDS], box=None)
    rows = {"model": metrics, "stage 1 alone": metrics["stage_1"]} if metrics["stage_1"] else {"model": metrics}
    for name, row in rows.items():
        table.add_row(name, *cells(row["mre"]), *(number(rate.estimate, "{:.1f}") for rate in row["sdr"].values()))
    rates = (number(rate, "{:.1f}") for rate in baseline_sdr.values())
    table.add_row("mean shape", *cells(metrics["baseline_mre"]), *rates)
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
