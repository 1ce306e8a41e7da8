"""Figures of made-up predictions: what stands where, in which colour, and whether all of it can be read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from core import figures
from core.uncertainty import Interval
from implants import plots as dimension_plots
from implants.evaluation import Evaluation, Predictions, catalogue_of, sizes
from implants.records import TARGETS, Record

SEEN = {("Alfa", "Bone")}


def make_evaluation(count):
    """Every third case is of a model that was not trained."""
    rng = np.random.default_rng(0)
    records = [
        Record(f"r{i}", Path(f"{i}.png"), "Alfa", "Other" if i % 3 == 2 else "Bone", rng.choice([8.0, 10.0, 12.0]),
               rng.choice([3.3, 4.1]), f"p{i}", None, None, "", f"r{i}", {})
        for i in range(count)
    ]  # fmt: skip
    half = rng.uniform(0.5, 1.5, (count, 2)) * (1, 0.3)
    mean = sizes(records) + rng.normal(0.2, 0.5, (count, 2)) * (1, 0.3)
    names = np.array(["Alfa"] * count), np.array(["Bone"] * count)
    predictions = Predictions(mean, half, mean - half, mean + half, *names)
    return Evaluation(records, predictions, catalogue_of(records[: count // 2 + 1]))


@pytest.fixture
def evaluation():
    return make_evaluation(90)


def faults(fig) -> list[str]:
    """Texts that reach out of the figure, lie on another of their kind or are smaller than 8 points."""
    fig.canvas.draw()
    legends = [text for legend in fig.legends for text in legend.get_texts()]
    labels = [text for ax in fig.axes for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    ticks = []
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())  # ticks beyond are there, but not drawn
        ticks.append([tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high])
    found = []
    for texts in (legends, labels, *ticks):
        texts = [text for text in texts if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent() for text in texts]
        for i, (text, box) in enumerate(zip(texts, boxes, strict=True)):
            outside = box.x0 < 0 or box.y0 < 0 or box.x1 > fig.bbox.x1 or box.y1 > fig.bbox.y1
            if outside or text.get_fontsize() < 8 or any(box.overlaps(other) for other in boxes[:i]):
                found.append(text.get_text())
    return found


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def test_predicted_against_true(evaluation):
    fig = dimension_plots.predicted_against_true(evaluation, SEEN)
    unseen = np.arange(90) % 3 == 2
    for t, (ax, target) in enumerate(zip(fig.axes, ("Length", "Diameter"), strict=True)):
        mae = np.abs(evaluation.errors[:, t]).mean()
        assert ax.get_title(loc="left") == f"{target}: MAE {mae:.2f} mm"
        (dots,), (triangles,) = lines(ax, "case"), lines(ax, "case of an unseen company–model combination")
        for drawn, rows, side in ((dots, ~unseen, -1), (triangles, unseen, 1)):
            np.testing.assert_array_equal(drawn.get_ydata(), evaluation.predictions.mean[rows, t])
            moved = side * (drawn.get_xdata() - evaluation.truth[rows, t])
            assert moved.min() >= 0
            assert moved.max() <= 0.02 * np.ptp(ax.get_xlim())
        assert ax.get_xlim() == ax.get_ylim()
        grid = {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1}
        assert grid == set(catalogue_of(evaluation.records)["Alfa", "Bone"][target.lower()])
    assert faults(fig) == []
    everything = {("Alfa", "Bone"), ("Alfa", "Other")}
    (legend,) = dimension_plots.predicted_against_true(evaluation, everything).legends
    assert [text.get_text() for text in legend.get_texts()] == ["± 0.5 mm", "case"]


def test_residuals(evaluation):
    fig = dimension_plots.residuals(evaluation, SEEN)
    for t, ax in enumerate(fig.axes):
        errors = evaluation.errors[:, t]
        low, high = errors.mean() - 1.96 * errors.std(), errors.mean() + 1.96 * errors.std()
        level = [line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]]
        assert level == pytest.approx([0, errors.mean(), low, high])
        title = ax.get_title(loc="left").replace("−", "-")
        assert f"bias {errors.mean():+.2f}, limits {low:+.2f} to {high:+.2f} mm" in title
        bottom, top = ax.get_ylim()
        assert bottom == -top < -np.abs(errors).max()
    assert faults(fig) == []


@pytest.mark.parametrize(("count", "drawn"), [(12, 12), (60, 60), (200, 60)])
def test_intervals(count, drawn):
    evaluation = make_evaluation(count)
    fig = dimension_plots.interval_plot(evaluation, 0.9)
    for t, ax in enumerate(fig.axes):
        bars = {c.get_label(): np.array([s[:, 1] for s in c.get_segments()]) for c in ax.collections}
        covers, misses = bars["covers the truth"].reshape(-1, 2), bars["misses it"].reshape(-1, 2)
        assert len(covers) + len(misses) == drawn
        assert ((covers[:, 0] <= 0) & (covers[:, 1] >= 0)).all()
        assert not ((misses[:, 0] <= 0) & (misses[:, 1] >= 0)).any()
        widths = np.diff(np.concatenate([covers, misses]), axis=1)
        own = evaluation.predictions.high[:, t] - evaluation.predictions.low[:, t]
        assert widths.min() == pytest.approx(own.min())  # both ends are among the drawn ones
        assert widths.max() == pytest.approx(own.max())
        title = ax.get_title(loc="left")
        assert f"{100 * evaluation.covered[:, t].mean():.0f} % covered, 90 % aimed at" in title
        assert ("60 of 200 cases shown" in title) == (count > drawn)
    assert faults(fig) == []


@pytest.mark.filterwarnings("error")
def test_one_case_and_infinite_intervals_are_drawn():
    one = make_evaluation(1)
    endless = make_evaluation(20)
    endless.predictions.low[:, 0], endless.predictions.high[:, 0] = -np.inf, np.inf
    for fig in (
        dimension_plots.predicted_against_true(one, SEEN),
        dimension_plots.residuals(one, SEEN),
        dimension_plots.interval_plot(one, 0.9),
        dimension_plots.interval_plot(endless, 0.9),
    ):
        assert faults(fig) == []


def test_a_single_target_has_one_panel(evaluation):
    found = evaluation.predictions
    one = found._replace(**{name: getattr(found, name)[:, :1] for name in ("mean", "sigma", "low", "high")})
    one = Evaluation(evaluation.records, one._replace(targets=("length",)), evaluation.catalogue)
    assert one.rows == ("length",)
    (alone,), together = one.summary().values(), evaluation.summary()["length"]
    np.testing.assert_allclose(list(alone.values()), list(together.values()), rtol=1e-9)
    bars = {"triple": [alone["mae"]]}
    for fig in (
        dimension_plots.predicted_against_true(one, SEEN), dimension_plots.residuals(one, SEEN),
        dimension_plots.interval_plot(one, 0.9), dimension_plots.ablation_bars(bars, (1.46,), one.targets),
    ):  # fmt: skip
        assert [ax.get_title(loc="left").split(":")[0] for ax in fig.axes] == ["Length"]
        assert faults(fig) == []


def test_attention_bars():
    attention = {
        "Alfa": {"visual": 0.2, "company": 0.3, "model": 0.5},
        "A company with a long name": {"visual": 0.03, "company": 0.9, "model": 0.07},
    }
    fig = dimension_plots.attention_bars(attention)
    (ax,) = fig.axes
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(3, 2)
    starts = np.array([bar.get_x() for bar in ax.patches]).reshape(3, 2)
    np.testing.assert_allclose(widths.T, [list(weights.values()) for weights in attention.values()])
    np.testing.assert_allclose(starts, np.vstack([np.zeros(2), widths.cumsum(axis=0)[:2]]))
    assert [text.get_text() for text in ax.texts] == ["0.20", "0.30", "0.90", "0.50", "0.07"]  # not the 0.03
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["visual", "company", "model"]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first company is on top
    assert faults(fig) == []
    assert faults(dimension_plots.attention_bars({f"company {i}": attention["Alfa"] for i in range(30)})) == []


def test_ablation_bars():
    results = {
        "triple": (Interval(0.7, 0.6, 0.8), Interval(0.25, 0.2, 0.3)),
        "without embeddings, frozen": (Interval(1.3, 1.2, 1.4), Interval(0.5, np.nan, np.nan)),
    }
    fig = dimension_plots.ablation_bars(results, (1.46, 0.46), TARGETS)
    for t, ax in enumerate(fig.axes):
        bars = [bar for bar in ax.patches if bar.get_height() == 0.7]
        assert [bar.get_width() for bar in bars] == [intervals[t].estimate for intervals in results.values()]
        assert to_hex(bars[0].get_facecolor()) == figures.BLUE
        (line,) = lines(ax, "training median")
        assert line.get_xdata()[0] == (1.46, 0.46)[t]
        assert ax.get_xlim()[1] > max(1.46 * (t == 0), 0.5)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(results)
    assert faults(fig) == []
    assert faults(dimension_plots.ablation_bars({"triple": results["triple"]}, (1.46, 0.46), TARGETS)) == []
