"""Draws synthetic radiographs of dental implants of exactly known length and diameter, in the format of train.py.

    python implant/make_demo_data.py --output demo/implants --patients 300 --seed 0

The pictures are phantoms drawn from formulas (implants/demo/phantom.py), without patient data; makers, models and
catalogues are fictitious. They are for trying and testing the software: errors in mm on phantoms do not carry over to
radiographs. Output:

    OUTPUT/images/<patient>_<n>.png            8-bit grey crops, one main implant in each, apex down
    OUTPUT/{train,val,test}.json               records of 60 / 20 / 20 % of the patients
    OUTPUT/truth.json                          for each picture: mm per px, platform and apex in px, other structures

A patient has 1 to 5 implants, mostly of one maker. `bbox` is x0, y0, x1, y1 in px with pixel centres at integers,
loosely around implant and crown; about every seventh record has no `pixel_spacing` (mm per px). Only test patients have
TissueLevel of Alvento and Tapered of Eskilo. The same seed gives the same bytes; each picture depends on (seed, number,
size) only.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

from dataclasses import dataclass

import numpy as np

from core.args import script
from core.console import make_console, progress
from core.demo_data import demo_parser, dump, start, write
from core.processes import in_processes
from implants.demo.phantom import CATALOGUE, COMPANIES, DEFAULT_SIZE, Implant, Picture, sample_implant, write_picture

SPLITS = ("train", "val", "test")
PATTERN = ("train", "train", "val", "train", "test")  # repeated over the patients
COUNTS = (3, 1, 4, 2, 5, 3, 3)  # implants per patient, repeated; length coprime to that of PATTERN
UNSEEN = {"Alvento": "TissueLevel", "Eskilo": "Tapered"}  # maker -> model of test patients only
LOYALTY = 0.85  # probability that further implants of a patient are of the same maker
SPACING_KNOWN = 0.85  # share of the records with `pixel_spacing`
FEWEST, SMALLEST = 10, 64  # minimum number of patients, for both unseen models; minimum size, px
TRUTH = "truth.json"


@dataclass(frozen=True)
class Case:
    """One picture: numbers of patient and implant, from 0."""

    patient: int
    number: int

    @property
    def patient_id(self) -> str:
        return f"P{self.patient + 1:04d}"

    @property
    def id(self) -> str:
        return f"{self.patient_id}_{self.number + 1}"

    @property
    def split(self) -> str:
        return PATTERN[self.patient % len(PATTERN)]

    @property
    def image(self) -> Path:
        """Path relative to the output folder."""
        return Path("images", f"{self.id}.png")


def parse_args(argv=None):
    return demo_parser(__doc__, "patients", 300, FEWEST, DEFAULT_SIZE, SMALLEST).parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    start(args.output, args.overwrite, {"patients": args.patients, "seed": args.seed, "size": args.size}, files_of)
    implants = {
        case: implant
        for patient in range(args.patients)
        for case, implant in zip(cases_of(patient), implants_of(args.seed, patient), strict=True)
    }
    jobs = [
        (args.output / case.image, implant, (args.seed, 1, case.patient, case.number), args.size)
        for case, implant in implants.items()
    ]
    records, truths = {split: [] for split in SPLITS}, {}
    console = make_console()
    with progress(console, "drawing", len(jobs)) as advance:
        for (case, implant), picture in zip(
            implants.items(), in_processes(write_picture, jobs, args.workers), strict=True
        ):
            records[case.split].append(record(case, implant, picture, args.seed))
            truths[case.id] = truth(case, implant, picture)
            advance()
    for split in SPLITS:
        write(args.output / f"{split}.json", dump(records[split]))
    write(args.output / TRUTH, dump(truths))
    counts = ", ".join(f"{len(records[split])} {split}" for split in SPLITS)
    console.print(
        f"{len(implants)} synthetic implants ({counts}) of {args.patients} patients in {args.output}; no patient data."
    )


def cases_of(patient: int) -> list[Case]:
    return [Case(patient, number) for number in range(COUNTS[patient % len(COUNTS)])]


def implants_of(seed: int, patient: int) -> list[Implant]:
    """Implants of a patient. Makers alternate, so that each is in every split of small data sets."""
    rng = np.random.default_rng((seed, 0, patient))
    block, place = divmod(patient, len(PATTERN))
    makers = list(COMPANIES)
    maker = makers[(place + block) % len(makers)]
    implants = []
    for case in cases_of(patient):
        company = maker if case.number == 0 or rng.random() < LOYALTY else makers[rng.integers(len(makers))]
        models = [model for company_, model in CATALOGUE if company_ == company]
        unseen = UNSEEN.get(company)
        if case.split != "test":
            models = [model for model in models if model != unseen]
        elif case.number == 0 and unseen:
            models = [unseen]
        implants.append(sample_implant(rng, company, models[rng.integers(len(models))]))
    return implants


# ------------------------------------------------------------------------------------------------------------- files


def record(case: Case, implant: Implant, picture: Picture, seed: int) -> dict:
    """Record in the format of implants/records.py; `pixel_spacing` is sometimes missing."""
    company = COMPANIES[implant.company]
    known = np.random.default_rng((seed, 2, case.patient, case.number)).random() < SPACING_KNOWN
    return {
        "image": case.image.as_posix(), "company": implant.company, "model": implant.model, "length": implant.length,
        "diameter": implant.diameter, "patient_id": case.patient_id, "bbox": list(picture.box),
        **({"pixel_spacing": picture.mm_per_px} if known else {}), "modality": picture.modality,
        "thread_type": company.thread, "connection": company.connection,
    }  # fmt: skip


def truth(case: Case, implant: Implant, picture: Picture) -> dict:
    sizes = {"length": implant.length, "diameter": implant.diameter}
    return {"split": case.split, **sizes, "mm_per_px": picture.mm_per_px, **picture.scene}


def files_of(recipe: dict) -> set[Path]:
    """All files written for this recipe."""
    cases = [case for patient in range(int(recipe["patients"])) for case in cases_of(patient)]
    return {case.image for case in cases} | {Path(TRUTH), *(Path(f"{split}.json") for split in SPLITS)}


if __name__ == "__main__":
    script(main)
