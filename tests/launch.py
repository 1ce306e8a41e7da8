"""Runs scripts in separate processes, as a user would, without repeating their imports.

A fork server imports the heavy packages once; each run is a fork that executes the script as `__main__` with its own
arguments, folder and environment, and may be killed. `processes=2` sets the environment of `torchrun` and `accelerate
launch`.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Wrappers of a training script: comparison of the ranks' weights at the end; count of files read before the first step.
AGREEING, COUNTING = ROOT / "tests" / "agreeing.py", ROOT / "tests" / "counting.py"
PRELOADED = ["torch", "accelerate", "albumentations", "timm", "torchmetrics.functional", "matplotlib.figure"]
PRELOADED += ["nibabel", "SimpleITK", "h5py", "scipy.stats"]


class Result(NamedTuple):
    """Exit code (negative for a signal) and output, as of subprocess."""

    returncode: int
    stdout: str
    stderr: str


class Launched:
    """A running script in one or several processes."""

    def __init__(self, script: str | Path, *arguments, processes: int = 1, cwd: Path = ROOT, **environment):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.outputs = [tempfile.NamedTemporaryFile(mode="r", suffix=f".{name}") for name in ("out", "err")]
        script = ROOT / script
        environments = [{**environment, "OMP_NUM_THREADS": "1"} for _ in range(processes)]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            for rank, variables in enumerate(environments):
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                variables |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        names = [output.name for output in self.outputs]
        self.processes = [
            context.Process(target=_execute, args=(str(script), list(map(str, arguments)), str(cwd), variables, names))
            for variables in environments
        ]
        for process in self.processes:
            process.start()

    def wait(self, timeout: float = 240) -> Result:
        """Result after all processes have ended. If one fails, the others are killed, as by a launcher."""
        for process in self.processes:
            process.join(timeout)
            if process.is_alive() or process.exitcode:
                for other in self.processes:
                    other.join(2)
                    other.kill()
        codes = [process.exitcode for process in self.processes]
        stdout, stderr = (Path(output.name).read_text() for output in self.outputs)
        return Result(next((code for code in codes if code), 0), stdout, stderr)


def run(script: str | Path, *arguments, **options) -> Result:
    """Runs a script to its end. `options` as for `Launched`."""
    return Launched(script, *arguments, **options).wait()


def _execute(script: str, arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    for descriptor, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
    os.environ.update(environment)
    os.chdir(cwd)
    import torch

    multiprocessing.set_start_method("fork", force=True)  # for loader workers: the system default
    torch.set_num_threads(1)  # OMP_NUM_THREADS was already read by the server
    sys.argv = [script, *arguments]
    # The script must set its own import paths: those of the repository are removed (except .venv).
    sys.path[:] = [path for path in sys.path if ROOT not in (Path(path), Path(path).parent)]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
