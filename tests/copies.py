"""Copies of a project under another name, with core inside, as the README says."""

import shutil
from pathlib import Path

from conftest import ROOT
from launch import Result, run

LAST = "    script(main)\n"
CHECK = """
    from pathlib import Path
    originals = [Path({root!r}) / name for name in ({project!r}, "core")]
    files = [Path(getattr(module, "__file__", None) or "/") for module in list(sys.modules.values())]
    strangers = [str(file) for file in files if any(file.is_relative_to(place) for place in originals)]
    print("of the original:", strangers, "core:", sys.modules["core"].__path__[0])
"""


class Copy:
    """`project` copied to `folder`; its scripts end with lines that name what they have loaded from the original."""

    def __init__(self, project: str, folder: Path):
        self.folder, self.scripts = folder, set()
        for name, place in ((project, folder), ("core", folder / "core")):
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if text.endswith(LAST):
                file.write_text(text + CHECK.format(root=str(ROOT), project=project), encoding="utf-8")
                self.scripts.add(file.name)

    def do(self, cwd: Path, script: str, *arguments) -> Result:
        """Runs a script from `cwd`, with arguments parted at spaces; it must end well, and load nothing of the
        original."""
        done = run(self.folder / script, *" ".join(map(str, arguments)).split(), cwd=cwd)
        assert done.returncode == 0, (script, done.stderr)
        assert done.stdout.splitlines()[-1] == f"of the original: [] core: {self.folder / 'core'}", script
        return done
