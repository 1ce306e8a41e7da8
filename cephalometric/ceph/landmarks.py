"""The 29 landmarks of the Aariz data set."""

# Symbol -> title, in the order of the data set (Khalid et al. 2022, "Aariz"; JSON files are keyed by symbol, never by
# position). All 29 are midline or merged bilateral points, so a mirrored head keeps its labels.
LANDMARK_TITLES = {
    "A": "A-point",
    "ANS": "Anterior Nasal Spine",
    "B": "B-point",
    "Me": "Menton",
    "N": "Nasion",
    "Or": "Orbitale",
    "Pog": "Pogonion",
    "PNS": "Posterior Nasal Spine",
    "Pn": "Pronasale",
    "R": "Ramus",
    "S": "Sella",
    "Ar": "Articulare",
    "Co": "Condylion",
    "Gn": "Gnathion",
    "Go": "Gonion",
    "Po": "Porion",
    "LPM": "Lower 2nd PM Cusp Tip",
    "LIT": "Lower Incisor Tip",
    "LMT": "Lower Molar Cusp Tip",
    "UPM": "Upper 2nd PM Cusp Tip",
    "UIA": "Upper Incisor Apex",
    "UIT": "Upper Incisor Tip",
    "UMT": "Upper Molar Cusp Tip",
    "LIA": "Lower Incisor Apex",
    "Li": "Labrale inferius",
    "Ls": "Labrale superius",
    "N`": "Soft Tissue Nasion",
    "Pog`": "Soft Tissue Pogonion",
    "Sn": "Subnasale",
}
LANDMARKS = tuple(LANDMARK_TITLES)
