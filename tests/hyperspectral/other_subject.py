"""Another subject for a copy of the project: drawn leaves, seen by a camera of 12 bands, four of them infrared."""

import csv
import re
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

SUBJECT = "12-band cubes of leaves, healthy or with blight, and masks of leaf, vein and spot"
FORBIDDEN = re.compile("retina|fundus|ophthal|vessel|lesion", re.IGNORECASE)

NM = np.arange(500, 1051, 50)
SIZE = 32
SPECTRA = {  # reflectance: chlorophyll is green and bright beyond 700 nm, veins are paler, spots have lost it
    1: 0.05 + 0.1 * np.exp(-(((NM - 550) / 40) ** 2)) + 0.4 / (1 + np.exp((710 - NM) / 12)),
    2: 0.12 + 0.1 * np.exp(-(((NM - 550) / 50) ** 2)) + 0.3 / (1 + np.exp((700 - NM) / 20)),
    4: 0.08 + 0.25 * (NM - 500) / 550,
}


def draw(folder: Path) -> None:
    """Writes 16 leaves of 16 plants: cubes/, masks/, leaves.csv. Class 3 of the masks occurs nowhere."""
    rng, rows = np.random.default_rng(0), []
    for name in ("cubes", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    for number in range(16):
        mask = np.where((x / 0.45) ** 2 + (y / 0.38) ** 2 < 1, 1, 0)
        mask[(np.abs(y) < 0.04) & (mask == 1)] = 2
        if blight := number % 2:
            row, column = rng.uniform(-0.2, 0.2, 2)
            mask[(np.hypot(y - row, x - column) < 0.12) & (mask > 0)] = 4
        cube = np.zeros((len(NM), SIZE, SIZE), np.float32)
        for value, spectrum in SPECTRA.items():
            cube[:, mask == value] = spectrum[:, None]
        cube *= rng.normal(1, 0.03, cube.shape) * rng.uniform(0.9, 1.1)
        with h5py.File(folder / "cubes" / f"leaf_{number}.h5", "w") as store:
            store["reflectance"] = 100 * cube.astype(np.float32)  # percent
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"leaf_{number}.png")
        split = "train" if number < 8 else "valid" if number < 12 else "test"
        rows.append([f"leaf {number}", "blight" if blight else "healthy", f"cubes/leaf_{number}.h5",
                     f"masks/leaf_{number}.png", f"plant {number}", split, "field 7"])  # fmt: skip
    with open(folder / "leaves.csv", "w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([["ID", "label", "hs_file", "mask_file", "patient", "split", "site"], *rows])


_DATA = "--csv_file {data}/leaves.csv"
_BANDS = "--wavelengths 500:1050:50 --h5_key reflectance"
_SIZES = "--img_size 32 --patch_size 8 4 --embed_dim 16 --encoder_depth 1 --encoder_num_heads 2"
_SIZES += " --decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2"
_RUN = "--batch_size 4 --warmup_epochs 0 --nb_to_plot 1 --num_workers 0 --log_with none"
_PROBE = f"probe.py --checkpoint {{out}}/run {_DATA} {_RUN} --bootstrap 20"
_EVALUATE = f"evaluate.py --checkpoint {{out}}/run {_DATA} --bootstrap 20 --mask_seeds 1 --nb_to_plot 1"
_PREDICT = "predict.py --checkpoint {out}/run"
COMMANDS = [
    f"cubes.py check {_DATA} {_BANDS} --workers 1 --output {{out}}/check.json",
    f"cubes.py stats {_DATA} {_BANDS} --workers 1",
    f"train.py {_DATA} {_BANDS} --unit percent {_SIZES} {_RUN} --epochs 1 --dpi 50 --save_dir {{out}}/run",
    f"{_EVALUATE} --num_workers 0 --output {{out}}/test",
    f"{_PROBE} --save_dir {{out}}/labels",
    f"{_PROBE} --save_dir {{out}}/masks --task segment --epochs 1 --class_names soil leaf vein hole spot",
    f"{_PREDICT} --input {{data}}/cubes/leaf_13.h5 --output {{out}}/leaf --reconstruct --probe {{out}}/labels",
    f"{_PREDICT} {_DATA} --output {{out}}/features --probe {{out}}/masks",
]
