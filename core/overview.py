"""One page over the reports of several projects: a picture of each, and the headline numbers under every link.

    python -m core.overview index.html --project Ears ears.png "Ears it had not seen" run/report.html run/other.html

Numbers are the first two cards of each report: what was measured, and what it is held against.
"""

import os
import tempfile
from pathlib import Path

from PIL import Image

from core.args import ArgumentParser, UserError, script
from core.report import Report, read_summary

LARGEST = 800, 560  # px of the pictures: a page of several is read by scrolling


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the page")
    parser.add_argument(
        "--project",
        nargs="+",
        action="append",
        required=True,
        metavar="WORD",
        help="title, picture, its caption, reports; repeat",
    )
    parser.add_argument("--title", default="Overview")
    parser.add_argument("--note", default="", help="a line below the title")
    args = parser.parse_args(argv)
    if any(len(project) < 4 for project in args.project):
        parser.error("--project takes a title, a picture, its caption and at least one report")
    return args


def write_overview(output: Path, projects: list[tuple[str, Path, str, list[Path]]], title: str, note: str = "") -> Path:
    """Writes the page. `projects`: (title, picture, its caption, reports) of each; links are relative to the page.

    Raises UserError for a file that is missing or no report.
    """
    report = Report(title, note)
    for name, picture, caption, pages in projects:
        for file in (picture, *pages):
            if not file.is_file():
                raise UserError(f"{file}: no such file; run the project's evaluation first")
        report.section(name)
        for page in pages:
            heading, cards = read_summary(page)
            report.link(_relative(page, output), f"{heading} →")
            report.cards(cards[:2])
        with tempfile.TemporaryDirectory() as folder:
            report.figures([(_smaller(picture, Path(folder)), caption)])
    return report.write(output)


def _relative(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


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
        (title, Path(picture), caption, [Path(page) for page in pages])
        for title, picture, caption, *pages in args.project
    ]
    print(f"overview: {write_overview(args.output, projects, args.title, args.note)}")


if __name__ == "__main__":
    script(main)
