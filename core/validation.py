"""Data checks before training: problems are counted, listed and written to `data_report.json`."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

from core.errors import UserError
from core.images import ImageError, read_image
from core.processes import in_threads, shared
from core.results import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

Shown = TypeVar("Shown")  # a case with `id` and picture file `image`


@dataclass(frozen=True)
class Problem:
    """A problem of the data, and the action taken."""

    reason: str  # kind of problem, by which the report counts
    where: str  # file, and case or line in it
    action: str  # "case skipped", "landmark left out", "kept" …
    detail: str = ""


@dataclass
class DataReport:
    """Usable cases and problems of a data set."""

    cases: dict[str, int] = field(default_factory=dict)  # split -> usable cases
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, where: object, action: str, detail: object = "") -> None:
        """Adds a `Problem`."""
        self.problems.append(Problem(reason, str(where), action, str(detail)))

    def counts(self) -> dict[tuple[str, str], int]:
        """(reason, action) -> number, the most frequent first."""
        return dict(Counter((p.reason, p.action) for p in self.problems).most_common())

    def write(self, file: Path) -> None:
        """Writes cases, counts and problems as JSON."""
        counts = [{"reason": r, "action": a, "count": n} for (r, a), n in self.counts().items()]
        content = {"cases": self.cases, "counts": counts, "problems": [asdict(p) for p in self.problems]}
        write_json(file, content)

    @contextmanager
    def written_to(self, file: Path, main: bool = True) -> Iterator[None]:
        """Context manager around reading the data: writes the report at the end, if `main`; after an error only where
        it has problems that explain it."""
        try:
            yield
        except UserError:
            main = main and bool(self.problems)
            raise
        finally:
            if main:
                self.write(file)

    def print(self, console: Console, file: Path | None = None) -> None:
        """Prints the numbers of usable cases and a table of the problems with one example each."""
        cases = ", ".join(f"{number} {split}" for split, number in self.cases.items())
        if not self.problems:
            console.print(f"data: {cases}; no problems found")
            return
        console.print(f"data: {cases}; {len(self.problems)} problems" + (f", all listed in {file}" if file else ""))
        table = Table("problem", "action", "count", "example", box=None, pad_edge=False)
        examples = {(p.reason, p.action): f"{p.where} {p.detail}".strip() for p in reversed(self.problems)}
        for key, count in self.counts().items():
            table.add_row(*key, str(count), examples[key])
        console.print(table)


def find_leaks(splits: Mapping[str, Mapping[str, object]]) -> dict[object, list[tuple[str, str]]]:
    """Leakage between splits: key -> [(split, case), …] for each key in more than one split.

    `splits`: split -> {case: key}, with the patient or the file content as key; None = unknown, never shared.
    """
    places = defaultdict(list)
    for split, cases in splits.items():
        for case, key in cases.items():
            if key is not None:
                places[key].append((split, case))
    return {key: found for key, found in places.items() if len({split for split, _ in found}) > 1}


def content_keys(files: Iterable[Path]) -> dict[Path, str | None]:
    """SHA-256 checksum of each file that has the size of another one, to find duplicates; None for the others."""
    by_size = defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    keys = {}
    for same_size in by_size.values():
        for file in same_size:
            keys[file] = hashlib.sha256(file.read_bytes()).hexdigest() if len(same_size) > 1 else None
    return keys


def leave_out_unreadable(
    splits: Mapping[str, list[Shown]],
    report: DataReport,
    accelerator: "Accelerator | None" = None,
    decode: Callable[[Shown], object] = lambda case: read_image(case.image),
) -> dict[str, list[Shown]]:
    """Cases by split without those whose picture `decode` refuses with ImageError; each picture is decoded once.

    The ranks of `accelerator` share the work and return the same result. Raises UserError for a split without cases.
    """

    def problem(case: Shown) -> ImageError | None:
        try:
            decode(case)
        except ImageError as error:
            return error
        return None

    kept = {}
    for split, cases in splits.items():
        pictures = {case.image: case for case in cases}  # several cases may share one
        shown = list(pictures.values())
        found = in_threads(problem, shown) if accelerator is None else shared(accelerator, problem, shown)
        problems = dict(zip(pictures, found, strict=True))
        kept[split] = [case for case in cases if problems[case.image] is None]
        for case in cases:
            if problems[case.image] is not None:
                report.add("picture unreadable", case.id, "left out", problems[case.image])
        report.cases[split] = len(kept[split])
        if not kept[split]:
            raise UserError(f"no readable picture in {split} ({problems[cases[0].image] if cases else 'no cases'})")
    return kept
