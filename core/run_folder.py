"""Output folder of a run: its choice, the training states and models in it, and its text files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from core.checkpoints import CONFIG, damage
from core.errors import UserError
from core.files import flush, write_text
from core.results import plain, write_json

STATES = ("last", "previous")  # training states, the newest first


class RunFolder:
    """Paths and files of a run. `say` prints a line on the main process."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        self.metrics = path / "metrics.jsonl"

    @staticmethod
    def choose(args, project: str) -> Path:
        """Folder given by --resume or --save_dir, or runs/<project>. Raises UserError if the two flags contradict or
        --resume names no training state."""
        if args.resume in (None, "latest"):
            return args.save_dir or Path("runs") / project
        named = Path(args.resume)
        folder = named.parent if named.name in STATES else named
        if not _states(folder):
            raise UserError(
                f"--resume {named}: no training state there; give a run folder with last/ (a weights file or best/ "
                "has no optimiser state)"
            )
        if args.save_dir and args.save_dir.resolve() != folder.resolve():
            raise UserError(f"--resume goes on in {folder}: leave out --save_dir {args.save_dir}, or copy the run")
        return folder

    def state_to_resume(self, resume: bool, overwrite: bool) -> Path | None:
        """The newest intact training state, or None to start from the beginning.

        Raises UserError if all states are damaged, or if the folder holds a run and neither flag is given.
        """
        states = _states(self.path)
        if resume and states:
            for state in states:
                problem = damage(state)
                if problem is None:
                    return state
                self.say(f"{state} cannot be used: {problem}")
            raise UserError(f"no training state in {self.path} can be used; start again with --overwrite")
        if resume:
            self.say(f"nothing to resume in {self.path}: starting from the beginning")
        elif not overwrite and (states or self.metrics.exists()):
            raise UserError(
                f"{self.path} holds a run: --resume goes on, --overwrite replaces it, --save_dir sets another folder"
            )
        return None

    def clear(self) -> None:
        """Deletes the states, models and metrics of an earlier run; other files in the folder are untouched."""
        # last/ after previous/: after an interruption, --resume must not fall back to an older state.
        for folder in (*(self.path / name for name in (*reversed(STATES), "best")), *self.path.glob("best_[2-9]")):
            shutil.rmtree(folder, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)

    def describe(self, args, environment: dict) -> None:
        """Writes args.json and environment.json, and prints which arguments differ from those of the resumed run."""
        arguments, file = plain(vars(args)), self.path / "args.json"
        before = json.loads(file.read_text()) if args.resume and file.exists() else {}
        harmless = {"resume", "overwrite", "save_dir", "cache_dir", "num_workers"}
        harmless |= {"log_dir", "log_with", "experiment_name", "tags"}
        for name in sorted(set(before) & set(arguments) - harmless):
            if before[name] != arguments[name]:
                self.say(f"resumed with a different --{name}: {before[name]} before, {arguments[name]} now")
        write_json(file, arguments)
        write_json(self.path / "environment.json", environment)

    def log(self, row: dict) -> None:
        """Appends one line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")
        flush(self.metrics)

    def place_among_best(
        self, value: float, epoch: int, monitor: str, mode: str, count: int
    ) -> tuple[Path, Path | None] | None:
        """(folder of a new model with this value, new folder of the model in its place); None if not among the best.

        best/, best_2/ … hold the `count` best models, the best first; worse models move down. The model of an epoch
        that is repeated after a crash is replaced.
        """
        places = [self.path / ("best" if number == 1 else f"best_{number}") for number in range(1, count + 1)]
        held = []
        for folder in places:
            file = folder / CONFIG
            best = json.loads(file.read_text(encoding="utf-8"))["best"] if file.is_file() else None
            if best is None or best["epoch"] == epoch:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if folder != places[len(held)]:
                folder.rename(places[len(held)])
            held.append(best[monitor])
        sign = 1 if mode == "min" else -1
        place = sum(sign * other <= sign * value for other in held)
        if place == count:
            return None
        if place + 1 == count or place == len(held):
            return places[place], None
        for number in reversed(range(place + 1, count - 1)):
            if places[number].exists():
                shutil.rmtree(places[number + 1], ignore_errors=True)
                places[number].rename(places[number + 1])
        return places[place], places[place + 1]

    def go_back_to(self, state: Path, epochs: int) -> None:
        """Deletes everything newer than `state`, saved after `epochs` epochs: a damaged last/, and further lines of
        metrics.jsonl, since a killed run may have logged more epochs than it saved."""
        if state.name != STATES[0]:  # otherwise the next save would replace this state by the damaged one
            shutil.rmtree(self.path / STATES[0], ignore_errors=True)
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        write_text(self.metrics, "".join(line for line in lines[:epochs] if line.endswith("\n")))


def _states(folder: Path) -> list[Path]:
    return [folder / name for name in STATES if (folder / name).is_dir()]
