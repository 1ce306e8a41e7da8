"""core/results.py: folders of evaluations, plain JSON and CSV, intervals as text, the end of a report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from core.report import Report
from core.results import card, cells, close, evaluation_folder, number, span, with_span, write_csv, write_json
from core.uncertainty import Interval

KNOWN, UNKNOWN = Interval(1.234, 1.0, 1.5), Interval(2.5, np.nan, np.nan)


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [("run/best", "run/evaluation"), ("run/best_3", "run/evaluation_3"), ("elsewhere", "elsewhere/evaluation")],
)
def test_results_lie_beside_the_model(checkpoint, folder):
    assert evaluation_folder(Path(checkpoint), "evaluation") == Path(folder)


def test_intervals_as_text():
    assert span(KNOWN) == "1.00 to 1.50"
    assert with_span(KNOWN, "{:+.1f}") == "+1.2 (+1.0 to +1.5)"
    assert with_span(UNKNOWN) == "2.50"
    assert cells(KNOWN) == ["1.23", "1.00 to 1.50"]
    assert cells(UNKNOWN) == ["2.50", "– to –"]
    assert number(np.nan) == number(np.inf) == "–"
    assert card("MRE", KNOWN, unit=" mm", note="28 cases") == ("MRE", "1.23 mm", "95 % interval 1.00 to 1.50; 28 cases")
    assert card("MRE", KNOWN) == ("MRE", "1.23", "95 % interval 1.00 to 1.50")


def test_json_is_plain_and_csv_keeps_what_cells_hold(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"mre": KNOWN, 2.0: np.float32(np.nan), "é": Path("x")})
    content = json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8"))
    assert content == {"mre": {"estimate": 1.234, "low": 1.0, "high": 1.5}, "2": None, "é": "x"}
    write_csv(tmp_path / "a.csv", ["id", "note"], [["1", 'a "b", c'], ["2", "é"]])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "note"], ["1", 'a "b", c'], ["2", "é"]]
    assert sorted(path.name for path in tmp_path.rglob("*.unfinished")) == []


def test_a_table_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_csv(tmp_path / "a.csv", ["id"], [["old"]])

    def rows():
        yield ["new"]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_csv(tmp_path / "a.csv", ["id"], rows())
    assert (tmp_path / "a.csv").read_text() == "id\nold\n"


def test_every_report_ends_with_data_machine_and_notice(tmp_path):
    pages = [
        close(Report("T"), tmp_path / f"{i}.html", {"cpus": 2}, counts).read_text(encoding="utf-8")
        for i, counts in enumerate((None, {}, {("picture unreadable", "left out"): 3}))
    ]
    for page in pages:
        assert page.index("Machine") < page.index("cpus") < page.index("Not a medical device")
    assert "<h2>Data</h2>" not in pages[0]
    assert "No problems found" in pages[1]
    assert "<td>left out</td><td>3</td>" in pages[2]
    assert "data_report.json" in pages[2]
