"""A copy of the project under another name, with core inside it, does everything, and needs nothing of the original."""

import shutil

import pytest

from conftest import ROOT
from files import read_csv, read_json
from launch import run

TINY = "--epochs 1 --batch_size 4 --num_workers 0 --log_with none --image_size 32"
RANDOM = "--model_size tiny --conv_stem --no-pretrained --embedding_dim 16"
LAST = "    script(main)\n"
CHECK = f"""
    from pathlib import Path
    originals = [Path({str(ROOT)!r}) / name for name in ("implant", "core")]
    files = [Path(getattr(module, "__file__", None) or "/") for module in list(sys.modules.values())]
    strangers = [str(file) for file in files if any(file.is_relative_to(place) for place in originals)]
    print("of the original:", strangers, "core:", sys.modules["core"].__path__[0])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The copied folder; its scripts end with a line that names what they have loaded from the original."""
    project = tmp_path_factory.mktemp("elsewhere") / "my_implants"
    shutil.copytree(ROOT / "implant", project, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "core", project / "core", ignore=shutil.ignore_patterns("__pycache__"))
    for file in project.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if text.endswith(LAST):
            file.write_text(text + CHECK, encoding="utf-8")
    return project


def test_a_copied_folder_does_everything(copy, tmp_path):
    """From another folder, with relative paths, as in the README."""

    def do(script, *arguments):
        done = run(copy / script, *" ".join(map(str, arguments)).split(), cwd=tmp_path)
        assert done.returncode == 0, (script, done.stderr)
        assert done.stdout.splitlines()[-1] == f"of the original: [] core: {copy / 'core'}", script

    do("make_demo_data.py", "--output data --patients 10 --size 96")
    records = "--train_json data/train.json --val_json data/val.json"
    for target in ("company", "model"):
        do("train_classifier.py", "--target", target, records, RANDOM, TINY)
    checkpoints = "--company_checkpoint runs/implant_company/best --model_checkpoint runs/implant_model/best"
    do("train.py", records, checkpoints, TINY, "--no-pretrained --embedding_dim 16 --model_size tiny")
    evaluate = "--checkpoints runs/implant/best --test_json data/test.json --num_workers 0 --bootstrap 10"
    do("evaluate.py", evaluate)
    assert read_json(tmp_path / "runs" / "implant" / "evaluation_test" / "metrics.json")["data"]["cases"] > 0
    do("predict.py", "--checkpoints runs/implant --input data/images --output predictions")
    assert len(read_csv(tmp_path / "predictions" / "predictions.csv")) == len(
        list((tmp_path / "data/images").iterdir())
    )
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs", "predictions"}


@pytest.mark.parametrize(
    "script",
    ["tune.py", "analyze_tuning_results.py", "sagemaker_launcher.py", "train_dual_embeddings_regression.py"],
)
def test_the_other_scripts_start_in_a_copy(copy, tmp_path, script):
    done = run(copy / script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_these_are_all_scripts(copy):
    scripts = {file.name for file in copy.rglob("*.py") if file.read_text(encoding="utf-8").endswith(CHECK)}
    assert scripts == {"make_demo_data.py", "train_classifier.py", "train.py", "evaluate.py", "predict.py", "tune.py",
                       "analyze_tuning_results.py", "sagemaker_launcher.py",
                       "train_dual_embeddings_regression.py"}  # fmt: skip
