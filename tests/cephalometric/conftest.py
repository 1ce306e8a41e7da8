import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ceph.anatomy import SCHEMA, TITLES
from ceph_training import train
from launch import run


@pytest.fixture(scope="session")
def demo_tree(tmp_path_factory) -> Path:
    """A drawn Aariz tree of 20 cases: 14 to train, 3 valid, 3 test. Synthetic. Not to be written to."""
    folder = tmp_path_factory.mktemp("demo") / "Aariz"
    done = run("cephalometric/make_demo_data.py", "--output", folder, "--cases", 20, "--seed", 1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def trained(demo_tree, tmp_path_factory) -> Path:
    """A run of three epochs, not interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    done = train(demo_tree, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Tree:
    """A tiny Aariz tree that tests write case by case, and spoil."""

    def __init__(self, root: Path):
        self.root = root
        self.rows: list[list] = []
        self.rng = np.random.default_rng(0)

    def landmark_file(self, split: str, identity: str, reader: str) -> Path:
        return self.root / split / f"Annotations/Cephalometric Landmarks/{reader} Orthodontists/{identity}.json"

    def image_file(self, split: str, identity: str, suffix: str = "png") -> Path:
        return self.root / split / f"Cephalograms/{identity}.{suffix}"

    def add(self, split: str, identity: str, points=None, stage: int = 3, pixel_size="0.1", size=(120, 160)) -> None:
        """A picture of (width, height) noise; points (K, 2), the senior's 1 px right of the junior's."""
        if points is None:
            points = self.rng.uniform(20, 100, (len(SCHEMA.names), 2))
        image = self.image_file(split, identity)
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.rng.integers(0, 255, size[::-1], dtype=np.uint8)).save(image)
        for shift, reader in enumerate(("Junior", "Senior")):
            file = self.landmark_file(split, identity, reader)
            file.parent.mkdir(parents=True, exist_ok=True)
            landmarks = [
                {"landmark_id": "x", "title": title, "symbol": symbol, "value": {"x": x + shift, "y": y}}
                for (symbol, title), (x, y) in zip(TITLES.items(), np.asarray(points).tolist(), strict=True)
            ]
            file.write_text(json.dumps({"ceph_id": identity, "landmarks": landmarks}))
        stages = self.root / split / "Annotations/CVM Stages"
        stages.mkdir(parents=True, exist_ok=True)
        (stages / f"{identity}.json").write_text(json.dumps({"cvm_stage": {"value": stage}}))
        self.rows.append([identity, "machine A", pixel_size, "png", "L"])
        self.write_machines()

    def write_machines(self) -> None:
        with open(self.root / "cephalogram_machine_mappings.csv", "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cephalogram_id", "machine", "pixel_size", "image_format", "mode"])
            writer.writerows(self.rows)

    def edit(self, split: str, identity: str, reader: str, symbol: str, **value) -> None:
        """Changes a landmark's value; without one the landmark goes."""
        file = self.landmark_file(split, identity, reader)
        content = json.loads(file.read_text())
        for entry in list(content["landmarks"]):
            if entry["symbol"] == symbol:
                entry["value"] |= value
                if not value:
                    content["landmarks"].remove(entry)
        file.write_text(json.dumps(content))


@pytest.fixture
def tree(tmp_path) -> Tree:
    """Three training cases, two valid, two test, all in order."""
    made = Tree(tmp_path / "Aariz")
    for split, names in {"train": "abc", "valid": "de", "test": "fg"}.items():
        for name in names:
            made.add(split, name)
    return made
