"""Draws synthetic lateral cephalograms with exactly known landmarks, in the folder layout of the Aariz data set.

    python cephalometric/make_demo_data.py --output demo/Aariz --cases 70 --seed 0

The pictures are phantoms drawn from formulas (ceph/demo), without patient data, for trying and testing the software:
errors in mm on phantoms do not carry over to radiographs. Output:

    OUTPUT/{train,valid,test}/Cephalograms/<id>.png|jpg|bmp                          70 / 15 / 15 % of the cases
    OUTPUT/.../Annotations/Cephalometric Landmarks/{Junior,Senior} Orthodontists/<id>.json    two simulated readers
    OUTPUT/.../Annotations/CVM Stages/<id>.json
    OUTPUT/cephalogram_machine_mappings.csv          device and mm per pixel of each case
    OUTPUT/truth.json                                unrounded positions, px; not part of Aariz

The same seed gives the same bytes; each case depends on (seed, case number) only.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import csv
import io

import numpy as np

from ceph.anatomy import SCHEMA, TITLES
from ceph.demo.film import Case, case_stream, picture_file
from core.args import script
from core.demo_data import demo_parser, dump, start, write
from core.processes import in_processes

SPLITS = {"train": 0.70, "valid": 0.15, "test": 0.15}
READERS = {"Junior Orthodontists": 1.0, "Senior Orthodontists": 0.7}  # factor on READER_SD
MAPPING = "cephalogram_machine_mappings.csv"

# SD of a reader in mm: (along, across) an outline at `degrees` (0 = towards the face, 90 = down). Points on an edge
# (Go, Or, Po …) vary mainly along it, as in Baumrind & Frantz 1971.
READER_SD = dict.fromkeys(SCHEMA.names, (0.5, 0.5, 0)) | {
    "S": (0.35, 0.35, 0), "N": (0.7, 0.4, 90), "Me": (0.7, 0.3, 0), "Gn": (0.6, 0.35, 140), "Pog": (0.8, 0.3, 90),
    "A": (0.9, 0.4, 90), "B": (0.9, 0.35, 90), "ANS": (0.8, 0.5, 0), "PNS": (1.0, 0.6, 0), "Or": (1.1, 0.6, 10),
    "Po": (1.1, 0.7, 0), "Co": (0.9, 0.6, 0), "Ar": (1.0, 0.5, 80), "Go": (1.2, 0.6, 50), "R": (1.1, 0.5, 85),
    "UMT": (1.0, 0.5, 10), "LMT": (1.0, 0.5, 10), "UPM": (0.7, 0.5, 10), "LPM": (0.7, 0.5, 10),
    "UIT": (0.3, 0.3, 0), "LIT": (0.35, 0.35, 0), "UIA": (1.0, 0.6, 70), "LIA": (1.0, 0.6, 120),
    "Pn": (0.6, 0.3, 90), "Sn": (0.5, 0.4, 90), "Pog`": (0.9, 0.3, 90), "N`": (0.8, 0.3, 90),
}  # fmt: skip


def parse_args(argv=None):
    return demo_parser(__doc__, "cases", 70, len(SPLITS)).parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    start(args.output, args.overwrite, {"cases": args.cases, "seed": args.seed}, files_of)

    truth = {}
    splits = split_of_cases(args.cases)
    jobs = [(args.seed, case) for case in range(args.cases)]
    for case, (picture, phantom) in enumerate(in_processes(picture_file, jobs, args.workers)):
        write_case(args.output, args.seed, splits[case], case, picture, phantom)
        truth[case_id(case)] = {symbol: point.round(4).tolist() for symbol, point in phantom.truth.items()}
    write(args.output / MAPPING, mapping_csv(args.seed, args.cases))
    write(args.output / "truth.json", dump(truth))
    counts = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS)
    print(f"{args.cases} synthetic phantoms ({counts}) in {args.output}; no patient data.")


def case_id(case: int) -> str:
    """File name of a case, without suffix."""
    return f"phantom_{case:04d}"


def split_of_cases(cases: int) -> list[str]:
    """Split of each case: 70/15/15 %, at least one case each."""
    held_out = max(1, round(cases * SPLITS["valid"]))
    return ["train"] * (cases - 2 * held_out) + ["valid"] * held_out + ["test"] * held_out


# ------------------------------------------------------------------------------------------------------------ one case


def case_files(seed: int, split: str, case: int) -> dict[str, Path]:
    """Files of a case, relative to the output folder; the device determines the suffix of the picture."""
    annotations, name = Path(split, "Annotations"), case_id(case)
    files = {"image": Path(split, "Cephalograms", f"{name}.{case_stream(seed, case)[1].suffix}")}
    files |= {reader: annotations / "Cephalometric Landmarks" / reader / f"{name}.json" for reader in READERS}
    return files | {"stage": annotations / "CVM Stages" / f"{name}.json"}


def write_case(output: Path, seed: int, split: str, case: int, picture: bytes, phantom: Case) -> None:
    """Writes the picture, the landmarks of both readers and the CVM stage of one case."""
    files = case_files(seed, split, case)
    write(output / files["image"], picture)
    for number, (reader, factor) in enumerate(READERS.items()):
        clicks = read_landmarks(phantom, factor, np.random.default_rng([seed, case, 1 + number]))
        write(output / files[reader], dump({"ceph_id": case_id(case), "landmarks": clicks}))
    write(output / files["stage"], dump({"ceph_id": case_id(case), "cvm_stage": {"value": phantom.stage}}))


def read_landmarks(phantom: Case, factor: float, rng: np.random.Generator) -> list[dict]:
    """Landmarks of one reader in Aariz format: truth plus noise of READER_SD times `factor`, rounded to whole px."""
    height, width = phantom.image.shape
    clicks = []
    for number, (symbol, title) in enumerate(TITLES.items(), 1):
        along, across, degrees = READER_SD[symbol]
        turn = np.exp(1j * np.deg2rad(degrees))
        error = complex(along * rng.standard_normal(), across * rng.standard_normal()) * turn * factor
        x, y = phantom.truth[symbol] + np.array([error.real, error.imag]) / phantom.device.mm_per_px
        value = {"x": int(np.clip(np.rint(x), 0, width - 1)), "y": int(np.clip(np.rint(y), 0, height - 1))}
        clicks.append({"landmark_id": f"landmark_{number:02d}", "title": title, "symbol": symbol, "value": value})
    return clicks


def mapping_csv(seed: int, cases: int) -> bytes:
    """Machine table of Aariz: one row per case, UTF-8 with byte-order mark."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["cephalogram_id", "machine", "pixel_size", "image_format", "mode"])
    for case in range(cases):
        device = case_stream(seed, case)[1]
        table.writerow([case_id(case), device.name, device.mm_per_px, device.suffix, device.mode])
    return text.getvalue().encode("utf-8-sig")


# ------------------------------------------------------------------------------------------------------------- files


def files_of(recipe: dict) -> set[Path]:
    """All files written for this recipe."""
    seed, splits = int(recipe["seed"]), split_of_cases(int(recipe["cases"]))
    files = {path for case, split in enumerate(splits) for path in case_files(seed, split, case).values()}
    return files | {Path(MAPPING), Path("truth.json")}


if __name__ == "__main__":
    script(main)
