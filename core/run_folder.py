"""The folder of one run: which one it is, what an earlier run left in it, and its plain files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from core.args import UserError
from core.checkpoints import damage
from core.report import plain

STATES = ("last", "previous")  # full states, the newest first


class RunFolder:
    """Paths and files of a run. `say` prints a line, on the main process only."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        self.metrics = path / "metrics.jsonl"

    @staticmethod
    def choose(args, project: str) -> Path:
        """That which --resume names, or --save_dir, or runs/<project>. Raises UserError where they contradict."""
        if args.resume in (None, "latest"):
            return args.save_dir or Path("runs") / project
        named = Path(args.resume)
        folder = named.parent if named.name in STATES else named
        if not _states(folder):
            raise UserError(
                f"--resume {named}: no training state there; give the folder of a run (it holds last/). A weights "
                "file or best/ has no optimiser state to go on from"
            )
        if args.save_dir and args.save_dir.resolve() != folder.resolve():
            raise UserError(f"--resume goes on in {folder}: leave out --save_dir {args.save_dir}, or copy the run")
        return folder

    def state_to_resume(self, resume: bool, overwrite: bool) -> Path | None:
        """The newest state that is whole, or None to start from the beginning.

        Raises UserError if no state is whole, and if a run is there that nobody asked to go on with or to replace.
        """
        states = _states(self.path)
        if resume and states:
            for state in states:
                problem = damage(state)
                if problem is None:
                    return state
                self.say(f"{state} cannot be used: {problem}")
            raise UserError(f"no state in {self.path} can be used; start anew with --overwrite")
        if resume:
            self.say(f"nothing to resume in {self.path}: starting from the beginning")
        elif not overwrite and (states or self.metrics.exists()):
            raise UserError(
                f"{self.path} holds a run: --resume goes on, --overwrite replaces it, --save_dir takes another"
            )
        return None

    def clear(self) -> None:
        """Takes away what an earlier run left there. Nothing else in the folder is touched."""
        for name in (*STATES, "best"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)

    def describe(self, args, environment: dict) -> None:
        """Writes args.json and environment.json; says which arguments differ from those before."""
        arguments, file = plain(vars(args)), self.path / "args.json"
        before = json.loads(file.read_text()) if args.resume and file.exists() else {}
        harmless = {"resume", "overwrite", "save_dir", "cache_dir", "num_workers"}
        harmless |= {"log_dir", "log_with", "experiment_name", "tags"}
        for name in sorted(set(before) & set(arguments) - harmless):
            if before[name] != arguments[name]:
                self.say(f"resumed with another --{name}: {before[name]} before, {arguments[name]} now")
        file.write_text(json.dumps(arguments, indent=1))
        (self.path / "environment.json").write_text(json.dumps(environment, indent=1))

    def log(self, row: dict) -> None:
        """Adds one line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")

    def keep_rows(self, count: int) -> None:
        """Keeps the first `count` whole lines of metrics.jsonl: a killed run may have logged more than it saved."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        self.metrics.write_text("".join(line for line in lines[:count] if line.endswith("\n")))


def evaluation_folder(checkpoint: Path, name: str) -> Path:
    """Where results of a model go if nobody says: `name` in the folder of its run, which holds its best/."""
    return (checkpoint.parent if checkpoint.name == "best" else checkpoint) / name


def _states(folder: Path) -> list[Path]:
    return [folder / name for name in STATES if (folder / name).is_dir()]
