"""A copy of the project under another name, with core inside it, does everything, and needs nothing of the original."""

from functools import partial

import pytest

from copies import Copy
from files import read_json
from launch import run

TINY = "--epochs 1 --batch_size 4 --num_workers 0 --log_with none"
TEACHER = "--sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 8 --perceptual_weight 0 --nb_to_plot 2"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy("ear_teacher", tmp_path_factory.mktemp("elsewhere") / "my_ears")


def test_a_copied_folder_does_everything(copy, tmp_path):
    """From another folder, with relative paths, as in the README."""

    do = partial(copy.do, tmp_path)
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
    done = run(copy.folder / script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_these_are_all_scripts(copy):
    assert copy.scripts == {"make_demo_data.py", "train.py", "evaluate.py", "create_eigenears.py", "predict.py",
                            "train_detector.py", "test_sam_model.py", "evaluate_detector.py"}  # fmt: skip
