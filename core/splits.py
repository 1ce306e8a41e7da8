"""Patient splits: held-out patients by a hash of the name, and a check for patients in several splits."""

import hashlib
from collections.abc import Mapping

from core.errors import UserError
from core.validation import find_leaks


def position(name: str) -> float:
    """Hash of a patient's name in [0, 1): patients below 0.15, for example, are a random 15 %, independent of random
    seed, file order and ensemble member."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def refuse_shared_patients(splits: Mapping[str, Mapping[str, str]]) -> None:
    """Raises UserError if a patient is in more than one of the `splits` (split -> {case: patient})."""
    leaks = find_leaks(splits)
    if leaks:
        patient, places = next(iter(leaks.items()))
        where = ", ".join(f"{case} in {split}" for split, case in places[:4])
        raise UserError(f"{len(leaks)} patients stand in two splits, {patient} for example ({where}): keep each in one")
