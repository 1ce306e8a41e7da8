from pathlib import Path

import pytest

from launch import run

# Flags of a training run that takes seconds. The tuning patients follow from their names and the fraction.
SMALL = ["--model", "test_resnet", "--no-pretrained", "--tune_fraction", "0.25", "--slices_per_volume", "4"]
SMALL += ["--batch_size", "16", "--lr", "2e-3", "--num_workers", "1", "--log_with", "none", "--epochs", "3"]
# A resumed run must also come back in the middle of unfreezing, and draw the same boxes for CutMix.
STAGED = ["--use-advanced-aug", "--progressive-unfreeze", "--unfreeze-epoch", "1", "--unfreeze-every", "1"]


@pytest.fixture(scope="session")
def demo_tree(tmp_path_factory) -> Path:
    """A drawn CT-RATE tree of 20 patients: 15 train, 5 valid. Synthetic. Not to be written to."""
    folder = tmp_path_factory.mktemp("demo") / "CT-RATE"
    done = run("ct_multilabel/make_demo_data.py", "--output", folder, "--patients", 20, "--seed", 1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def store(demo_tree) -> Path:
    """Its slices: 8 a volume of 48×48 px. Not to be written to."""
    folder = demo_tree.parent / "slices"
    done = run(
        "ct_multilabel/extract_slices.py", "--dataset_path", demo_tree, "--output", folder, "--size", 48, "--slices", 8
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def train(store):
    """Trains a small model on the demo store: `train(folder, *more_flags, **options of run)`."""

    def train_small(folder, *arguments, **options):
        return run(
            "ct_multilabel/train.py", "--slices_path", store, "--save_dir", folder, *SMALL, *arguments, **options
        )

    return train_small


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory) -> Path:
    """A run of three epochs with CutMix and unfreezing, not interrupted. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "staged"
    done = train(folder, *STAGED)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def trained_by_two(train, tmp_path_factory) -> Path:
    """A run of two epochs by two processes: gated attention over bags, unfreezing after the first epoch."""
    folder = tmp_path_factory.mktemp("trained") / "gated"
    staged = ("--progressive-unfreeze", "--unfreeze-epoch", 1, "--aggregate", "attention")
    done = train(folder, *staged, "--epochs", 2, "--batch_size", 8, processes=2)
    assert done.returncode == 0, done.stderr
    return folder
