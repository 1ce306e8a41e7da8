"""Projects as described by their project.json: the smallest training of each, on its demo data.

Words in braces are folders: {data} is written by the preparation, {out} takes results, {run} is a finished training.
"""

import json
import os
import shutil
from pathlib import Path

from launch import ROOT, run

NAMES = sorted(file.parent.name for file in ROOT.glob("*/project.json"))


def facts(project: str) -> dict:
    return json.loads((ROOT / project / "project.json").read_text(encoding="utf-8"))


def words(command: str | list[str], **folders) -> list[str]:
    """A command of project.json, a text or a list of texts to be joined, split at spaces."""
    return (command if isinstance(command, str) else " ".join(command)).format(**folders).split()


class SmallTraining:
    """A project with its demo data; `data` must not be written to."""

    def __init__(self, project: str, shared: Path):
        """Draws the data once in `shared`, which several test processes may use."""
        self.project, self.data, self.tests = project, shared / project, facts(project)["tests"]
        self.hostile = self.tests["hostile"]
        if self.data.exists():
            return
        drawing = shared / f"{project}.{os.getpid()}"
        for command in self.tests["prepare"]:
            done = run(*self.script(words(command, data=drawing)))
            assert done.returncode == 0, done.stderr
        try:
            drawing.rename(self.data)
        except OSError:  # another process was first
            shutil.rmtree(drawing)

    def script(self, command: list[str]) -> list[str]:
        """The command with the path of its script in the project's folder."""
        return [f"{self.project}/{command[0]}", *command[1:]]

    def training(self, out: Path | str, *more, data: Path | None = None) -> list[str]:
        """`train.py` with arguments of the project; results in `out`. `data`: default the demo data."""
        return self.script([*words(self.tests["train"], data=data or self.data, out=out), *map(str, more)])

    def evaluation(self, trained: Path, out: Path | str, *more) -> list[str]:
        """`evaluate.py` with arguments for the best model in `trained`."""
        command = words(self.tests["evaluate"], data=self.data, run=trained, out=out)
        return self.script([*command, *map(str, more)])

    def prediction(self, model: Path | str, out: Path | str) -> list[str]:
        """`predict.py` with arguments except its input."""
        return self.script(words(self.hostile["predict"], model=model, out=out))
