"""Small trainings of cephalometric/ for its tests, and the cases of their trees."""

from ceph.anatomy import ANATOMY
from ceph.cases import read_cases
from ceph.dataset import FrameCache
from core.validation import DataReport, leave_out_unreadable
from launch import run

TRAIN = "cephalometric/train.py"
SMALL = ["--backbone", "hrnet_w18_small", "--no-pretrained", "--image_size", "64", "64", "--heatmap_size", "32"]
SMALL += ["--sigma", "1.5", "--batch_size", "4", "--lr", "2e-3", "--warmup_epochs", "1", "--num_workers", "1"]
SMALL += ["--epochs", "3", "--log_with", "none", "--expansion", "none"]


def train(tree, folder, *arguments):
    """Trains on a tree in a separate process."""
    data = ("--dataset_path", tree, "--save_dir", folder, "--cache_dir", tree.parent / "cache")
    return run(TRAIN, *data, *SMALL, *arguments)


def read_tree(root, dataset_format="auto", ground_truth="mean", splits=("train", "valid", "test"), anatomy=ANATOMY):
    """(cases by split, report) of a tree."""
    report = DataReport()
    return read_cases(root, report, anatomy, dataset_format, ground_truth, splits), report


def decoded(cases, report, folder):
    """Cases with readable pictures."""
    return leave_out_unreadable(cases, report, decode=FrameCache(folder, (64, 64)).prepare)
