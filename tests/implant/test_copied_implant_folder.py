"""A copy of the project under another name, with core inside it, does everything, and needs nothing of the original."""

from functools import partial

import pytest

from copies import Copy
from files import read_csv, read_json
from launch import run

TINY = "--epochs 1 --batch_size 4 --num_workers 0 --log_with none --image_size 32"
RANDOM = "--model_size tiny --conv_stem --no-pretrained --embedding_dim 16"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy("implant", tmp_path_factory.mktemp("elsewhere") / "my_implants")


def test_a_copied_folder_does_everything(copy, tmp_path):
    """From another folder, with relative paths, as in the README."""

    do = partial(copy.do, tmp_path)
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
    done = run(copy.folder / script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_these_are_all_scripts(copy):
    assert copy.scripts == {"make_demo_data.py", "train_classifier.py", "train.py", "evaluate.py", "predict.py",
                            "tune.py", "analyze_tuning_results.py", "sagemaker_launcher.py",
                            "train_dual_embeddings_regression.py"}  # fmt: skip
