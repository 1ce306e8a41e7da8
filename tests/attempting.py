"""Runs a script (first argument) with each of several argument lists (JSON, second argument) in separate processes, and
writes exit code, output and peak memory of each to the third argument.

The script is loaded once as a module; each run is a fork that executes it as `__main__`. Runs longer than the fourth
argument, in seconds, are killed.
"""

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

script, lines, results, seconds = sys.argv[1:]
sys.path[:0] = [str(Path(script).parent)]


def attempt(arguments: list[str]) -> dict:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        if not (child := os.fork()):
            os.setsid()  # loader workers are killed with it
            for descriptor, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), descriptor)
            code = 0
            try:
                sys.argv = [script, *arguments]
                runpy.run_path(script, run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        ended, status, usage = os.wait4(child, os.WNOHANG)
        while not ended:
            if time.monotonic() - started > float(seconds):
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
            ended, status, usage = os.wait4(child, os.WNOHANG)
        out.seek(0), err.seek(0)
        said = {"stdout": out.read(), "stderr": err.read(), "cpu": usage.ru_utime + usage.ru_stime}
        return {"returncode": os.waitstatus_to_exitcode(status), "mib": usage.ru_maxrss / 1024, **said}


runpy.run_path(script, run_name="loaded")
attempts = json.loads(Path(lines).read_text())
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
Path(results).write_text(json.dumps([attempt(arguments) for arguments in attempts]))
print(f"{len(attempts)} attempts from {base:.0f} MiB")
