"""A project's folder, copied under another name, does everything from anywhere, and needs nothing of the original."""

import pytest

from copies import Copy
from files import read_csv, read_json
from small_trainings import COMMANDS

DETECTOR = "--train_manifest data/train_detector.npy --val_manifest data/val_detector.npy --epochs 1 --batch_size 2"
PREDICTED = {  # the table that predict.py leaves
    "cephalometric": "landmarks.csv",
    "ct_multilabel": "predictions.csv",
    "ear_teacher": "codes.csv",
    "hyperspectral": "features.csv",
    "implant": "predictions.csv",
}
# What else starts from a model -> a file that it leaves.
MORE = {
    "ear_teacher": {
        "eigenears/create_eigenears.py --checkpoint run --num_workers 0 --components 1 --steps 3 --samples 1":
            "run/eigenears/pc_1.png",
        "predict.py --checkpoint run --search data/test_teacher.npy --index predictions --output found --num_workers 0":
            "found/neighbours.png",
        f"train_detector.py --teacher run {DETECTOR} --windows 1 --image_size 32 --num_workers 0 --log_with none "
        "--save_dir detector": "detector/best/config.json",
    },
}  # fmt: skip


@pytest.mark.parametrize("core_inside", [True, False], ids=["core inside", "core beside"])
def test_every_script_starts_in_a_copy(project, tmp_path, core_inside):
    copy = Copy(project, tmp_path / "elsewhere" / "my_project", core_inside)
    assert {"make_demo_data.py", "train.py", "evaluate.py", "predict.py"} < set(copy.scripts)
    for script in copy.scripts:
        assert "usage: " in copy.do(tmp_path, f"{script} --help").stdout


def test_a_copy_does_everything(project, tmp_path):
    """From demo data to predictions, all paths relative to another folder."""
    copy, here = Copy(project, tmp_path / "elsewhere" / "my_project"), tmp_path / "here"
    here.mkdir()
    commands = COMMANDS[project]
    for line in commands.prepare:
        copy.do(here, line.format(data="data"))
    copy.do(here, commands.train.format(data="data", out="run") + " --epochs 1")
    copy.do(here, commands.evaluate.format(data="data", run="run", out="evaluation"))
    copy.do(here, commands.predict.format(data="data", run="run", out="predictions"))
    for line, file in MORE.get(project, {}).items():
        copy.do(here, line)
        assert (here / file).is_file(), line
    assert read_json(here / "run" / "best" / "config.json")["project"] == project
    assert str(here) not in (here / "evaluation" / "metrics.json").read_text(encoding="utf-8")  # paths as given
    assert read_csv(here / "evaluation" / "predictions.csv")
    assert read_csv(here / "predictions" / PREDICTED[project])
    made = {"data", "run", "evaluation", "predictions"} | {f.split("/")[0] for f in MORE.get(project, {}).values()}
    assert {path.name for path in here.iterdir()} == made
