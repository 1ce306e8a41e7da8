"""The folder of one run: which one it is, what an earlier run left in it, and its plain files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from core.checkpoints import CONFIG, damage
from core.errors import UserError
from core.files import flush, write_text
from core.results import plain, write_json

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
        # last/ after previous/: --resume must not go on with what is half taken away.
        for folder in (*(self.path / name for name in (*reversed(STATES), "best")), *self.path.glob("best_[2-9]")):
            shutil.rmtree(folder, ignore_errors=True)
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
        write_json(file, arguments)
        write_json(self.path / "environment.json", environment)

    def log(self, row: dict) -> None:
        """Adds one line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")
        flush(self.metrics)

    def place_among_best(
        self, value: float, epoch: int, monitor: str, mode: str, count: int
    ) -> tuple[Path, Path | None] | None:
        """(folder for a model of this value, folder for the one that is there now); None if it is not among the best.

        best/, best_2/ … hold the `count` best models, the best first; what comes below them moves down. The model of
        an epoch that is done again after a crash is replaced.
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
        """Takes away what is newer than `state`, which was saved after so many epochs: a last/ that cannot be used, and
        further lines of metrics.jsonl, for a killed run may have logged more than it saved."""
        if state.name != STATES[0]:  # or the next save would keep the bad one, in the place of this good one
            shutil.rmtree(self.path / STATES[0], ignore_errors=True)
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        write_text(self.metrics, "".join(line for line in lines[:epochs] if line.endswith("\n")))


def _states(folder: Path) -> list[Path]:
    return [folder / name for name in STATES if (folder / name).is_dir()]
