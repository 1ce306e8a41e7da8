"""Draws synthetic chest CTs with known findings, in the folder layout of CT-RATE.

    python ct_multilabel/make_demo_data.py --output demo/CT-RATE --patients 160 --seed 0

The volumes are phantoms drawn from formulas (ct/demo), without patient data, for trying and testing the software:
metrics on phantoms say nothing about CT. One of four patients is held out (valid). Output:

    OUTPUT/dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz     HU; 1-2 scans, 2 reconstructions each
    OUTPUT/dataset/train/…                                          version 1: not in HU, about 5 % of train
    OUTPUT/dataset/multi_abnormality_labels/, OUTPUT/dataset/metadata/        tables; about 1 % of train labels are -1

and one volume without a chest per split. The same seed gives the same bytes; a patient depends on (seed, number) only.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

from dataclasses import dataclass

import numpy as np

from core.args import script
from core.console import make_console, progress
from core.demo_data import demo_parser, start, write
from core.processes import in_processes
from core.results import write_csv
from ct.ct_rate import SPLITS, labels_file, metadata_file, no_chest_file, volume_file
from ct.demo.phantom import Phantom, Scan, write_phantom
from ct.labels import LABELS, UNKNOWN

BLOCK = 20  # patients per permutation of a label: every finding has its share in each block
POSITIVE = {"train": 3, "valid": 1}  # patients of a block with a finding: 20 % of 15 and of 5
COLUMNS = ("VolumeName", "Manufacturer", "PatientSex", "PatientAge", "RescaleIntercept", "RescaleSlope", "XYSpacing",
           "ZSpacing", "Rows", "Columns", "NumberofSlices")  # fmt: skip
INTERCEPTS = {"Siemens Healthineers": -8192, "Philips": -1024, "PNMS": -1024}
# Volumes in version 1: (patient of a block, scan, reconstruction) -> intercept; the patients are in train.
VERSION_1 = {(1, "a", 1): -1024, (9, "a", 2): -8192}
ORIENTATIONS = ("LPS", "LPS", "LPS", "LAS", "RAS", "LPI")  # directions of the axes of a file


@dataclass
class DemoVolume:
    """A volume of the tree, determined by (seed, patient)."""

    name: str
    phantom: Phantom
    labels: tuple[int, ...]  # 1, 0, or -1 for unknown
    row: dict[str, str]  # of the metadata table

    @property
    def split(self) -> str:
        """ "train" or "valid"."""
        return self.name.split("_")[0]

    @property
    def file(self) -> Path:
        """Relative to the tree's root."""
        return volume_file(Path(), self.name, "fixed" if self.phantom.intercept is None else "v1")


def parse_args(argv=None):
    return demo_parser(__doc__, "patients", 160, 4).parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    start(args.output, args.overwrite, {"patients": args.patients, "seed": args.seed}, files_of)
    volumes = demo_volumes(args.seed, args.patients)
    console = make_console()
    jobs = [(args.output / volume.file, volume.phantom) for volume in volumes]
    with progress(console, "drawing", len(volumes)) as advance:
        for _ in in_processes(write_phantom, jobs, args.workers):
            advance()
    for split in SPLITS:
        members = [volume for volume in volumes if volume.split == split]
        labels = [(f"{volume.name}.nii.gz", *volume.labels) for volume in members]
        write_csv(labels_file(args.output, split), ("VolumeName", *LABELS), labels)
        write_csv(metadata_file(args.output, split), COLUMNS, [list(volume.row.values()) for volume in members])
        other = [f"{volume.name}.nii.gz\n" for volume in members if volume.phantom.findings is None]
        write(no_chest_file(args.output, split), "".join(other).encode())
    held_out = sum(patient_split(patient) == "valid" for patient in range(args.patients))
    console.print(
        f"{args.patients} synthetic phantoms ({args.patients - held_out} train, {held_out} valid), {len(volumes)} "
        f"volumes in {args.output}; no patient data."
    )


def patient_split(patient: int) -> str:
    """Every fourth patient is in valid."""
    return "valid" if patient % 4 == 3 else "train"


def patient_name(patient: int) -> str:
    """Name as in CT-RATE, numbered from 1 in each split."""
    split = patient_split(patient)
    return f"{split}_{patient // 4 + 1 if split == 'valid' else patient - patient // 4 + 1}"


def patient_findings(seed: int, patient: int) -> set[str]:
    """Findings of a patient's first scan: independent, with the same share in both splits of each block."""
    block, place = divmod(patient, BLOCK)
    split = patient_split(patient)
    peers = [peer for peer in range(BLOCK) if patient_split(peer) == split]
    findings = set()
    for number, label in enumerate(LABELS):
        order = np.random.default_rng([seed, 1, block, number, SPLITS.index(split)]).permutation(peers)
        if place in order[: POSITIVE[split]]:
            findings.add(label)
    return findings


def demo_volumes(seed: int, patients: int) -> list[DemoVolume]:
    """All volumes, including one without a chest in each split."""
    volumes = [volume for patient in range(patients) for volume in patient_volumes(seed, patient)]
    for patient in (0, 3):  # the first patients of train and valid
        volumes.append(no_chest_volume(seed, patient))
    return volumes


def patient_volumes(seed: int, patient: int) -> list[DemoVolume]:
    """Volumes of a patient: findings mostly persist between scans and are equal in reconstructions."""
    rng = np.random.default_rng([seed, 2, patient])
    findings, split = patient_findings(seed, patient), patient_split(patient)
    person = str(rng.choice(["M", "F"])), f"{rng.integers(22, 88):03d}Y"
    volumes = []
    for scan in "ab" if rng.random() < 1 / 3 else "a":
        if scan == "b" and rng.random() < 0.5:
            findings = findings ^ {LABELS[rng.integers(len(LABELS))]}  # one finding changes
        unknown = rng.random(len(LABELS)) < (0.01 if split == "train" else 0)
        labels = tuple(UNKNOWN if u else int(label in findings) for label, u in zip(LABELS, unknown, strict=True))
        manufacturer = str(rng.choice(list(INTERCEPTS)))
        turn, pixel = rng.normal(0, 2.5), rng.choice([2.75, 2.8, 2.85])
        for reconstruction in (1, 2):
            first = reconstruction == 1
            thick = rng.choice([5.8, 6.0]) if first else rng.choice([5.0, 5.4])
            view = Scan(
                shape=(48 if first else 54, 128, 128),
                spacing=(float(thick), float(pixel), float(pixel)),
                centre=(-12 + rng.uniform(-3, 3), *rng.uniform(-4, 4, 2)),
                turn=float(turn),
                kernel=rng.uniform(1.3, 1.7) if first else rng.uniform(0.7, 1.0),
                noise=rng.uniform(10, 18) if first else rng.uniform(18, 30),
                seed=int(rng.integers(2**32)),
            )
            intercept = VERSION_1.get((patient % BLOCK, scan, reconstruction))
            name = f"{patient_name(patient)}_{scan}_{reconstruction}"
            orientation = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
            phantom = Phantom(tuple(sorted(findings)), (seed, 3, patient), view, orientation, intercept)
            row = metadata_row(name, manufacturer, *person, view, intercept or INTERCEPTS[manufacturer])
            volumes.append(DemoVolume(name, phantom, labels, row))
    return volumes


def no_chest_volume(seed: int, patient: int) -> DemoVolume:
    """Thighs, as third scan of a chest patient."""
    name, phantom = f"{patient_name(patient)}_c_1", Phantom(None, (seed, 4, patient))
    row = metadata_row(name, "Philips", "F", "060Y", phantom.scan, INTERCEPTS["Philips"])
    return DemoVolume(name, phantom, (0,) * len(LABELS), row)


def metadata_row(name: str, manufacturer: str, sex: str, age: str, scan: Scan, intercept: int) -> dict[str, str]:
    """Row of the metadata table. As in CT-RATE, volumes already in HU also have slope and intercept."""
    (slices, rows, columns), (thick, pixel, _) = scan.shape, scan.spacing
    values = (f"{name}.nii.gz", manufacturer, sex, age, intercept, 1, [pixel, pixel], thick, rows, columns, slices)
    return dict(zip(COLUMNS, map(str, values), strict=True))


def files_of(recipe: dict) -> set[Path]:
    """All files written with this recipe."""
    files = {volume.file for volume in demo_volumes(int(recipe["seed"]), int(recipe["patients"]))}
    return files | {file(Path(), split) for file in (labels_file, metadata_file, no_chest_file) for split in SPLITS}


if __name__ == "__main__":
    script(main)
