"""Checks of the data before the first step: every problem counted, listed and written to `data_report.json`."""

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

Shown = TypeVar("Shown")  # a case with its `id` and its picture, the file `image`


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data, and what was done about it."""

    reason: str  # the kind of problem, the same text for all of its kind: what the report counts by
    where: str  # the file, and the case or line in it
    action: str  # "case skipped", "landmark left out", "kept" …
    detail: str = ""


@dataclass
class DataReport:
    """The problems of a data set. Readers add to it; scripts print and write it."""

    cases: dict[str, int] = field(default_factory=dict)  # split -> usable cases
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, where: object, action: str, detail: object = "") -> None:
        self.problems.append(Problem(reason, str(where), action, str(detail)))

    def counts(self) -> dict[tuple[str, str], int]:
        """(reason, action) -> number, the most frequent first."""
        return dict(Counter((p.reason, p.action) for p in self.problems).most_common())

    def write(self, file: Path) -> None:
        """Writes all of it as JSON: counts first, then every problem."""
        counts = [{"reason": r, "action": a, "count": n} for (r, a), n in self.counts().items()]
        content = {"cases": self.cases, "counts": counts, "problems": [asdict(p) for p in self.problems]}
        write_json(file, content)

    @contextmanager
    def written_to(self, file: Path, main: bool = True) -> Iterator[None]:
        """For the block that reads the data: writes the report at its end, also where the block refuses them. On the
        `main` process only."""
        try:
            yield
        finally:
            if main:
                self.write(file)

    def print(self, console: Console, file: Path | None = None) -> None:
        """Prints usable cases and, if there are problems, a table of them with one example each."""
        cases = ", ".join(f"{number} {split}" for split, number in self.cases.items())
        if not self.problems:
            console.print(f"data: {cases}; no problems found")
            return
        console.print(f"data: {cases}; {len(self.problems)} problems" + (f", all listed in {file}" if file else ""))
        table = Table("problem", "what was done", "count", "for example", box=None, pad_edge=False)
        examples = {(p.reason, p.action): f"{p.where} {p.detail}".strip() for p in reversed(self.problems)}
        for key, count in self.counts().items():
            table.add_row(*key, str(count), examples[key])
        console.print(table)


def find_leaks(splits: Mapping[str, Mapping[str, object]]) -> dict[object, list[tuple[str, str]]]:
    """Keys that stand in more than one split.

    `splits`: split -> {case: key}, where the key is what must not be shared (a patient, a file's content).
    Returns key -> [(split, case), …] for each shared key. Keys that are None are unknown and never match.
    """
    places = defaultdict(list)
    for split, cases in splits.items():
        for case, key in cases.items():
            if key is not None:
                places[key].append((split, case))
    return {key: found for key, found in places.items() if len({split for split, _ in found}) > 1}


def content_keys(files: Iterable[Path]) -> dict[Path, str | None]:
    """A key of each file's content, equal for equal files. Only files of the same size are read; others get None."""
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
    """Decodes the picture of every case once, and leaves out those whose picture is broken.

    The processes of `accelerator` share the pictures, and all get the same result. `decode` raises ImageError for a
    broken one. Raises UserError if a split has no case left.
    """

    def problem(case: Shown) -> ImageError | None:
        try:
            decode(case)
        except ImageError as error:
            return error
        return None

    kept = {}
    for split, cases in splits.items():
        problems = in_threads(problem, cases) if accelerator is None else shared(accelerator, problem, cases)
        kept[split] = [case for case, error in zip(cases, problems, strict=True) if error is None]
        for case, error in zip(cases, problems, strict=True):
            if error is not None:
                report.add("picture unreadable", case.id, "left out", error)
        report.cases[split] = len(kept[split])
        if not kept[split]:
            raise UserError(f"no readable picture in {split}, for example: {problems[0] if problems else 'empty'}")
    return kept
