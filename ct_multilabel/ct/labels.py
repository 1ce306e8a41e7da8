"""CT-RATE's 18 labels, their order and display windows. Models have the labels of their label table: other labels need
no change here.

Imports no torch, so that extraction workers start faster.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

Labelled = TypeVar("Labelled")
UNKNOWN = -1  # as in core.losses.classification
LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
# Display windows of labels other than the lung window.
WINDOW_OF = {
    **dict.fromkeys(("Medical material", "Arterial wall calcification", "Coronary artery wall calcification"), "bone"),
    **dict.fromkeys(
        ("Cardiomegaly", "Pericardial effusion", "Hiatal hernia", "Lymphadenopathy", "Pleural effusion"), "mediastinum"
    ),
}


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct label names in their order; CT-RATE's 18 in the official order."""
    names = tuple(dict.fromkeys(names))
    return LABELS if set(names) == set(LABELS) else names


def official(names: Sequence[str]) -> bool:
    """Whether labels are CT-RATE's 18 in order; CRG and results.json of VLM3D are defined for these only."""
    return tuple(names) == LABELS


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The `known` label most similar to a misspelt name, e.g. "Lung nodule" for "lung nodules"; None for exact or
    dissimilar names."""
    spellings = {" ".join(label.replace("_", " ").casefold().split()): label for label in known}
    near = difflib.get_close_matches(" ".join(name.replace("_", " ").casefold().split()), spellings, 1, 0.85)
    return spellings[near[0]] if near and spellings[near[0]] != name else None


def with_labels(volumes: Iterable[Labelled], have: Sequence[str], want: Sequence[str]) -> list[Labelled]:
    """Volumes with labels (want,) instead of (have,) int8; UNKNOWN for labels that are not in `have`. Volumes are
    dataclasses with `labels`."""
    if tuple(have) == tuple(want):
        return list(volumes)
    places = [have.index(label) if label in have else len(have) for label in want]
    return [replace(volume, labels=np.append(volume.labels, np.int8(UNKNOWN))[places]) for volume in volumes]
