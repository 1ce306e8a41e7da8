"""Draws synthetic hyperspectral retinas with known anatomy and lesions: cubes, pictures, masks and a table.

    python hyperspectral/make_demo_data.py --output demo/retina --cases 120 --size 500 --seed 0

The eyes are phantoms drawn from formulas (hsi/demo), without patient data and with computed spectra, for trying and
testing the software: metrics on phantoms say nothing about retinas. Output:

    OUTPUT/cubes/<patient>_<R|L>.h5      data set /Cube/Images: reflectance, float32 (30, size, size), contiguous
    OUTPUT/rgb/<patient>_<R|L>.png       sRGB picture
    OUTPUT/masks/<patient>_<R|L>.png     uint8: 0 background, 1 retina, 2 vessel, 3 optic disc, 4 lesion
    OUTPUT/dataset.csv                   ID,label,hs_file,rgb_file,mask_file,patient,split

Half of the eyes are normal, half have haemorrhages, some with exudates (label: lesion). About half of the patients have
both eyes; 65 / 10 / 25 % of the patients are in train, valid and test. The same seed gives the same bytes; a case
depends on (seed, number) only.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

from dataclasses import dataclass

import numpy as np

from core.args import script
from core.console import make_console, progress
from core.demo_data import demo_parser, start
from core.processes import in_processes
from core.results import write_csv
from hsi.demo.optics import LONGEST, SHORTEST
from hsi.demo.phantom import write_eye
from hsi.files import COLUMNS, SPLITS
from hsi.statistics import statistics_file
from hsi.wavelengths import DEFAULT, parse_wavelengths

LABELS = ("normal", "lesion")
TABLE = "dataset.csv"
# Pattern of 20 patients, 13 in train, 2 in valid, 5 in test: (split, eyes). It begins with two eyes per split, so that
# the smallest set has both labels in each.
PATTERN = [
    ("train", 2), ("valid", 2), ("test", 2), ("train", 1), ("train", 2), ("test", 1), ("train", 1),
    ("train", 2), ("train", 1), ("test", 2), ("train", 1), ("train", 2), ("valid", 1), ("train", 1),
    ("train", 2), ("test", 1), ("train", 1), ("train", 2), ("test", 2), ("train", 1),
]  # fmt: skip
FEWEST, SMALLEST = 6, 20  # cases; pixels


@dataclass(frozen=True)
class Case:
    """An eye, determined by (seed, number)."""

    patient: int
    eye: str  # "R" or "L"
    split: str
    label: str

    @property
    def patient_name(self) -> str:
        """Five characters, the default length of patient names in file names."""
        return f"P{self.patient + 1:04d}"

    @property
    def id(self) -> str:
        return f"{self.patient_name}_{self.eye}"

    @property
    def files(self) -> dict[str, str]:
        """Column of the table -> file, relative to it."""
        return {"hs_file": f"cubes/{self.id}.h5", "rgb_file": f"rgb/{self.id}.png", "mask_file": f"masks/{self.id}.png"}


def parse_args(argv=None):
    parser = demo_parser(__doc__, "cases", 120, FEWEST, 500, SMALLEST)
    parser.add_argument("--wavelengths", type=parse_wavelengths, default=DEFAULT, metavar="LIST",
                        help="wavelengths of the bands in nm: a list, ranges, or a file of them")  # fmt: skip
    args = parser.parse_args(argv)
    for nm in args.wavelengths:
        if not SHORTEST <= nm <= LONGEST:
            parser.error(f"--wavelengths: {nm:g} nm cannot be drawn; give {SHORTEST:g} to {LONGEST:g} nm")
    return args


def main(argv=None):
    args = parse_args(argv)
    start(args.output, args.overwrite, {"cases": args.cases, "seed": args.seed, "size": args.size}, files_of)
    cases = demo_cases(args.seed, args.cases)
    console = make_console()
    common = (args.output, args.seed, args.size, args.wavelengths)
    jobs = [(*common, case.patient, case.eye, case.label == "lesion", case.files) for case in cases]
    with progress(console, "drawing", len(cases)) as advance:
        for _ in in_processes(write_eye, jobs, args.workers):
            advance()
    rows = [case.files | {"ID": case.id, "label": case.label, "patient": case.patient_name, "split": case.split}
            for case in cases]  # fmt: skip
    write_csv(args.output / TABLE, COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    counts = ", ".join(f"{sum(case.split == split for case in cases)} {split}" for split in SPLITS)
    console.print(
        f"{len(cases)} synthetic eyes ({counts}) of {cases[-1].patient + 1} patients in {args.output}; no patient data."
    )


# --------------------------------------------------------------------------------------------------------------- cases


def demo_cases(seed: int, number: int) -> list[Case]:
    """The first `number` cases, by patient. In each split, consecutive pairs have both labels in random order."""
    cases, members = [], dict.fromkeys(SPLITS, 0)
    patient = 0
    while len(cases) < number:
        split, eyes = PATTERN[patient % len(PATTERN)]
        sides = np.random.default_rng([seed, 0, patient]).permutation(["R", "L"])
        for side in sides[:eyes]:
            pair, place = divmod(members[split], 2)
            order = np.random.default_rng([seed, 1, SPLITS.index(split), pair]).permutation(LABELS)
            cases.append(Case(patient, str(side), split, str(order[place])))
            members[split] += 1
        patient += 1
    return cases[:number]


# ------------------------------------------------------------------------------------------------------------- files


def files_of(recipe: dict) -> set[Path]:
    """All files written with this recipe, and the statistics measured from them."""
    cases = demo_cases(int(recipe["seed"]), int(recipe["cases"]))
    return {Path(file) for case in cases for file in case.files.values()} | {Path(TABLE), statistics_file(Path(TABLE))}


if __name__ == "__main__":
    script(main)
