"""benchmarks/: output of run.py, and form of each benchmark. Nothing is timed."""

import ast
import importlib
import json
import sys

import pytest

from conftest import PROJECTS, ROOT, load_script

SCRIPTS = sorted(file for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in ("run", "results", "device"))
PACKAGES = {"core", *(file.parent.name for project in PROJECTS for file in project.glob("*/__init__.py"))}
RESULT = {"name": "one way [a]", "ratio": 4.5, "target": ">= 4", "unit": "times faster", "details": {}, "met": True}
UNMEASURED = RESULT | {"name": "gpu", "ratio": None, "target": "", "met": None}
GOOD = f"import json\nprint(json.dumps({[RESULT, UNMEASURED]}))\n"
MISSED = f"import json\nprint(json.dumps({[RESULT | {'ratio': 3.5, 'met': False}]}))\n"
FAILING = "import sys\nprint('half a result')\nsys.exit('no such device')\n"


@pytest.fixture
def run_benchmarks(tmp_path, capsys, monkeypatch):
    """Runs run.py on stand-ins {name: code}; returns exit code, output, and JSON."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(stand_ins, *arguments):
        folder, output = tmp_path / "benchmarks", tmp_path / "deep" / "all.json"
        folder.mkdir()
        for name, code in stand_ins.items():
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            load_script("benchmarks/run.py").main(["--output", str(output), *arguments], folder)
        return ended.value.code, capsys.readouterr().out, json.loads(output.read_text(encoding="utf-8"))

    return run


def rows(printed):
    """Lines without alignment."""
    return [" ".join(line.split()) for line in printed.splitlines()]


def test_good_benchmarks_are_listed_with_ratio_target_and_machine(run_benchmarks):
    code, printed, content = run_benchmarks({"good": GOOD})
    assert code == 0
    assert "good one way [a] 4.5 times faster >= 4 yes" in rows(printed)
    assert "good gpu not measured –" in rows(printed)
    machine = content["machine"]
    assert f"python {machine['python']}" in printed
    assert machine["cores"] >= 1
    assert machine["memory_gib"] >= 1
    assert machine["python"] == sys.version.split()[0]
    (benchmark,) = content["benchmarks"]
    assert benchmark["benchmark"] == "good"
    assert benchmark["failed"] is None
    assert benchmark["results"] == [RESULT, UNMEASURED]


def test_missed_target_is_shown_and_ends_with_1(run_benchmarks):
    code, printed, content = run_benchmarks({"good": GOOD, "missed": MISSED})
    assert code == 1
    assert "good one way [a] 4.5 times faster >= 4 yes" in rows(printed)
    assert "missed one way [a] 3.5 times faster >= 4 MISSED" in rows(printed)
    assert content["benchmarks"][1]["results"][0]["met"] is False


def test_failing_benchmark_is_listed_with_its_last_line_and_the_others_go_on(run_benchmarks):
    code, printed, content = run_benchmarks({"a_failing": FAILING, "good": GOOD, "no_result": "print('nothing')\n"})
    assert code == 1
    assert "a_failing no such device failed" in rows(printed)
    assert "good one way [a] 4.5 times faster >= 4 yes" in rows(printed)
    assert [found["failed"] for found in content["benchmarks"]] == ["no such device", None, "nothing"]
    assert content["benchmarks"][0]["results"] == []


def test_only_chooses_and_refuses_what_is_not_there(run_benchmarks, tmp_path):
    code, printed, content = run_benchmarks({"good": GOOD, "failing": FAILING}, "--only", "good")
    assert code == 0
    assert "failing" not in printed
    assert [found["benchmark"] for found in content["benchmarks"]] == ["good"]
    run = load_script("benchmarks/run.py")
    with pytest.raises(run.UserError, match="--only fast: no such benchmark; there are failing, good"):
        run.main(["--only", "fast"], tmp_path / "benchmarks")


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [
        (4, ">= 4", True),
        (3.99, ">= 4", False),
        (0.5, "<= 0.5", True),
        (0.51, "<= 0.5", False),
        (-1, "<= 2", True),
        (None, ">= 4", None),
        (4, "", None),
    ],
)
def test_met(ratio, target, met):
    assert load_script("benchmarks/results.py").Result("a", ratio, target, "").met is met


def test_results_are_shown_as_run_reads_them(capsys):
    results = load_script("benchmarks/results.py")
    results.show([results.Result("one way [a]", 4.5, ">= 4", "times faster"), results.Result("µ", None, "", "s")])
    shown = json.loads(capsys.readouterr().out)
    assert shown == [RESULT, {"name": "µ", "ratio": None, "target": "", "unit": "s", "details": {}, "met": None}]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_imports_what_is_there(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_has_the_form(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    assert f"    python benchmarks/{script.name}" in docstring
    assert "arget" in docstring, "the docstring says what should be reached"
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert ast.unparse(functions["measure"].returns) == "list[Result]"
    arguments = functions["measure"].args
    assert len(arguments.defaults) == len(arguments.args), "run without arguments"
    *_, last = tree.body
    assert ast.unparse(last).startswith("if __name__ == '__main__':")
