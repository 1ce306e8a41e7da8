"""Schedules, parameter groups, unfreezing, metrics, bootstrap, validation, figures and reports."""

import json
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from core import figures
from core.cases import Cases
from core.console import make_console, progress
from core.errors import UserError
from core.metrics import radial_errors, success_detection_rate
from core.report import Report, read_summary
from core.results import plain
from core.schedules import parameter_groups, warmup_cosine
from core.seeding import sample_rng
from core.uncertainty import Interval, bootstrap
from core.unfreezing import UnfreezingSchedule, frozen_context, is_frozen
from core.validation import DataReport, content_keys, find_leaks


def test_warmup_then_cosine():
    factors = [warmup_cosine(update, total=100, warmup=10) for update in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert warmup_cosine(500, total=100, final=0.1) == pytest.approx(0.1)
    assert warmup_cosine(0, total=0) == 1
    with pytest.raises(ValueError, match="does not fit"):
        warmup_cosine(0, total=5, warmup=6)


def test_parameter_groups():
    model = nn.ModuleDict({"backbone": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)})
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, lr_scale={"backbone.": 0.1})
    found = {(g["lr"], g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in groups}
    assert found == {(0.1, 0.05): 12, (0.1, 0.0): 4, (1.0, 0.0): 8 + 2, (1.0, 0.05): 8}
    assert parameter_groups(model, 1.0, 0.1, {"backbone.": 0.1, "backbone.weight": 0.5})[0]["lr"] == 0.5
    with pytest.raises(ValueError, match="back_bone"):
        parameter_groups(model, 1.0, 0.1, {"back_bone.": 0.1})


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        with frozen_context(self.body):
            x = self.body(x)
        return self.head(x)


def _keep(kept, tensor):
    kept.append(tensor)
    return tensor


def test_frozen_parts_cost_nothing_and_keep_their_statistics():
    model = Layers()
    schedule = UnfreezingSchedule([(2, [model.body])])
    x = torch.randn(8, 4) * 5 + 3
    for epoch in range(3):
        model.train()
        schedule.apply(epoch)
        before = model.body[1].running_mean.clone()
        kept = []
        pack = partial(_keep, kept)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model.zero_grad()
            model(x).sum().backward()
        if epoch < 2:
            assert is_frozen(model.body)
            assert all(p.grad is None for p in model.body.parameters())
            assert torch.equal(model.body[1].running_mean, before)
            assert not model.body.training
            frozen_memory = len(kept)
        else:
            assert not is_frozen(model.body)
            assert all(p.grad is not None for p in model.body.parameters())
            assert not torch.equal(model.body[1].running_mean, before)
            assert len(kept) > frozen_memory
    with pytest.raises(ValueError, match="two stages"):
        UnfreezingSchedule([(1, [model.body]), (2, [model.body[0]])])


def test_radial_errors_and_sdr():
    errors = radial_errors(np.array([[[3, 4], [0, 0]], [[1, 0], [0, 2]]]), np.zeros((2, 2, 2)), np.array([0.1, np.nan]))
    assert errors[0] == pytest.approx([0.5, 0])
    assert np.isnan(errors[1]).all()
    assert success_detection_rate(np.array([1, 2, 2.4, 5, np.nan])) == {2.0: 50, 2.5: 75, 3.0: 75, 4.0: 75}
    assert math.isnan(success_detection_rate(np.array([np.nan]))[2.0])


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = rng.normal(10, 2, 40)
        interval = bootstrap(lambda rows, v=values: v[rows].mean(), range(40), samples=300, seed=seed)
        hits += interval.low <= 10 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_draws_whole_patients():
    """Copies of a patient's case are no new information: the interval must not shrink."""
    values = np.random.default_rng(1).normal(0, 1, 20)
    alone = bootstrap(lambda rows: values[rows].mean(), np.arange(20), seed=2)
    copied = np.repeat(values, 5)
    together = bootstrap(lambda rows: copied[rows].mean(), np.repeat(np.arange(20), 5), seed=2)
    assert together == pytest.approx(alone)
    naive = bootstrap(lambda rows: copied[rows].mean(), np.arange(100), seed=2)
    assert naive.high - naive.low < 0.6 * (together.high - together.low)


def test_bootstrap_edges():
    assert bootstrap(lambda rows: math.nan, ["a", "b"]).estimate is not None
    assert math.isnan(bootstrap(lambda rows: math.nan, ["a", "b"]).low)
    with pytest.raises(ValueError, match="no cases"):
        bootstrap(lambda rows: 0.0, [])


def test_leaks():
    leaks = find_leaks({"train": {"a": "p1", "b": "p2", "c": None}, "test": {"x": "p1", "y": None, "z": "p3"}})
    assert leaks == {"p1": [("train", "a"), ("test", "x")]}


def test_content_keys_read_only_files_of_equal_size(tmp_path):
    for name, content in {"a": b"123", "b": b"123", "c": b"124", "d": b"12345"}.items():
        (tmp_path / name).write_bytes(content)
    keys = content_keys(sorted(tmp_path.iterdir()))
    a, b, c, d = (keys[tmp_path / name] for name in "abcd")
    assert a == b
    assert a != c
    assert d is None


def test_data_report(tmp_path, capsys):
    report = DataReport(cases={"train": 3})
    report.print(Console(width=200))
    assert "no problems found" in capsys.readouterr().out
    for i in range(3):
        report.add("landmark missing", tmp_path / f"{i}.json", "landmark left out", "S")
    report.add("duplicate id", tmp_path / "x.png", "file left out")
    report.print(Console(width=200), tmp_path / "data_report.json")
    shown = capsys.readouterr().out
    assert "4 problems" in shown
    assert "data_report.json" in shown
    report.write(tmp_path / "data_report.json")
    assert len(json.loads((tmp_path / "data_report.json").read_text())["problems"]) == 4


class FakeAccelerator:
    def gather(self, columns):
        return columns


def test_cases_are_counted_once_and_gaps_are_errors():
    cases = Cases(FakeAccelerator(), 3)
    cases.add(torch.tensor([2, 0]), error=torch.tensor([2.0, 0.0]))
    cases.add(torch.tensor([1, 2]), error=torch.tensor([1.0, 2.0]))  # the last one again, as padding
    assert cases.table()["error"].tolist() == [0, 1, 2]
    cases.size = 4
    with pytest.raises(RuntimeError, match="3 of 4 cases"):
        cases.table()


def test_names_with_brackets_are_printed_as_they_are(capsys):
    make_console().print("[bold]scan[/].png: [Errno 2] " + "x" * 300, style="bold")
    assert capsys.readouterr().out.startswith("[bold]scan[/].png: [Errno 2] " + "x" * 300)
    make_console(quiet=True).print("silent")
    with progress(make_console(), "title", 3) as advance:
        advance()
    assert capsys.readouterr().out == ""


def test_sample_randomness_is_a_function_of_its_key():
    assert sample_rng(0, 1, 2).random() == sample_rng(0, 1, 2).random()
    values = {sample_rng(*key).random() for key in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 0, 0), (2, 1, 0)]}
    assert len(values) == 5


def test_plain_json():
    value = {1.5: np.float32(2), "a": [np.nan, (1, np.arange(2))], "none": None}
    value["interval"] = Interval(1.0, 0.5, math.inf)
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "1.5": 2.0, "a": [None, [1, [0, 1]]], "interval": {"estimate": 1.0, "low": 0.5, "high": None}, "none": None,
    }  # fmt: skip


def test_figures_and_report_escape_and_embed(tmp_path):
    fig = figures.cumulative_errors({"model": np.array([1.0, 2, np.nan]), "baseline": np.array([4.0, 5])}, "mm", (2, 4))
    first = figures.save(fig, tmp_path / "a.png")
    bars = figures.interval_bars({"A": Interval(1, 0.5, 2), "B": Interval(2, 1, 3)}, "error [mm]")
    matrix = figures.confusion_matrix(np.array([[3, 1], [0, 2]]), ("x", "y"), "title")
    pictures = [(first, "<curve>"), (figures.save(bars, tmp_path / "b.png"), "bars")]
    report = Report("A & B", "sub<title>")
    report.cards([("error", "1.2 mm", "note")])
    report.section("Part", "text")
    report.table(["a", "b"], [["<x>", 1], ["y" * 80, "0.5 (0.4 to 0.6)"]])
    report.figures(pictures)
    report.figures([(figures.save(matrix, tmp_path / "c.png"), "matrix")])
    report.details("more", "<pre>")
    page = report.write(tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for raw in ("<x>", "<curve>", "sub<title>"):
        assert raw not in page
    assert "A &amp; B" in page
    assert "0.5 <span>(0.4 to 0.6)</span>" in page  # which may stand below it
    assert "src=http" not in page
    assert read_summary(tmp_path / "report.html") == ("A & B", [("error", "1.2 mm", "note")])


def test_a_refusal_leaves_the_report_that_explains_it(tmp_path):
    report, file = DataReport(), tmp_path / "run" / "data_report.json"

    def read():
        with report.written_to(file):
            report.add("picture unreadable", "a.png", "left out")
            raise UserError("no picture left")

    with pytest.raises(UserError):
        read()
    assert json.loads(file.read_text())["counts"] == [
        {"reason": "picture unreadable", "action": "left out", "count": 1}
    ]
    with report.written_to(tmp_path / "other.json", main=False):
        pass
    assert not (tmp_path / "other.json").exists()


def test_names_with_dollars_and_line_breaks_are_drawn_and_written_as_they_are(tmp_path):
    figure = figures.interval_bars({"a $x_$\nb": Interval(1, 0, 2)}, "$")
    assert figures.save(figure, tmp_path / "a.png").is_file()
    report = Report("T")
    report.table(["x"], [["two\nlines"]])
    assert "two\nlines" in report.write(tmp_path / "a.html").read_text()
