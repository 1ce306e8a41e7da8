"""Evaluates a model on held-out cephalograms: MRE and SDR in mm with intervals, beside the mean-shape baseline.

    python cephalometric/evaluate.py --checkpoint runs/cephalometric/best --dataset_path Aariz --split test
    python cephalometric/evaluate.py --checkpoint … --refiner runs/cephalometric_refiner/best --tta 10 --output both
    python cephalometric/evaluate.py --compare evaluation_test both             # two folders that this has written

Writes metrics.json, predictions.csv (one row a case), data_report.json, figures/ and report.html to --output; a
comparison comparison.json and comparison.html.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.cases import FORMATS, GROUND_TRUTHS, SPLITS, read_cases
from ceph.comparison import compare
from ceph.dataset import CephalogramDataset, FrameCache, leave_out_unreadable
from ceph.evaluation import THRESHOLDS, Evaluation
from ceph.predictor import Predictor, add_arguments, predict_dataset
from ceph.report import interval_cells, rate_cells, write_results
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.metrics import success_detection_rate
from core.results import evaluation_folder


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser, needed=False)
    parser.add_argument("--dataset_path", type=Path, default=Path("Aariz"), help="folder of Aariz or of ISBI 2015")
    parser.add_argument("--dataset_format", choices=FORMATS, default="auto", help="of that folder")
    parser.add_argument("--split", choices=tuple(SPLITS), default="test", help="which cases")
    parser.add_argument("--ground_truth", choices=GROUND_TRUTHS, help="default: as in training")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<split> beside best/)")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="letterboxed pictures, kept")
    parser.add_argument("--batch_size", type=positive_int, default=6, help="pictures a process and step")
    parser.add_argument("--num_workers", type=non_negative_int, default=2, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the bootstrap")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FOLDER", help="two evaluations, without a new one")
    args = parser.parse_args(argv)
    if not args.checkpoint and not args.compare:
        parser.error("give --checkpoint, best/ of a run of train.py, or two evaluations with --compare")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.compare:
        output = args.output or Path("runs/cephalometric_comparison")
        return compare(args.compare, output, make_console(), args.bootstrap, args.seed)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    predictor = Predictor(args.checkpoint, args.refiner, args.refine_crops, args.tta)
    config = predictor.config
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.split}")
    args.ground_truth = args.ground_truth or config["ground_truth"]

    cache = FrameCache(args.cache_dir, config["model"]["image_size"])
    with accelerator.main_process_first():
        cases, data_report = read_cases(args.dataset_path, args.dataset_format, args.ground_truth, (args.split,))
        leave_out_unreadable(cases, cache, data_report)
    dataset = CephalogramDataset(cases[args.split], cache)
    findings = predict_dataset(accelerator, predictor, dataset, args.batch_size, args.num_workers)
    if accelerator.is_main_process:
        evaluation = Evaluation(dataset, findings, np.array(config["mean_shape"], float), args.bootstrap, args.seed)
        write_results(evaluation, args, data_report, environment(accelerator))
        data_report.print(console, args.output / "data_report.json")
        print_summary(evaluation, bool(args.refiner), console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def print_summary(evaluation: Evaluation, refined: bool, console: Console) -> None:
    """The headline on the terminal."""
    unit = evaluation.unit
    table = Table("", f"MRE [{unit}]", "95 % interval", *[f"SDR {t:g} {unit}" for t in THRESHOLDS], box=None)
    model_rates = {t: rate.estimate for t, rate in evaluation.sdr().items()}
    baseline_rates = success_detection_rate(evaluation.baseline_errors, THRESHOLDS)
    table.add_row("model", *interval_cells(evaluation.mre()), *rate_cells(model_rates))
    if refined:
        coarse = evaluation.stage_1()
        rates = {t: rate.estimate for t, rate in coarse["sdr"].items()}
        table.add_row("stage 1 alone", *interval_cells(coarse["mre"]), *rate_cells(rates))
    table.add_row("mean shape", *interval_cells(evaluation.baseline_mre()), *rate_cells(baseline_rates))
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
