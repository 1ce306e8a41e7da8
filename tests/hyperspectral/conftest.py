from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from conftest import load_script
from launch import run

# Flags of a training run that takes seconds: 6 × 4 × 4 tokens of 10×10 px × 5 bands.
TINY = "--img_size 40 --patch_size 10 5 --embed_dim 32 --encoder_depth 2 --encoder_num_heads 2"
TINY += " --decoder_embed_dim 32 --decoder_depth 1 --decoder_num_heads 2"
TINY += " --batch_size 4 --lr 2e-3 --warmup_epochs 1 --num_workers 0 --log_with none --nb_to_plot 2 --dpi 50"


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The CSV of 24 drawn cubes of 40×40 px, 15 of them train, 3 valid, 6 test, with statistics beside it. Synthetic.
    Not to be written to."""
    folder = tmp_path_factory.mktemp("demo") / "retina"
    arguments = ["--output", str(folder), "--cases", "24", "--size", "40", "--workers", "1"]
    load_script("hyperspectral/make_demo_data.py").main(arguments)
    table = folder / "dataset.csv"
    load_script("hyperspectral/cubes.py").main(["stats", "--csv_file", str(table), "--workers", "1"])
    return table


@pytest.fixture(scope="session")
def launch(demo):
    """Trains a tiny model in a process of its own, as a user would: `launch(folder, *more_flags)`."""

    def launch_tiny(folder, *arguments):
        return run("hyperspectral/train.py", "--csv_file", demo, "--save_dir", folder, *TINY.split(), *arguments)

    return launch_tiny


@pytest.fixture(scope="session")
def train(demo):
    """Trains a tiny model in this process, without pictures, which take longer than all else: `train(folder, …)`."""
    script = load_script("hyperspectral/train.py")

    def train_tiny(folder, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "write_figures", lambda *_: [])
            patch.setattr("core.figures.save", lambda *_: None)
            try:
                flags = ["--csv_file", demo, "--save_dir", folder, *TINY.split(), *arguments]
                script.main([str(flag) for flag in flags])
            finally:  # a test may train twice
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()

    return train_tiny


@pytest.fixture(scope="session")
def trained(launch, tmp_path_factory) -> Path:
    """A run of three epochs, validated after the second and the third. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = launch(folder, "--epochs", 3, "--valid_interval", 2)
    assert done.returncode == 0, done.stderr
    return folder
