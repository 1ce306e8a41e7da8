"""The template recipe: another subject for a copy of this folder, by flags and data alone. Drawn, no patient."""

import csv
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SUBJECT = "37 points of a hand, in the tree of Images/ and Landmarks/; no measurements, no stages"
SMALL = "--backbone hrnet_w18_small --no-pretrained --sigma 1.5 --lr 2e-3 --epochs 1 --warmup_epochs 0 --num_workers 0"
DATA = "--dataset_path {data}/hands --cache_dir {data}/cache"
EVALUATE = f"evaluate.py {DATA} --checkpoint {{out}}/run/best --bootstrap 20 --num_workers 0"
COMMANDS = [
    f"train.py {DATA} --landmarks {{data}}/hand37.json {SMALL} --image_size 64 64 --heatmap_size 16 --batch_size 4 "
    "--log_with none --save_dir {out}/run",
    f"train_refiner.py {DATA} --checkpoint {{out}}/run/best {SMALL} --crop_size 64 --crop_mm_per_px 0.5 "
    "--heatmap_size 16 --batch_size 2 --crops_per_image 4 --log_with none --save_dir {out}/refiner",
    f"{EVALUATE} --output {{out}}/alone",
    f"{EVALUATE} --refiner {{out}}/refiner/best --refine_crops 1 --tta 10 --output {{out}}/both",
    "evaluate.py --compare {out}/alone {out}/both --bootstrap 20 --output {out}/compared",
    "predict.py --input {data}/hands/test/Images --checkpoint {out}/run/best --refiner {out}/refiner/best "
    "--output {out}/predicted --pixel_size 0.5",
    "export_onnx.py --checkpoint {out}/run/best --output {out}/hand.onnx",
]
FORBIDDEN = re.compile("ceph|cvm|maturation|aariz|isbi|orthodont", re.IGNORECASE)

NAMES = [f"P{i + 1:02d}" for i in range(37)]


def draw(folder: Path) -> None:
    """Writes {folder}/hand37.json and {folder}/hands: bright dots on fingers, 8 to train, 3 valid, 3 test."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"ray 1": ["P01", "P05"], "ray 5": ["P21", "P25"]}
    scheme = {"name": "hand37", "names": NAMES, "titles": [f"point {name}" for name in NAMES], "lines": lines}
    (folder / "hand37.json").write_text(json.dumps(scheme))
    rng, rows = np.random.default_rng(0), []
    base = [(40 * f, 250 - 62 * j - 14 * (2 - abs(f - 2))) for f in range(5) for j in range(5)]
    base = np.array(base + [(14 * (i % 6), 300 + 40 * (i // 6) + 14 * (i % 2)) for i in range(12)], float)
    for split, count in {"train": 8, "valid": 3, "test": 3}.items():
        for name in (f"{split}_{number}" for number in range(count)):
            points = 0.4 * rng.uniform(0.8, 1.1) * (base - base.mean(0)) + (64, 104) + rng.normal(0, 4, 2)
            image = Image.new("L", (128, 208), 20)
            for x, y in points:
                ImageDraw.Draw(image).ellipse((x - 3, y - 3, x + 3, y + 3), fill=220)
            landmarks = [
                {"symbol": s, "value": {"x": x, "y": y}} for s, (x, y) in zip(NAMES, points.tolist(), strict=True)
            ]
            for place in ("Images", "Annotations/Landmarks"):
                (folder / "hands" / split / place).mkdir(parents=True, exist_ok=True)
            image.save(folder / f"hands/{split}/Images/{name}.png")
            file = folder / f"hands/{split}/Annotations/Landmarks/{name}.json"
            file.write_text(json.dumps({"landmarks": landmarks}))
            rows.append([name, "drawn", 0.5])
    with open(folder / "hands/machines.csv", "w", newline="") as table:
        csv.writer(table).writerows([["id", "machine", "pixel_size"], *rows])
