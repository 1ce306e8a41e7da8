"""Another subject for a copy of ct_multilabel: drawn knees with three labels of a clinic's own."""

import csv
import re
from pathlib import Path

import nibabel as nib
import numpy as np

SUBJECT = "CT of the knee: fracture, joint effusion, meniscus tear"
LABELS = ("Fracture", "Joint effusion", "Meniscus tear")
COLUMNS = {"train": ("VolumeName", "Side", *LABELS), "valid": ("VolumeName", "Side", *LABELS[:2], "Meniscus tears")}
COMMANDS = [
    "extract_slices.py --dataset_path {data}/knees --output {out}/slices --slices 4 --size 32 --field_mm 200 "
    "--workers 1",
    "train.py --slices_path {out}/slices --save_dir {out}/run --model test_resnet --no-pretrained --tune_fraction 0.4 "
    "--slices_per_volume 2 --batch_size 4 --epochs 2 --lr 2e-3 --no-mirror --num_workers 0 --log_with none",
    "evaluate.py --slices_path {out}/slices --checkpoint {out}/run/best --output {out}/evaluation --bootstrap 20 "
    "--num_workers 0",
    "predict.py --input {data}/knees/dataset/valid_fixed/knee_3 --checkpoint {out}/run/best --output {out}/predictions",
]
FORBIDDEN = re.compile(
    r"ct-?rate|vlm3d|\bcrg\b|results\.json|medical material|calcification|cardiomegaly|pericardial|hernia"
    r"|lymphadenopathy|emphysema|atelectasis|nodule|opacity|fibrotic|pleural|mosaic|peribronchial|consolidation|bronchiectasis|septal",
    re.IGNORECASE,
)


def knee(findings: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """HU int16 (X, Y, Z) of a leg: soft tissue around a bone; a finding is a bright, a watery or a dark spot."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in (40, 40, 24)), indexing="ij")
    hu = np.where(x**2 + y**2 < 16**2, 50.0, -1000.0)
    hu[x**2 + y**2 < 4**2] = 600
    for label, place, value in zip(LABELS, (-9, 9, 0), (1200, 5, -90), strict=True):
        if findings[label]:
            hu[(x - place) ** 2 + (y - 9) ** 2 + (z / 3) ** 2 < 9] = value
    return (hu + rng.normal(0, 10, hu.shape)).clip(-1024).astype(np.int16)


def draw(folder: Path) -> None:
    """16 patients in the tree that extract_slices.py reads, with a column of text in both tables and a label that is
    misspelt in that of valid."""
    rng, root, rows = np.random.default_rng(0), folder / "knees" / "dataset", {"train": [], "valid": []}
    for patient in range(16):
        split = "valid" if patient % 4 == 3 else "train"
        values = [patient % 2 ^ patient // 8, patient // 4 % 2, patient // 2 % 2]
        file = root / f"{split}_fixed" / f"knee_{patient}" / f"knee_{patient}.nii.gz"
        file.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(knee(dict(zip(LABELS, values, strict=True)), rng), np.diag([4.0, 4, 4, 1])), file)
        rows[split].append([file.name, "left" if patient % 3 else "right", *values])
    for split, lines in rows.items():
        table = root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"
        table.parent.mkdir(exist_ok=True)
        with open(table, "w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows([COLUMNS[split], *lines])
