"""From a fresh clone to trained models and their reports. Needs Python 3.10 or newer, nothing else.

    python quickstart.py            demo data -> train -> evaluate -> predict in every project, and one page of results
    python quickstart.py PROJECT    the same in one: a folder with a project.json, such as cephalometric
    python quickstart.py test       the test suite; further words go to pytest
    python quickstart.py install    the environment only

Makes .venv and installs requirements.txt there, once; later calls install nothing unless requirements.txt changed.
"""

# Standard library only, and syntax that old Pythons parse, so that they can be told what is wrong.
from __future__ import print_function

import collections
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
STAMP = os.path.join(VENV, "installed.txt")
OUTPUT = "runs/quickstart"
OLDEST = (3, 10)
LANES = 2  # projects at a time: networks as small as these do not keep two cores busy
MARGIN = "%-13s | "  # before a project's lines, where there are other lanes


def find_projects():
    """Name -> what its project.json says, of every folder that has one; the longest demos first, so that the lanes end
    together."""
    found = {}
    for name in os.listdir(ROOT):
        file = os.path.join(ROOT, name, "project.json")
        if os.path.isfile(file):
            try:
                with io.open(file, encoding="utf-8") as text:
                    found[name] = json.load(text)
            except ValueError as error:
                stop("%s/project.json is not JSON: %s" % (name, error))
    return collections.OrderedDict(sorted(found.items(), key=lambda item: (-item[1]["minutes"], item[0])))


def main(arguments):
    if sys.version_info < OLDEST:
        stop("Python %d.%d or newer is needed; this is %s" % (OLDEST + (sys.version.split()[0],)))
    command, projects = arguments[0] if arguments else "all", find_projects()
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in ["all", "test", "install"] + list(projects) or (len(arguments) > 1 and command != "test"):
        stop("usage: python quickstart.py [test | install | %s]" % " | ".join(sorted(projects)))
    install()
    if command == "install":
        return 0
    if command == "test":
        return run(["-m", "pytest", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile"] + arguments[1:])
    return demonstrate(projects, list(projects) if command == "all" else [command])


def install():
    """Makes .venv and installs requirements.txt, unless that is done."""
    with open(REQUIREMENTS, "rb") as file:
        wanted = "%s %s" % (sys.version.split()[0], hashlib.sha256(file.read()).hexdigest())
    if os.path.exists(STAMP):
        with open(STAMP) as file:
            if file.read() == wanted:
                return
    print("installing into %s (about 6 GB on Linux, a few minutes, once)" % VENV)
    try:
        import ensurepip  # noqa: F401  (Debian packs it apart from venv)
        import venv
    except ImportError:
        stop("this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv) and run again")
    venv.create(VENV, with_pip=True, clear=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
    if subprocess.call(pip) != 0:
        stop("pip could not install requirements.txt (see above): check the internet connection or proxy and run again")
    with open(STAMP, "w") as file:
        file.write(wanted)


def demonstrate(projects, names):
    """Runs the demos of the named projects, then writes the page over all that have results, and prints its path."""
    start, lanes = time.time(), min(LANES, len(names), os.cpu_count() or 1)
    waiting, failed = collections.deque(names), []
    threads = [threading.Thread(target=work, args=(projects, waiting, failed, lanes)) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        stop("%s: this step failed; what it said stands above" % failed[0])
    index = OUTPUT + "/index.html"
    overview = ["-m", "core.report", index, "--title", "Quickstart", "--note"]
    overview += ["All data are drawn and show no patient: the numbers say that the parts work together, no more."]
    for name, project in sorted(projects.items()):
        files = ["%s/%s/%s" % (OUTPUT, name, file) for file in [project["picture"]] + project["reports"]]
        if all(os.path.exists(os.path.join(ROOT, file)) for file in files):
            overview += ["--project", project["title"], files[0], project["caption"]] + files[1:]
    if run(overview) != 0:
        stop("the page of results could not be written")
    print("\nDone in %d min %02d s. Open:\n   %s" % (divmod(time.time() - start, 60) + (os.path.join(ROOT, index),)))
    return 0


def work(projects, waiting, failed, lanes):
    """Takes names from `waiting` and runs their demos, until there is none or a step has failed."""
    while waiting and not failed:
        name = waiting.popleft()
        steps = projects[name]["demo"]
        for number, step in enumerate(steps, 1):
            script = words(step["run"], out="%s/%s" % (OUTPUT, name))
            script[0] = "%s/%s" % (name, script[0])
            title = "%s %d/%d: %s" % (name, number, len(steps), step["step"])
            say("\n== %s\n   python %s" % (title, " ".join(script)))
            if run(script, lanes, name) != 0:
                failed.append(title)
            if failed:
                return


def words(command, **folders):
    """A command of a project.json, one text or several that are joined, as words; {out} and the like are filled in."""
    command = command if isinstance(command, type("")) else " ".join(command)
    return command.format(**folders).split()


def run(arguments, lanes=1, project=""):
    """Runs Python of the environment from the repository's root; returns its exit code. Where there are other lanes,
    the project's name stands before its lines."""
    environment = dict(os.environ)
    if project:  # alone, too, it gets a lane's share of the cores: more threads would add in another order
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // LANES)))
    if lanes == 1:
        return subprocess.call([PYTHON] + arguments, cwd=ROOT, env=environment)
    environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    environment["COLUMNS"] = str(max(60, shutil.get_terminal_size((120, 24)).columns - len(MARGIN % "")))  # of tables
    process = subprocess.Popen(
        [PYTHON] + arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    for line in process.stdout:
        say(MARGIN % project + line.decode("utf-8", "replace").rstrip())
    return process.wait()


def say(text):
    """Prints in one piece, whatever other threads print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stop(message):
    sys.stdout.flush()
    sys.stderr.write("error: %s\n" % message)
    sys.exit(2)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
