"""Small implants for the tests of this folder. Synthetic."""

import json

import numpy as np
import pytest
from PIL import Image

COMPANIES, MODELS = ("Alpha", "Beta", "Gamma"), ("Straight", "Tapered")


def write_records(folder, split, count, seed=0, patients=2):
    """`count` drawn rectangles with their records in SPLIT.json; `patients` pictures each. Returns the JSON's path."""
    rng = np.random.default_rng((seed, len(split)))
    rows = []
    for number in range(count):
        length, diameter = rng.choice([8.0, 10.0, 12.0]), rng.choice([3.5, 4.5])
        spacing, company, model = rng.uniform(0.1, 0.15), COMPANIES[number % 3], MODELS[number % 2]
        height, width = round(length / spacing), round(diameter / spacing)
        pixels = rng.integers(20, 60, (height + 30, width + 40)).astype(np.uint8)
        pixels[15 : 15 + height, 20 : 20 + width] = 140 + 40 * (number % 3)
        pixels[15 : 15 + height : 8 + 4 * (number % 2), 20 : 20 + width] = 90
        name = f"{split}_{number}.png"
        Image.fromarray(pixels).save(folder / name)
        box = [18.5, 13.5, 21.5 + width, 16.5 + height]
        rows.append(
            {"image": name, "company": company, "model": model, "length": length, "diameter": diameter, "bbox": box,
             "patient_id": f"{split}{number // patients}", "thread_type": "vr"[number % 2], "modality": "periapical"}
            | ({"pixel_spacing": spacing} if number % 4 else {})
        )  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder / f"{split}.json"


@pytest.fixture(scope="session")
def implants(tmp_path_factory):
    """A folder with train.json (24 pictures), val.json (8) and test.json (10). Not to be written to."""
    folder = tmp_path_factory.mktemp("implants")
    for split, count in (("train", 24), ("val", 8), ("test", 10)):
        write_records(folder, split, count)
    return folder
