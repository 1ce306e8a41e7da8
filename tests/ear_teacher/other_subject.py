"""Drawn leaves in place of ears: another subject for a copy of the project, by flags and data alone. Synthetic."""

import csv
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SUBJECT = "leaves: 5 landmarks of own names, of which one is never labelled; a mirror exchanges the edges; no sides"
NAMES = ("stalk", "tip", "left edge", "right edge", "hole")
SCHEMA = {"name": "leaf", "names": NAMES, "strips": {"outline": ["stalk", "left edge", "tip", "right edge"]},
          "flip": [0, 1, 3, 2, 4]}  # fmt: skip
FORBIDDEN = re.compile(r"otobasion|helix|tragus|tragic|aurale|\bcrus\b|\blobe\b|ibug|ear17", re.IGNORECASE)

VAE = "--checkpoint {out}/run/best --num_workers 0"
TINY = "--image_size 32 --epochs 1 --batch_size 4 --num_workers 0 --log_with none"
MANIFESTS = "--train_manifest {data}/train.csv --val_manifest {data}/val.csv"
COMMANDS = [
    f"train.py {MANIFESTS} --save_dir {{out}}/run --sam_config tiny --sam_image_size 128 --latent_dim 4 {TINY} "
    "--perceptual_weight 0 --nb_to_plot 1",
    f"evaluate.py {VAE} --manifest {{data}}/test.csv --output {{out}}/evaluation --bootstrap 20 --nb_to_plot 1",
    f"eigenears/create_eigenears.py {VAE} --output {{out}}/components --components 1 --steps 3 --samples 1",
    f"predict.py {VAE} --input {{data}}/test.csv --output {{out}}/codes --reconstruct",
    f"predict.py {VAE} --search {{data}}/test_0.png --index {{out}}/codes --output {{out}}/found",
    f"train_detector.py {MANIFESTS} --save_dir {{out}}/detector --teacher {{out}}/run/best {TINY} "
    "--landmark_schema {data}/leaf.json --windows 1",
    "evaluate_detector.py --checkpoint {out}/detector/best --manifest {data}/test.csv --output {out}/detection "
    "--bootstrap 20 --nb_to_plot 1",
]


def draw(folder: Path) -> None:
    """Writes train.csv, val.csv and test.csv with pictures of 60×48 px, and leaf.json."""
    rng = np.random.default_rng(0)
    (folder / "leaf.json").write_text(json.dumps(SCHEMA))
    header = ["image", "subject", "x0", "y0", "x1", "y1", *(f"{name}_{axis}" for name in NAMES for axis in "xy")]
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for number in range(count):
                (x, y), (w, h) = rng.uniform([24, 20], [36, 28]), rng.uniform([8, 10], [14, 16])
                picture = Image.new("RGB", (60, 48), tuple(rng.integers(20, 60, 3).tolist()))
                pen, green = ImageDraw.Draw(picture), tuple(rng.integers([40, 120, 40], [90, 220, 90]).tolist())
                pen.ellipse((x - w, y - h, x + w, y + h), fill=green)
                pen.line((x, y - h, x, y + h), fill=(20, 60, 20))
                picture.save(folder / f"{split}_{number}.png")
                points = [x, y + h, x, y - h, x - w, y, x + w, y, "", ""]
                table.writerow([f"{split}_{number}.png", f"{split}{number}", x - w, y - h, x + w, y + h, *points])
