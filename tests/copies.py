"""Copies of a project under another name, with core inside or beside it, as described in the README."""

import re
import shutil
from pathlib import Path

from conftest import ROOT
from launch import Result, run

LAST = re.compile(r"    script\(.+\)\n\Z")
CHECKED = """    try:
    {last}    finally:
        from pathlib import Path

        originals = [Path({root!r}) / name for name in ({project!r}, "core")]
        files = [Path(getattr(module, "__file__", None) or "/") for module in list(sys.modules.values())]
        strangers = [str(file) for file in files if any(file.is_relative_to(place) for place in originals)]
        print("of the original:", strangers, "core:", sys.modules["core"].__path__[0])
"""


class Copy:
    """`project` copied to `folder`; its scripts finally print the modules loaded from the original."""

    def __init__(self, project: str, folder: Path, core_inside: bool = True):
        self.folder, self.scripts = folder, []
        self.core = (folder if core_inside else folder.parent) / "core"
        shutil.copytree(ROOT / project, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in sorted(folder.rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if 'if __name__ == "__main__":' in text:
                last = LAST.search(text)
                check = CHECKED.format(last=last.group(), root=str(ROOT), project=project)
                file.write_text(text[: last.start()] + check, encoding="utf-8")
                self.scripts.append(file.relative_to(folder).as_posix())
        shutil.copytree(ROOT / "core", self.core, ignore=shutil.ignore_patterns("__pycache__"))

    def without_demo(self) -> None:
        """Deletes the code that draws demo data."""
        (self.folder / "make_demo_data.py").unlink()
        (demo,) = self.folder.glob("*/demo")
        shutil.rmtree(demo)

    def do(self, cwd: Path, line: str) -> Result:
        """Runs a script from `cwd` with arguments separated by spaces; it must succeed and load nothing from the
        original."""
        script, *arguments = line.split()
        done = run(self.folder / script, *arguments, cwd=cwd)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.splitlines()[-1] == f"of the original: [] core: {self.core}", line
        return done
