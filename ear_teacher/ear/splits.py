"""Ears in train, val and test: both of a subject in one of them."""

from collections.abc import Mapping, Sequence

from core.errors import UserError
from core.splits import position, refuse_shared_patients
from core.validation import find_leaks
from ear.manifest import Ear


def split_by_subject(
    ears: Sequence[Ear], val_fraction: float = 0.1, test_fraction: float = 0.1
) -> dict[str, list[Ear]]:
    """train, val and test: all ears of a subject in one of them, which follows from the subject's name alone.

    The fractions are of the subjects. Raises UserError if a part that was asked for gets none.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"{val_fraction:g} for validation and {test_fraction:g} for the test leave nothing to train on; "
            "they are shares from 0, below 1 together"
        )
    splits = {"train": [], "val": [], "test": []}
    for ear in ears:
        place = position(ear.subject)
        split = "test" if place < test_fraction else "val" if place < test_fraction + val_fraction else "train"
        splits[split].append(ear)
    for split, fraction in (("train", 1), ("val", val_fraction), ("test", test_fraction)):
        if fraction and not splits[split]:
            subjects = len({ear.subject for ear in ears})
            raise UserError(
                f"{subjects} subjects are too few for {split}, whose share is drawn from their names; "
                "name the subjects in the manifest, or give each part one of its own"
            )
    return splits


def refuse_shared_subjects(splits: Mapping[str, Sequence[Ear]]) -> None:
    """Raises UserError if an ear or a subject stands in two splits. Subjects that are guessed from names of files do
    not count: 001.png of two folders need not show one person."""
    leaks = find_leaks({split: {ear.id: (ear.image, ear.box) for ear in ears} for split, ears in splits.items()})
    if leaks:
        (image, _), places = next(iter(leaks.items()))
        names = " and ".join(sorted({split for split, _ in places}))
        raise UserError(f"{len(leaks)} ears stand in two splits, {image} for example ({names}): keep each in one")
    refuse_shared_patients(
        {split: {ear.id: ear.subject if ear.subject_known else None for ear in ears} for split, ears in splits.items()}
    )
