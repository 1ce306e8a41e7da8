"""Reports: self-contained HTML files without external resources, and an overview page of several projects.

    python -m core.report index.html --project Ears ears.png "Held-out ears" run/report.html run/other.html

The overview has a picture per project and, below the link to each report, its first two cards: result and baseline.
"""

import base64
import html
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from core.args import ArgumentParser, script
from core.errors import UserError
from core.files import write_text

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #667080; --line: #e2e5ea; --blue: #1f5fa8; --tint: #f4f6f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
p { margin: .5rem 0; } .note { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--tint); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.3; color: var(--blue); white-space: nowrap; }
.card.plain b { color: var(--ink); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; min-width: 50%; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
td, .interval span { white-space: nowrap; } td.interval { white-space: normal; } .interval span { color: var(--soft); }
th:first-child, td:first-child { text-align: left; } td.long { white-space: normal; text-align: left; }
th { color: var(--soft); font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .88rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
details { margin: .6rem 0; } summary { cursor: pointer; } a, summary { color: var(--blue); }
pre { background: var(--tint); padding: .8rem; overflow-x: auto; font-size: .8rem; border-radius: .4rem; }
"""
LARGEST = 800, 560  # px: maximum width and height of a picture on the overview page
SUMMARY = '<script type="application/json" id="summary">', "</script>"


class Report:
    """A self-contained HTML file, built section by section. All text is escaped. Title and cards are also embedded as
    JSON, for the overview page."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{html.escape(subtitle)}</p>']
        self._cards: list[tuple[str, str, str]] = []

    def cards(self, cards: Iterable[tuple[str, str, str]]) -> None:
        """Headline numbers (label, number, note): the result, in colour, then its baseline and others."""
        cards, parts = list(cards), []
        self._cards += cards
        for i, (label, number, note) in enumerate(cards):
            kind = "card" if i == 0 else "card plain"
            texts = html.escape(label), html.escape(number), html.escape(note)
            parts.append('<div class="{}">{}<b>{}</b><span class="note">{}</span></div>'.format(kind, *texts))
        self._parts.append(f'<div class="cards">{"".join(parts)}</div>')

    def section(self, title: str, text: str = "") -> None:
        """Heading, with an optional paragraph below."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str, note: bool = False) -> None:
        """Paragraph, in small grey type for a note."""
        self._parts.append(f"<p{' class=note' if note else ''}>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Table of texts and numbers; long texts wrap."""
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')

    def figures(self, figures: Iterable[tuple[Path, str]]) -> None:
        """PNG or JPEG pictures (file, caption), side by side if the page is wide enough."""
        parts = []
        for file, caption in figures:
            kind = "jpeg" if file.suffix.lower() in (".jpg", ".jpeg") else "png"
            data = base64.b64encode(file.read_bytes()).decode()
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/{kind};base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
        self._parts.append(f'<div class="row">{"".join(parts)}</div>' if len(parts) > 1 else "".join(parts))

    def link(self, address: str, text: str) -> None:
        """Link to an address relative to the page."""
        self._parts.append(f'<p><a href="{html.escape(quote(address))}">{html.escape(text)}</a></p>')

    def details(self, summary: str, text: str) -> None:
        """Collapsed block of preformatted text."""
        block = f"<summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre>"
        self._parts.append(f"<details>{block}</details>")

    def write(self, file: Path) -> Path:
        """Writes the page and returns its path."""
        summary = json.dumps({"title": self.title, "cards": self._cards}).replace("<", "\\u003c")
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>{''.join(self._parts)}"
            f"{SUMMARY[0]}{summary}{SUMMARY[1]}</body></html>"
        )
        write_text(file, page)
        return file


def read_summary(page: Path) -> tuple[str, list[tuple[str, str, str]]]:
    """(title, cards) of a page written by `Report.write`. Raises UserError for other pages."""
    found = re.search(re.escape(SUMMARY[0]) + "(.*)" + re.escape(SUMMARY[1]), page.read_text(encoding="utf-8"))
    if not found:
        raise UserError(f"{page} is not a report of this repository; run the project's evaluation")
    summary = json.loads(found[1])
    return summary["title"], [tuple(card) for card in summary["cards"]]


def _cell(value: object) -> str:
    text = html.escape(str(value))
    if len(text) > 60:
        return f'<td class="long">{text}</td>'
    estimate, interval = re.fullmatch(r"(\S+ )?(.*)", text, re.DOTALL).groups()
    if estimate and re.fullmatch(r"\(.+ to .+\)", interval):  # the interval may wrap below the estimate
        return f'<td class="interval">{estimate}<span>{interval}</span></td>'
    return f"<td>{text}</td>"


# ------------------------------------------------------------------------------------------------ several reports


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="HTML file of the overview")
    words = "title, picture, caption and reports of a project; repeat for each project"
    parser.add_argument("--project", nargs="+", action="append", required=True, metavar="WORD", help=words)
    parser.add_argument("--title", default="Overview", help="title of the page")
    parser.add_argument("--note", default="", help="note below the title")
    args = parser.parse_args(argv)
    if any(len(project) < 4 for project in args.project):
        parser.error("--project needs a title, a picture, a caption and at least one report")
    return args


def write_overview(output: Path, projects: list[tuple[str, Path, str, list[Path]]], title: str, note: str = "") -> Path:
    """Writes the overview page of `projects` (title, picture, caption, reports), with links relative to the page.

    Raises UserError for a missing file or a page that is not a report.
    """
    report = Report(title, note)
    for name, picture, caption, pages in projects:
        for file in (picture, *pages):
            if not file.is_file():
                raise UserError(f"{file}: no such file; run the project's evaluation first")
        report.section(name)
        for page in pages:
            heading, cards = read_summary(page)
            report.link(Path(os.path.relpath(page, output.parent)).as_posix(), f"{heading} →")
            report.cards(cards[:2])
        with tempfile.TemporaryDirectory() as folder:
            report.figures([(_smaller(picture, Path(folder)), caption)])
    return report.write(output)


def _smaller(picture: Path, folder: Path) -> Path:
    file = folder / "smaller.jpg"
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail(LARGEST)
        image.save(file, quality=85)
    return file


def main(argv=None):
    args = parse_args(argv)
    projects = [
        (title, Path(picture), caption, list(map(Path, pages))) for title, picture, caption, *pages in args.project
    ]
    print(f"overview: {write_overview(args.output, projects, args.title, args.note)}")


if __name__ == "__main__":
    script(main)
