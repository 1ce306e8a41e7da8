"""Small trainings of cephalometric/ for its tests."""

from launch import run

TRAIN = "cephalometric/train.py"
SMALL = ["--backbone", "hrnet_w18_small", "--no-pretrained", "--image_size", "64", "64", "--heatmap_size", "32"]
SMALL += ["--sigma", "1.5", "--batch_size", "4", "--lr", "2e-3", "--warmup_epochs", "1", "--num_workers", "1"]
SMALL += ["--epochs", "3", "--log_with", "none", "--expansion", "none"]


def train(tree, folder, *arguments):
    """Trains on a tree, in a process of its own."""
    data = ("--dataset_path", tree, "--save_dir", folder, "--cache_dir", tree.parent / "cache")
    return run(TRAIN, *data, *SMALL, *arguments)
