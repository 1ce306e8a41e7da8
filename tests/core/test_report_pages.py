"""The page over several reports."""

import base64
import io
import re

import pytest
from PIL import Image

from conftest import loads_nothing
from core import report as core_report
from core.errors import UserError
from core.report import Report


@pytest.fixture
def results(tmp_path):
    """A picture, and two reports in folders of their own."""
    Image.new("RGBA", (3000, 1500), (200, 0, 0, 255)).save(tmp_path / "a.png")
    for name in ("first", "second"):
        report = Report(f"Report </script> {name}")
        report.cards([("error", f"1.2 mm {name}", "less"), ("baseline", f"3.4 mm {name}", ""), ("cases", "5", "")])
        report.write(tmp_path / "some run" / f"{name}.html")
    return tmp_path


def test_the_page_shows_two_cards_of_each_report_its_link_and_a_small_picture(results):
    pages = [str(results / "some run" / f"{name}.html") for name in ("first", "second")]
    core_report.main(
        [str(results / "page" / "index.html"), "--project", "Ears & more", str(results / "a.png"), "drawn <b>", *pages]
    )
    page = (results / "page" / "index.html").read_text()
    shown = page.split("<body>")[1].split("<script")[0]
    for name in ("first", "second"):
        assert f"1.2 mm {name}" in shown
        assert f"3.4 mm {name}" in shown
        assert f'<a href="../some%20run/{name}.html">Report &lt;/script&gt; {name} →</a>' in shown
    assert "cases" not in shown
    assert "Ears &amp; more" in shown
    assert "<figcaption>drawn &lt;b&gt;</figcaption>" in shown
    assert loads_nothing(page)
    with Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', page)[1]))) as picture:
        assert picture.size == (800, 400)
    assert [path.name for path in (results / "page").iterdir()] == ["index.html"]


def test_what_is_no_report_is_said(results):
    (results / "other.html").write_text("<html></html>")
    for page, message in (("other.html", "not a report"), ("nowhere.html", "no such file")):
        with pytest.raises(UserError, match=message):
            core_report.write_overview(results / "index.html", [("A", results / "a.png", "a", [results / page])], "T")


def test_a_project_without_a_report_is_refused(capsys):
    with pytest.raises(SystemExit):
        core_report.parse_args(["index.html", "--project", "Ears", "a.png", "drawn"])
    assert "at least one report" in capsys.readouterr().err
