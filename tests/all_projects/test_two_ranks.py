"""Two processes are one with a batch of twice the size, on numbers of cases that do not fill their batches."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import ROOT
from files import logged, read_csv, read_json
from launch import AGREEING, COUNTING, run

# What a rank computes from its own share of a batch alone, or draws for itself, no flag can make equal everywhere:
# batch norm (on GPUs `Run` takes SyncBatchNorm, which CPUs lack), dropout, the noise of a VAE, means over known labels.
SHARED_NOWHERE = """
import math, runpy, sys

import torch
import torch.nn.functional as F

import core.losses.classification

F.batch_norm = lambda x, mean, variance, weight, bias, *rest: F.group_norm(x, 1, weight, bias)  # case by case
torch.nn.Dropout.forward = lambda self, x: x
torch.randn_like = torch.zeros_like
core.losses.classification.UNKNOWN = math.nan  # -1 is a label like others
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What flags can, project.json has: no landmark leaves the picture, no CutMix within a batch, no comparison of a
# batch's ears. Beside: the epochs, through all unfreezing; a number of volumes to validate on that four does not
# divide; no norm of one number.
RATE = 1e-4  # of learning: how far an update moves a weight


def share(small):
    """The batch of one of two ranks, in what --batch_size counts."""
    return small.tests["two_processes"]["cases"] * small.tests["two_processes"]["samples_a_case"]


def test_two_ranks_equal_one_with_twice_the_batch(small, tmp_path):
    """Losses, validation and weights. AdamW makes much of small gradients' rounding, hence few updates; gradients that
    are wrong move weights by a whole update."""
    (tmp_path / "runner.py").write_text(SHARED_NOWHERE)
    for ranks in (1, 2):
        flags = (
            *small.tests["two_processes"]["flags"].split(),
            "--lr",
            RATE,
            "--batch_size",
            2 // ranks * share(small),
        )
        script, *arguments = small.training(tmp_path / str(ranks), *flags)
        done = run(AGREEING, tmp_path / "runner.py", ROOT / script, *arguments, processes=ranks)
        assert done.returncode == 0, done.stderr
        assert f"weights agree: True ({ranks})" in done.stdout
    one, two = tmp_path / "1", tmp_path / "2"
    cases = read_json(two / "data_report.json")["cases"]
    validated = next(cases[name] for name in ("tune", "val", "valid") if name in cases)
    assert validated % (2 * small.tests["two_processes"]["cases"])
    for ours, theirs in zip(logged(two), logged(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    ours, theirs = (load_file(folder / "last" / "model.safetensors") for folder in (two, one))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=RATE / 10, err_msg=name)


@pytest.fixture(scope="module")
def trained_by_two(small, tmp_path_factory):
    """A run with all that is random or a rank's own, through all unfreezing, whose ranks agree."""
    folder = tmp_path_factory.mktemp("two")
    script, *arguments = small.training(folder, "--batch_size", share(small))
    done = run(AGREEING, ROOT / script, *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert "weights agree: True (2)" in done.stdout
    return folder


def numbers(value, place=""):
    """Place -> number, of all numbers in nested JSON but times."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [numbers(part, f"{place}/{key}") for key, part in items if "seconds" not in str(key)]
        return {name: number for part in parts for name, number in part.items()}
    return {place: value} if isinstance(value, int | float) else {}


def test_two_ranks_evaluate_as_one(small, trained_by_two, tmp_path):
    metrics, tables = [], []
    for ranks in (1, 2):
        script, *arguments = small.evaluation(trained_by_two, tmp_path / str(ranks), "--batch_size", 3)
        done = run(script, *arguments, processes=ranks)
        assert done.returncode == 0, done.stderr
        metrics.append(read_json(tmp_path / str(ranks) / "metrics.json"))
        tables.append(read_csv(tmp_path / str(ranks) / "predictions.csv"))
    assert [content.pop("environment")["processes"] for content in metrics] == [1, 2]
    one, two = map(numbers, metrics)
    assert len(one) > 10
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6, nan_ok=True)
    identities = [next(iter(row.values())) for row in tables[0]]
    assert len(set(identities)) == len(identities)
    assert len(identities) % 6
    for ours, theirs in zip(tables[1], tables[0], strict=True):
        for name, text in theirs.items():
            try:
                assert float(ours[name]) == pytest.approx(float(text), rel=1e-4, abs=1e-4, nan_ok=True), name
            except ValueError:
                assert ours[name] == text


def test_two_ranks_read_each_file_once_between_them(small, tmp_path):
    """Before the first step: pictures decoded, cubes read, none twice; pictures are shared evenly."""
    counts, reader = tmp_path / "counts", small.tests["two_processes"]["reads"]
    counts.mkdir()
    data = shutil.copytree(small.data, tmp_path / "data")  # without what a run before has cached
    for cached in small.tests["two_processes"].get("cached", ()):
        for path in data.glob(cached):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    script, *arguments = small.training(tmp_path / "run", data=data)
    done = run(COUNTING, reader, counts, ROOT / script, *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    ranks = [file.read_text().splitlines() for file in sorted(counts.iterdir())]
    files = [file for rank in ranks for file in rank]
    assert len(files) == len(set(files)), "read twice"
    if small.tests["two_processes"]["shared"]:
        assert len(files) == sum(read_json(tmp_path / "run" / "data_report.json")["cases"].values())
        assert min(map(len, ranks)) >= len(files) // 2
