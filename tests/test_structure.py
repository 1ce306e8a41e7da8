"""Layout: scripts on top, one package below, imports without circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from conftest import PROJECTS, ROOT

HEAVY = {"timm", "transformers", "albumentations", "matplotlib", "torchmetrics", "torchvision", "scipy"}


def package_of(project):
    (folder,) = [file.parent for file in project.glob("*/__init__.py") if file.parent.name != "core"]
    return folder


def modules(folder):
    """Dotted name -> file of the modules of a package."""
    names = {}
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(file, everywhere=True):
    """Dotted names that a file imports; with `everywhere` also in functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("project", PROJECTS, ids=lambda folder: folder.name)
def test_scripts_on_top_and_one_package_below(project):
    scripts = {file.stem for file in project.glob("*.py")}
    assert {"train", "evaluate", "predict", "make_demo_data"} <= scripts
    assert len(scripts) <= 10
    package = package_of(project)
    for file in package.rglob("__init__.py"):
        (statement,) = ast.parse(file.read_text(encoding="utf-8")).body
        assert isinstance(statement.value, ast.Constant), "a docstring only"
    own, top = modules(package), set()
    for file in own.values():
        top |= {name.partition(".")[0] for name in imports(file)}
    assert not scripts & top, "a package imports no script"
    others = {name for other in PROJECTS for name in (other.name, package_of(other).name)} - {package.name}
    for file in (*own.values(), *project.rglob("*.py")):
        assert not {name.partition(".")[0] for name in imports(file)} & others, f"{file} imports another project"
    for file in project.rglob("*.py"):
        if package / "demo" not in file.parents and file.name != "make_demo_data.py":
            assert not [name for name in imports(file) if name.startswith(f"{package.name}.demo")], file


@pytest.mark.parametrize("folder", [ROOT / "core", *map(package_of, PROJECTS)], ids=lambda folder: folder.name)
def test_no_circle(folder):
    names = modules(folder)
    graph = {name: {other for other in imports(file) if other in names} - {name} for name, file in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def loaded(code, *arguments):
    """Top-level modules loaded in a fresh interpreter after `code`."""
    code += "\nimport sys; print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("project", PROJECTS, ids=lambda folder: folder.name)
def test_help_loads_only_what_it_needs(project):
    code = "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
    code += "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n    pass"
    assert not loaded(code, str(project / "train.py")) & HEAVY


def test_workers_start_without_torch():
    """Modules imported by processes that read files."""
    code = f"import sys\nsys.path[:0] = {[str(ROOT), *map(str, PROJECTS)]}\n"
    readers = (
        "core.files, core.processes, core.images, core.windows, core.tables, hsi.files, hsi.statistics, hsi.repack"
    )
    assert "torch" not in loaded(f"{code}import {readers}, ct.volumes, ct.lungs")
