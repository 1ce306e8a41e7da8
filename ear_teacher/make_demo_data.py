"""Draws synthetic side views of heads with known ears: pictures, boxes, landmarks, manifests.

    python ear_teacher/make_demo_data.py --output demo/ears --images 700 --seed 0

The ears are phantoms drawn from formulas (ear/demo/), of no person, for trying and testing the software: scores on
phantoms do not carry over to ears. Output:

    OUTPUT/images/<person>_<R|L>.jpg           side views; right ears with the face to the right, left ears to the left
    OUTPUT/{train,val,test}_teacher.npy        all pictures, unlabelled: image_paths, bboxes, subjects, sides
    OUTPUT/{train,val,test}_detector.npy       the same with landmarks (17, 2); in train only a seventh of the persons
    OUTPUT/ibug/{train,test}/<id>.jpg, .pts    train and test pictures of the detector with 55 points, as in iBUG
    OUTPUT/truth.json                          shape, skin, light and pose of each picture; both sets of landmarks

Boxes are x0, y0, x1, y1 in px with pixel centres at integers; .pts coordinates start at 1. Both ears of a person are in
one split: 70 / 15 / 15 % of the persons in train, val and test. The same seed gives the same bytes; each picture
depends on (seed, number, size) only.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import io
from dataclasses import dataclass

import numpy as np

from core.args import script
from core.console import make_console, progress
from core.demo_data import demo_parser, dump, start, write
from core.processes import in_processes
from ear.demo.scene import SIDES, Scene, write_scene

SPLITS = ("train", "val", "test")
# Pattern of 20 persons, repeated: 14 in train, 3 in val, 3 in test; * = training pictures with landmarks.
PATTERN = (
    "train*", "val", "test", "train", "train", "train", "train", "train", "val", "train",
    "train*", "test", "train", "train", "train", "val", "train", "train", "test", "train",
)  # fmt: skip
FEWEST, SMALLEST = 6, 96  # pictures; pixels
TRUTH = "truth.json"


@dataclass(frozen=True)
class Case:
    """One picture, determined by its number."""

    number: int

    @property
    def subject(self) -> str:
        return f"E{self.number // len(SIDES) + 1:04d}"

    @property
    def side(self) -> str:
        return SIDES[self.number % len(SIDES)]

    @property
    def id(self) -> str:
        return f"{self.subject}_{self.side[0].upper()}"

    @property
    def split(self) -> str:
        return self._place.rstrip("*")

    @property
    def labelled(self) -> bool:
        """Whether it is in a manifest of the detector."""
        return self._place != "train"

    @property
    def _place(self) -> str:
        return PATTERN[self.number // len(SIDES) % len(PATTERN)]

    @property
    def files(self) -> dict[str, Path]:
        """Its files, relative to the output folder: picture, and if labelled its copy and points in iBUG format."""
        files = {"image": Path("images", f"{self.id}.jpg")}
        if self.labelled and self.split != "val":
            files["ibug"] = Path("ibug", self.split, f"{self.id}.jpg")
            files["pts"] = files["ibug"].with_suffix(".pts")
        return files


def parse_args(argv=None):
    return demo_parser(__doc__, "images", 700, FEWEST, 256, SMALLEST).parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    recipe = {"images": args.images, "seed": args.seed, "size": args.size}
    start(args.output, args.overwrite, recipe, files_of)
    cases = [Case(number) for number in range(args.images)]
    pictures = [[args.output / file for file in case.files.values() if file.suffix == ".jpg"] for case in cases]
    jobs = [(files, args.seed, case.number, args.size) for files, case in zip(pictures, cases, strict=True)]
    scenes = {}
    console = make_console()
    with progress(console, "drawing", len(cases)) as advance:
        for case, scene in zip(cases, in_processes(write_scene, jobs, args.workers), strict=True):
            scenes[case] = scene
            if "pts" in case.files:
                write(args.output / case.files["pts"], pts(scene.ibug55))
            advance()
    for file, members in manifests(cases).items():
        write(args.output / file, manifest(members, scenes, landmarks="detector" in file))
    write(args.output / TRUTH, dump({case.id: truth(case, scene) for case, scene in scenes.items()}))
    counts = ", ".join(f"{sum(case.split == split for case in cases)} {split}" for split in SPLITS)
    console.print(
        f"{len(cases)} synthetic ears ({counts}) of {cases[-1].number // 2 + 1} persons in {args.output}; no "
        "pictures of real persons."
    )


# ------------------------------------------------------------------------------------------------------------- files


def manifests(cases: list[Case]) -> dict[str, list[Case]]:
    """Manifest file -> its pictures."""
    files = {}
    for split in SPLITS:
        files[f"{split}_teacher.npy"] = [case for case in cases if case.split == split]
        files[f"{split}_detector.npy"] = [case for case in cases if case.split == split and case.labelled]
    return files


def manifest(cases: list[Case], scenes: dict[Case, Scene], landmarks: bool) -> bytes:
    """Content of a manifest, a .npy file of a dict."""
    content = {
        "image_paths": [case.files["image"].as_posix() for case in cases],
        "bboxes": [scenes[case].box.round(3).tolist() for case in cases],
        "subjects": [case.subject for case in cases],
        "sides": [case.side for case in cases],
    }
    if landmarks:
        content["landmarks"] = [np.array(scenes[case].ear17.tolist(), np.float32) for case in cases]
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    return file.getvalue()


def pts(points: np.ndarray) -> bytes:
    """Points (K, 2) px in iBUG format, with coordinates from 1."""
    lines = ["version: 1", f"n_points: {len(points)}", "{", *(f"{x + 1:.3f} {y + 1:.3f}" for x, y in points), "}"]
    return ("\n".join(lines) + "\n").encode()


def truth(case: Case, scene: Scene) -> dict:
    places = {name: getattr(scene, name).round(3).tolist() for name in ("box", "ear17", "ibug55")}
    return {"subject": case.subject, "side": case.side, "split": case.split, **places, **scene.parameters}


def files_of(recipe: dict) -> set[Path]:
    """All files written for this recipe."""
    cases = [Case(number) for number in range(int(recipe["images"]))]
    return {file for case in cases for file in case.files.values()} | {Path(TRUTH), *map(Path, manifests([]))}


if __name__ == "__main__":
    script(main)
