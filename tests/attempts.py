"""Scripts with hostile input: no traceback, no code executed from files, less than 2 GiB of memory, no endless run."""

import json
from pathlib import Path

from conftest import ROOT
from files import read_json
from launch import run

SECONDS = 60  # limit of a run, which takes a few
MIB = 2048


class Attempts:
    """Runs a script with hostile input and checks for harm."""

    def __init__(self, folder: Path):
        self.folder, self.marker, self.inputs = folder, folder / "marker", folder / "inputs"
        (folder / "outside.png").write_bytes(b"outside")

    def __call__(self, script: str, lines: list[list]) -> list[dict]:
        """Results of `script` for each list of arguments, in order."""
        before = set(self.inputs.rglob("*"))
        places = self.folder / "lines.json", self.folder / "results.json"
        places[0].write_text(json.dumps([list(map(str, line)) for line in lines]))
        done = run("tests/attempting.py", ROOT / script, *places, SECONDS)
        assert done.returncode == 0, done.stderr
        outcomes = read_json(places[1])
        assert not self.marker.exists(), "code of a file was run"
        assert set(self.inputs.rglob("*")) == before, "written among the inputs"
        for line, outcome in zip(lines, outcomes, strict=True):
            told = (line, outcome["returncode"], outcome["mib"], outcome["stderr"][-2000:])
            assert outcome["returncode"] in (0, 2), told
            assert "Traceback" not in outcome["stderr"], told
            assert outcome["mib"] < MIB, told
        print(f"{len(lines)} runs, {sum(o['cpu'] for o in outcomes):.0f} s, {max(o['mib'] for o in outcomes):.0f} MiB")
        return outcomes


def refusal(outcome: dict) -> str | None:
    """Error line of a refused input; None if the input was accepted."""
    if outcome["returncode"] == 0:
        return None
    lines = [line for line in outcome["stderr"].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome["stderr"]
    assert outcome["stderr"].endswith(lines[0] + "\n"), outcome["stderr"]
    return lines[0]
