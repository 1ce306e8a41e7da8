"""Who is held out: patients divided by their name alone, and none in two splits."""

import hashlib
from collections.abc import Mapping

from core.errors import UserError
from core.validation import find_leaks


def position(name: str) -> float:
    """A number in [0, 1) that follows from the name: patients below 0.15, say, are a random 15 %.

    The same patients for every seed, every order of files and every member of an ensemble.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def refuse_shared_patients(splits: Mapping[str, Mapping[str, str]]) -> None:
    """`splits`: split -> {case: patient}. Raises UserError if a patient stands in two: scans of one person are too
    alike to count as unseen."""
    leaks = find_leaks(splits)
    if leaks:
        patient, places = next(iter(leaks.items()))
        where = ", ".join(f"{case} in {split}" for split, case in places[:4])
        raise UserError(f"{len(leaks)} patients stand in two splits, {patient} for example ({where}): keep each in one")
