import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from conftest import PROJECTS
from core.args import ArgumentParser, add_training_arguments, script
from core.errors import UserError, first_line


def parser():
    built = ArgumentParser()
    built.add_argument("--batch_size", type=int, default=6)
    built.add_argument("--sam-image-size", type=int)
    built.add_argument("--freeze_backbone", action=argparse.BooleanOptionalAction, default=True)
    built.add_argument("--name", default="")
    return built


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
@pytest.mark.parametrize("joined", [False, True])
def test_both_spellings_are_one_flag(flag, joined):
    assert parser().parse_args([f"{flag}=3"] if joined else [flag, "3"]).batch_size == 3


@pytest.mark.parametrize("flag", ["--sam-image-size", "--sam_image_size", "--sam-image_size"])
def test_hyphens_in_the_definition_work_too(flag):
    assert parser().parse_args([flag, "448"]).sam_image_size == 448


@pytest.mark.parametrize("flag", ["--no-freeze-backbone", "--no_freeze_backbone", "--no-freeze_backbone"])
def test_negated_switches_in_any_spelling(flag):
    assert parser().parse_args([flag]).freeze_backbone is False


def test_values_keep_their_hyphens():
    assert parser().parse_args(["--name", "a-b_c"]).name == "a-b_c"
    assert parser().parse_args(["--name=--odd-value_x"]).name == "--odd-value_x"


@pytest.mark.parametrize("arguments", [["--batch"], ["--batch", "3"], ["--batchsize", "3"], ["--batch_size", "many"]])
def test_abbreviations_and_nonsense_end_with_code_2(arguments):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(arguments)
    assert stop.value.code == 2


def test_mixed_precision_without_a_value_is_fp16():
    built = ArgumentParser()
    add_training_arguments(built, epochs=1, batch_size=1, lr=1.0)
    assert built.parse_args([]).mixed_precision is None
    assert built.parse_args(["--mixed_precision"]).mixed_precision == "fp16"
    assert built.parse_args(["--mixed-precision", "bf16"]).mixed_precision == "bf16"
    assert built.parse_args(["--resume"]).resume == "latest"
    assert built.parse_args(["--resume", "runs/x"]).resume == "runs/x"


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    def main():
        raise UserError("x.png: no such file; give another")

    with pytest.raises(SystemExit) as stop:
        script(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: x.png: no such file; give another\n"


def test_a_place_that_cannot_be_written_is_one_line_and_a_bug_is_not(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        script(lambda: (tmp_path / "file" / "below").mkdir())
    assert stop.value.code == 2
    assert "Not a directory" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        script(lambda: (tmp_path / "missing").read_text())


def test_core_imports_no_project():
    """Importing all of core with only the root on the path must work, and load nothing of a project."""
    root = Path(__file__).resolve().parents[2]
    modules = [".".join(f.relative_to(root).with_suffix("").parts) for f in sorted(root.glob("core/**/*.py"))]
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n" + "\n".join(f"import {m}" for m in modules)
    theirs = {name for folder in PROJECTS for name in (folder.name, *(file.stem for file in folder.glob("*.py")))}
    theirs |= {file.parent.name for folder in PROJECTS for file in folder.glob("*/__init__.py")}
    code += f"\nprint(sorted({theirs} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_an_error_in_a_loader_worker_is_told_by_its_last_line():
    class Broken(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise UserError("a.h5: damaged")

    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert first_line(caught.value) == "a.h5: damaged"


def test_a_misspelt_flag_is_one_line_with_the_nearest_one(capsys):
    parser = ArgumentParser()
    add_training_arguments(parser, epochs=1, batch_size=1, lr=1e-3)
    for word, told in (
        ("--learn_rate", "unknown flag --learn_rate; did you mean --learning_rate?"),
        ("--batchsize=3", "unknown flag --batchsize=3; did you mean --batch_size?"),
        ("--zzz", "unknown flag --zzz"),
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([word])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {told} (--help lists the flags)\n"


def test_a_default_of_0_is_shown_and_one_that_says_nothing_is_not(capsys):
    parser = ArgumentParser()
    parser.add_argument("--patience", type=int, default=0, help="epochs")
    parser.add_argument("--output", help="folder")
    parser.add_argument("--compare", nargs="+", default=[], help="runs")
    parser.add_argument("--overwrite", action="store_true", help="replace")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "epochs (default: 0)" in shown
    assert shown.count("default") == 1


def test_a_misspelt_flag_is_named_before_a_required_one_is_missed(capsys):
    parser = ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--checkpiont", "x"])
    assert "did you mean --checkpoint?" in capsys.readouterr().err
