"""A copy of the project under another name, with core inside it, does everything, and needs nothing of the original."""

import shutil

import pytest

from conftest import ROOT
from files import read_json
from launch import run

TINY = "--epochs 1 --batch_size 4 --num_workers 0 --log_with none"
TEACHER = "--sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 8 --perceptual_weight 0 --nb_to_plot 2"
LAST = "    script(main)\n"
CHECK = f"""
    from pathlib import Path
    originals = [Path({str(ROOT)!r}) / name for name in ("ear_teacher", "core")]
    files = [Path(getattr(module, "__file__", None) or "/") for module in list(sys.modules.values())]
    strangers = [str(file) for file in files if any(file.is_relative_to(place) for place in originals)]
    print("of the original:", strangers, "core:", sys.modules["core"].__path__[0])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The copied folder; its scripts end with a line that names what they have loaded from the original."""
    project = tmp_path_factory.mktemp("elsewhere") / "my_ears"
    shutil.copytree(ROOT / "ear_teacher", project, ignore=shutil.ignore_patterns("__pycache__"))
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

    do("make_demo_data.py", "--output data --images 12 --size 96")
    manifests = "--train_manifest data/train_{0}.npy --val_manifest data/val_{0}.npy"
    do("train.py", manifests.format("teacher"), TEACHER, TINY, "--save_dir run")
    do(
        "evaluate.py",
        "--checkpoint run/best --manifest data/test_teacher.npy --num_workers 0 --bootstrap 20 --nb_to_plot 1",
    )
    metrics = read_json(tmp_path / "run" / "evaluation" / "metrics.json")
    assert metrics["data"]["train_manifest"] == "data/train_teacher.npy"
    assert (metrics["data"]["ears"], metrics["data"]["subjects"], metrics["data"]["pca_ears"]) == (2, 1, 8)
    do("eigenears/create_eigenears.py", "--checkpoint run/best --num_workers 0 --components 1 --steps 3 --samples 1")
    assert (tmp_path / "run" / "eigenears" / "pc_1.png").is_file()
    do("predict.py", "--checkpoint run/best --input data/val_teacher.npy --num_workers 0 --reconstruct")
    assert len(list((tmp_path / "codes" / "reconstructions").iterdir())) == 2
    do("predict.py", "--checkpoint run/best --search data/test_teacher.npy --index codes --num_workers 0")
    assert (tmp_path / "found" / "neighbours.png").is_file()
    do("train_detector.py", "--teacher run/best", manifests.format("detector"), TINY,
       "--batch_size 2 --windows 1 --image_size 32 --save_dir detector")  # fmt: skip
    assert read_json(tmp_path / "detector" / "best" / "config.json")["kind"] == "detector"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run", "codes", "found", "detector"}


@pytest.mark.parametrize("script", ["test_sam_model.py", "evaluate_detector.py"])
def test_the_other_scripts_start_in_a_copy(copy, tmp_path, script):
    done = run(copy / script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_these_are_all_scripts(copy):
    scripts = {file.name for file in copy.rglob("*.py") if file.read_text(encoding="utf-8").endswith(CHECK)}
    assert scripts == {"make_demo_data.py", "train.py", "evaluate.py", "create_eigenears.py", "predict.py",
                       "train_detector.py", "test_sam_model.py", "evaluate_detector.py"}  # fmt: skip
