"""One page over the reports of several projects: a picture, the headline numbers and the links of each.

    python -m core.overview index.html --project Ears ears.png run/evaluation/report.html run/eigenears/report.html

Numbers are the first two cards of each report: what was measured, and what it is held against.
"""

import os
from pathlib import Path

from PIL import Image

from core.args import ArgumentParser, UserError, script
from core.report import Report, read_summary

WIDTH = 800  # px of the pictures


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the page")
    parser.add_argument(
        "--project", nargs="+", action="append", required=True, metavar="WORD", help="title, picture, reports; repeat"
    )
    parser.add_argument("--title", default="Overview")
    parser.add_argument("--note", default="", help="a line below the title")
    args = parser.parse_args(argv)
    if any(len(project) < 3 for project in args.project):
        parser.error("--project takes a title, a picture and at least one report")
    return args


def write_overview(output: Path, projects: list[tuple[str, Path, list[Path]]], title: str, note: str = "") -> Path:
    """Writes the page. `projects`: (title, picture, reports) of each; links are relative to the page.

    Raises UserError for a file that is missing or no report.
    """
    report = Report(title, note)
    for name, picture, pages in projects:
        for file in (picture, *pages):
            if not file.is_file():
                raise UserError(f"{file}: no such file; run the project's evaluation first")
        summaries = [read_summary(page) for page in pages]
        report.section(name)
        report.cards(card for _, cards in summaries for card in cards[:2])
        report.links([(_relative(page, output), heading) for page, (heading, _) in zip(pages, summaries, strict=True)])
        report.figures([(_smaller(picture, output.parent / "pictures" / f"{name}.jpg"), name)])
    return report.write(output)


def _relative(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _smaller(picture: Path, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDTH, WIDTH))
        image.save(file, quality=85)
    return file


def main(argv=None):
    args = parse_args(argv)
    projects = [(title, Path(picture), [Path(page) for page in pages]) for title, picture, *pages in args.project]
    print(f"overview: {write_overview(args.output, projects, args.title, args.note)}")


if __name__ == "__main__":
    script(main)
