"""The anatomy of a synthetic head in millimetres: its landmarks, and an atlas of outlines that is warped onto them.

These are phantoms, drawn by formulas; no patient is behind them. `sample_anatomy` draws the landmarks from published
norms, a thin-plate spline carries the atlas (outlines written around the mean head) onto them, teeth and vertebrae are
built piece by piece. film.py makes a radiograph of the result.

Head frame: origin at Sella, x to the face, y down, Frankfort horizontal (Po-Or) level, mm. Angles grow clockwise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline, RBFInterpolator

from ceph.anatomy import SCHEMA

Points = dict[str, np.ndarray]  # symbol -> (2,) mm in the head frame
Draw = Callable[[float, float], float]  # (mean, standard deviation) -> a number


# -------------------------------------------------------------------------------------------------------------- anatomy


def polar(origin: Sequence[float], degrees: float, length: float) -> np.ndarray:
    """The point `length` mm from `origin`; 0 degrees points to the face, 90 degrees down."""
    angle = np.deg2rad(degrees)
    return np.asarray(origin, float) + length * np.array([np.cos(angle), np.sin(angle)])


def angle_at(vertex: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Angle first-vertex-second, degrees."""
    u, v = first - vertex, second - vertex
    return float(np.rad2deg(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))


def build_anatomy(normal: Draw, stage: float) -> Points:
    """The landmarks (and a few helpers) of one head, mm, from cephalometric norms.

    Means and standard deviations: SNA, SNB, SN-MP, incisors after Steiner 1953 and Riedel 1952; saddle angle and S-Ar
    after Björk 1947; ANS-Me/N-Me = 55 % after Wylie 1947; soft tissue after Burstone 1958 and Arnett 1999; rounded,
    adult of both sexes. `stage` (CVM 1-6) makes young heads smaller.
    """
    size = (0.955 + 0.014 * (stage - 1)) * normal(1, 0.02)
    sn_fh = normal(7, 2)
    s = np.zeros(2)
    n = polar(s, -sn_fh, normal(72, 1.8) * size)
    snb, anb = normal(79.5, 2.8), normal(2.5, 2)
    sna = snb + anb

    def on_ray(angle: float, y: float) -> np.ndarray:
        """The point at height y on the ray from N that makes `angle` with N-S."""
        return np.array([n[0] + (y - n[1]) / np.tan(np.deg2rad(180 - sn_fh - angle)), y])

    # Facial heights: Me by N-Me; ANS where its ray from N meets the circle of radius ANS-Me around Me.
    face = normal(115, 4.5) * size
    lower_face = normal(0.55, 0.015) * face
    me = polar(n, 180 - sn_fh - snb + normal(3.2, 0.5), face)
    ray = polar(s, 180 - sn_fh - sna - normal(4.5, 0.7), 1)
    along = ray @ (me - n)
    ans = n + ray * (along - np.sqrt(along**2 - face**2 + lower_face**2))
    pns = polar(ans, 180 + normal(1, 2.3), normal(53, 2) * size)
    a = on_ray(sna, ans[1] + normal(6, 0.8))
    b = on_ray(snb, me[1] - normal(20.5, 1.3) * size)
    pog = on_ray(snb, me[1] - normal(8.5, 0.8)) + [normal(2.5, 0.9), 0]
    gn = me + (pog - me) * [0.68, 0.26]

    # Mandible: Go on the mandibular plane, a little before Ar. Ramus height (44 mm) and gonial angle (126) follow.
    plane = normal(32, 4.5) - sn_fh
    ar = polar(s, normal(123, 3.5) - sn_fh, normal(36, 1.8) * size)
    go = polar(me, 180 + plane, (me[0] - ar[0] - normal(9, 2.3)) / np.cos(np.deg2rad(plane)))
    co = ar + [normal(4, 0.6), -normal(11.5, 1) * size]
    po = co + [-normal(10.5, 0.8), -normal(2, 0.8)]
    orbitale = np.array([n[0] - normal(15.5, 1.5), po[1]])
    down = (go - ar) / np.linalg.norm(go - ar)
    # Aariz does not define its "Ramus" in words; here R is the deepest point of the anterior border's concavity.
    r = ar + 0.55 * (go - ar) + normal(31, 1.6) * size * np.array([down[1], -down[0]])

    # Teeth: tips from overjet and overbite, apices inside the bone behind A and B, molars on the occlusal plane.
    overbite, overjet = normal(2.5, 1.1), np.clip(normal(3, 1) + 0.5 * (anb - 2.5), 0.8, 8)
    upper = ans[1] + normal(0.43, 0.012) * (me[1] - ans[1])
    lower = upper - overbite
    lit = np.array([a[0] + (pog[0] - a[0]) * (lower - a[1]) / (pog[1] - a[1]) + normal(2, 1.2), lower])
    uit = np.array([lit[0] + overjet, upper])
    uia = uit + lean(a[0] - normal(5, 0.6) - uit[0], normal(23.5, 0.8), -1)
    lia = lit + lean(b[0] - normal(5.5, 0.6) - lit[0], normal(21, 0.7), +1)
    slope = np.tan(np.deg2rad(normal(8, 2) + 0.4 * (plane - 25)))
    molars = {"UMT": (uit[0] - normal(30, 1.1) * size, 1), "LMT": (lit[0] - normal(24.5, 1.0) * size, -1)}
    molars |= {"UPM": (molars["UMT"][0] + normal(6.9, 0.25), 1), "LPM": (molars["LMT"][0] + normal(6.9, 0.25), -1)}
    cusps = {k: np.array([x, (upper + lower) / 2 + slope * (x - uit[0]) + d]) for k, (x, d) in molars.items()}

    sn = np.array([a[0] + normal(14.5, 1.1), ans[1] + normal(4, 0.8)])
    pn = sn + [normal(15.5, 1.4), -normal(10, 1.2)]
    soft_n = n + [normal(6, 0.7), normal(1.5, 0.7)]
    soft_pog = pog + [normal(12, 1.1), normal(0, 0.7)]

    def lip(y: float, beyond: float, least: float) -> np.ndarray:
        """Most anterior point of a lip: `beyond` mm before the line Sn-Pog`, and never inside the teeth."""
        return np.array([max(sn[0] + (soft_pog[0] - sn[0]) * (y - sn[1]) / (soft_pog[1] - sn[1]) + beyond, least), y])

    ls = lip(upper - normal(7, 0.7), normal(3.5, 0.9), uit[0] + 7)
    li = lip(upper + normal(7.5, 0.7), normal(2.5, 0.9), lit[0] + 7.5)
    points = {"A": a, "ANS": ans, "B": b, "Me": me, "N": n, "Or": orbitale, "Pog": pog, "PNS": pns, "Pn": pn, "R": r}
    points |= {"S": s, "Ar": ar, "Co": co, "Gn": gn, "Go": go, "Po": po, "LIT": lit, "UIA": uia, "UIT": uit, "LIA": lia}
    points |= cusps | {"Li": li, "Ls": ls, "N`": soft_n, "Pog`": soft_pog, "Sn": sn}
    # Helpers that are no landmarks: basion, rhinion, coronoid process, sigmoid notch, stomion, mentolabial sulcus,
    # the bone at the incisors' necks and behind the last molar.
    points["Ba"] = ar + [-10, 10.5]
    points["Rh"] = n + [normal(9.5, 1.2), normal(21, 1.5)]
    points["coronoid"] = np.array([r[0] - 3, co[1] + normal(4, 1)])
    points["notch"] = (co + points["coronoid"]) / 2 + [-1, 13]
    points["stomion"] = np.array([min(ls[0], li[0]) - 3.8, upper - 0.2])
    points["sulcus"] = li + 0.45 * (soft_pog - li) + [-normal(4.0, 0.6), 0]
    for name, tip, apex, side in (("Pr", uit, uia, 3.4), ("upper neck", uit, uia, -3.6), ("Id", lit, lia, 2.6),
                                  ("lower neck", lit, lia, -2.9)):  # fmt: skip
        axis = (apex - tip) / np.linalg.norm(apex - tip)
        points[name] = tip + 10 * axis + side * np.array([abs(axis[1]), -axis[0] * np.sign(axis[1])])
    points["above B"] = 0.6 * b + 0.4 * points["Id"] - [0.4, 0]
    back = min(max(pns[0] + 1, cusps["UMT"][0] - 19), cusps["UMT"][0] - 14)
    points["tuberosity"] = np.array([back, (cusps["UMT"][1] + pns[1]) / 2 - 1])
    return points


def lean(dx: float, length: float, side: int) -> np.ndarray:
    """The vector of `length` mm with the given horizontal part, up (side -1) or down (+1)."""
    return np.array([dx, side * np.sqrt(length**2 - dx**2)])


def is_plausible(p: Points) -> bool:
    """Independent draws sometimes add up to a head that nobody has; these limits are about three deviations wide."""
    ranges = (
        (angle_at(p["Go"], p["Ar"], p["Me"]), 113, 141),  # gonial angle
        (np.linalg.norm(p["Go"] - p["Me"]), 59, 84),
        (np.linalg.norm(p["Ar"] - p["Go"]), 34, 56),
        (np.linalg.norm(p["N"] - p["Me"]), 98, 132),
        (angle_at(p["LIT"], p["LIA"], p["LIT"] + p["Me"] - p["Go"]), 80, 112),  # IMPA
        (angle_at(p["UIT"], p["UIA"], p["UIT"] - [1, 0]), 56, 84),  # 180 - U1-FH
        (p["UIA"][1] - p["ANS"][1], 2.5, 12),
        (p["Li"][0] - p["sulcus"][0], 2, 12),
        (p["B"][1] - p["Id"][1], 4, 14),
        (p["LMT"][0] - p["R"][0], 18, 34),  # room for the second molar
        (p["R"][1] - p["coronoid"][1], 17, 36),
    )
    return all(low <= value <= high for value, low, high in ranges)


MEAN = build_anatomy(lambda mean, _: mean, stage=4)
# Teeth and Gn lie too close together to bend the space between them: curves pass through them by name.
WARPED_BY = [k for k in SCHEMA.names if k not in {"Gn", "LPM", "LIT", "LMT", "UPM", "UIA", "UIT", "UMT", "LIA"}]
VAULT = np.array([[75.0, -48], [4, -107], [-76, -83], [-109, -13], [-72, 50]])  # anchors of the warp, mean head
NECK = np.array([[18.0, 190], [-82, 190], [24, 125], [-90, 85]])


@dataclass
class Head:
    """One head: its points in mm, its CVM stage, the warp from the mean head, and what else varies."""

    points: Points
    stage: int
    warp: Callable[[np.ndarray], np.ndarray]  # (n, 2) mm in the mean head -> (n, 2) mm in this head
    spine_angle: float  # degrees, 90 = straight down
    spine_size: float
    asymmetry: np.ndarray  # (2,) mm between the left and right side's shadows, halved

    def trace(self, outline: Iterable, closed: bool = False) -> np.ndarray:
        """A smooth curve (n, 2) in mm. Entries: "Go" a point of this head; ("Go", dx, dy) mm from it; (x, y) warped."""
        knots = [self.points[e] if isinstance(e, str) else
                 self.points[e[0]] + e[1:] if isinstance(e[0], str) else
                 self.warp(np.array([e], float))[0] for e in outline]  # fmt: skip
        return smooth(np.array(knots), closed)


def sample_anatomy(rng: np.random.Generator) -> Head:
    """Draw a head. Normal deviations are cut at 2.2 SD."""

    def normal(mean: float, sd: float) -> float:
        return mean + sd * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    stage = int(rng.integers(1, 7))
    while not is_plausible(points := build_anatomy(normal, stage)):
        pass
    source = np.array([MEAN[k] for k in WARPED_BY] + [*VAULT, *NECK])
    vault = VAULT * [normal(1, 0.025), normal(1, 0.025)] + np.outer([1, 0.3, 0, 0, 0], points["N"] - MEAN["N"])
    neck = NECK + [normal(0, 3), normal(0, 2)]
    target = np.array([points[k] for k in WARPED_BY] + [*vault, *neck])
    warp = RBFInterpolator(source, target, kernel="thin_plate_spline")
    asymmetry = np.array([normal(0, 0.5), normal(0, 0.3)])
    return Head(points, stage, warp, normal(91, 4), normal(1, 0.03) * (0.94 + 0.016 * stage), asymmetry)


def smooth(knots: np.ndarray, closed: bool = False, step: float = 0.4) -> np.ndarray:
    """Cubic spline through knots (n, 2) in mm, a point every `step` mm. Centripetal parameter: no loops, no cusps."""
    knots = np.vstack([knots, knots[:1]]) if closed else knots
    parameter = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(knots, axis=0), axis=1)))])
    spline = CubicSpline(parameter, knots, bc_type="periodic" if closed else "natural")
    length = np.linalg.norm(np.diff(knots, axis=0), axis=1).sum()
    return spline(np.linspace(0, parameter[-1], max(8, int(length / step))))


# ---------------------------------------------------------------------------------------------------------------- atlas
# (x, y) are mm in the mean head and follow the warp; "Go" and ("Go", dx, dy) sit on this head's own landmark.

SKIN = [(-82, 230), (-83, 150), (-88, 100), (-95, 66), (-104, 36), (-113, 10), (-116, -15), (-109, -51), (-81, -89),
        (-37, -111.5), (5, -113.5), (43, -102), (69, -77), (80.5, -48), (82.3, -26), ("N`", 2.6, -10), "N`",
        ("N`", 2.4, 6.5), (85.6, 10.5), (92.3, 24.5), ("Pn", -3.4, -7), ("Pn", -0.6, -2.8), "Pn", ("Pn", -0.6, 2.4),
        ("Pn", -2.7, 5.3), ("Pn", -7, 7.9), ("Sn", 2.6, -1.2), "Sn", ("Sn", -0.5, 3), ("Ls", -1.7, -5.6),
        ("Ls", -0.35, -2.2), "Ls", ("Ls", -0.9, 3.2), "stomion", ("Li", -0.9, -3.2), "Li", ("Li", -0.6, 2.4), "sulcus",
        ("Pog`", -1.7, -6.5), ("Pog`", -0.3, -2.6), "Pog`", ("Pog`", -0.4, 2.8), (75.2, 106.5), (67, 112.3),
        (57.9, 113.4), (44, 110.8), (33, 111.5), (25.5, 117), (21.5, 129), (19, 150), (16, 230)]  # fmt: skip
CRANIUM = ["N", ("N", 2.4, -6), (75.6, -22), (75, -45), (64, -71), (40, -95), (4, -107), (-36, -104.5), (-76, -83),
           (-102, -47), (-109, -13), (-103, 18), (-90, 38), (-73, 49.5), (-57, 50), ("Ba", -14, 4), "Ba", (-16.5, 20),
           ("S", -8.6, 2), ("S", -5, 4), ("S", 0, 7), ("S", 5, 4), ("S", 8, -4), (22, -5), (40, -3), (54, -5),
           (63, -8)]  # fmt: skip
FRONTAL_SINUS = [("N", -1.5, -6), (73.6, -15), (73.8, -25), (70.5, -33), (66.5, -26), (64.5, -16), (66, -11)]
SELLA = [("S", 24, -6.6), ("S", 15, -6.8), ("S", 8.5, -6.4), ("S", 5.6, -4.6), ("S", 5.1, -2), ("S", 5.4, 0.8),
         ("S", 4.1, 3.6), ("S", 1.2, 5.3), ("S", -2, 5.1), ("S", -4.6, 3), ("S", -5.5, 0), ("S", -5.1, -3),
         ("S", -5.6, -5.4), ("S", -7.2, -6), ("S", -8.4, -4.2), ("S", -8.8, 0), ("S", -10, 4)]  # fmt: skip
CLIVUS_LINE = [("S", -8.6, -3), ("S", -9, 1.5), (-16, 17), "Ba", ("Ba", -1, 2)]
SELLA_CUP = [("S", 5, -4), ("S", 5.2, 0.5), ("S", 1, 5), ("S", -4, 3), ("S", -5, -3)]
CLINOID = [("S", 16, -7), ("S", 7, -8.2), ("S", 2.2, -6.8), ("S", 7, -5.4)]
CLIVUS = [("S", -6.6, -5.8), ("S", -8.8, 2), (-16, 17), "Ba", (-21, 37.6), "Ar", (-8.5, 23.5), (0, 18.5), (4, 10),
          ("S", 0, 6), ("S", -4.8, 3.6)]  # fmt: skip
SKULL_BASE = [("Ba", -9, 3), "Ba", (-21, 37.6), "Ar", (-8.5, 23.5), (0, 18.5), (9, 17.5)]
ANTERIOR_FOSSA = [("S", 15, -6.8), (28, -6.8), (40, -4.3), (51, -5.4), (60, -10), (64, -18)]
BASE_ZONE = [(72, -12), (50, -14), (20, -17), (-5, -16), (-20, -4), (-34, 36), (-44, 47), (-44, 60), (-10, 50),
             (12, 24), (40, 8), (70, 2)]  # where the cranium is no vault: the base has its own lines  # fmt: skip
VESSELS = ([(2, -22), (-6, -45), (-22, -75), (-38, -97)], [(-4, -40), (6, -70), (12, -95)],
           [(-8, -22), (-40, -48), (-72, -66)], [(28, -24), (22, -60), (30, -92)])  # fmt: skip
ORBITAL_ROOF = [(25, -7), (36, -15.5), (48, -19), (60, -16.5), (68, -11)]
SPHENOID_WING = [(12, -9), (20, -13.5), (27, -7), (27.5, 5), (23, 13)]
SPHENOID_SINUS = [(5, 9), (9, 2), (20, -2), (26.5, 5), (22, 14), (11, 15.5)]
NASAL_BONE = ["N", ("N", 2.2, 4.5), (76.6, 5), "Rh", (77.4, 9.6), (72.6, 0), ("N", -2.4, 1.6)]
FRONTAL_PROCESS = ["N", "Rh", (75, 18), (70, 30), (62, 24), (62, 8), (65, -6)]
NASOFRONTAL_SUTURE = [("N", 0.6, -0.1), ("N", -2.5, -0.6), ("N", -5.5, -2.2)]
ORBIT_RIM = [(67, -13), (58.5, -11), (51, -3.5), (48.4, 6), (50, 14.2), ("Or", -2.6, -1.3), "Or", ("Or", 2.9, -1.3),
             ("Or", 7.5, -5)]  # fmt: skip
LATERAL_RIM = [(57, -12), (52, -4), (50, 6), (51.5, 14), ("Or", -2, -0.5), (49, 21), (44.5, 12), (45.5, 0), (51, -10)]
ZYGOMA = [(44, 9), (50, 15), ("Or", -3, 1.5), ("Or", 2, 3), (57, 27), (51, 36), (45.5, 43), (42, 44.5), (38, 41),
          (35, 31), (30, 22), (34, 14)]  # fmt: skip
KEY_RIDGE = [(56.5, 24), (51.5, 34), (46.5, 42), (43, 44.8), (39.5, 43), (36.5, 35), (33, 24)]
ZYGOMATIC_ARCH = [(42, 19), (22, 21), (4, 20), (-6, 17)]
MIDFACE = [(28, -4), (66, -8), (72, 8), (70, 40), (72, 58), (25, 57), (11, 40), (8, 14), (20, 2)]
ETHMOID = ([(30, -5), (33, 4), (31, 15)], [(40, -3), (42.5, 5), (40, 15)], [(27, 8), (38, 5.5), (49, 9)], [(50, -4),
           (54, 6)])  # fmt: skip
TUBEROSITY = [("PNS", 1.5, -5), ("PNS", 1.2, 2), "tuberosity", ("tuberosity", 3, 4)]
MAXILLARY_SINUS = [(32, 22), (44, 20.5), (54, 25), (57, 34), (53, 42), (40, 45), (30, 42), (28, 32)]
NASAL_CAVITY = [(62, 17), (73, 20), (77, 30), (74, 41), (60, 43), (40, 42.5), (25, 41), (24, 27), (42, 16)]
TURBINATE = [(31, 36), (42, 31.5), (55, 32.5), (62, 37.5), (50, 40), (38, 40.5)]
PTERYGOID_FISSURE = [(20.8, 13), (25.2, 17), (24.6, 28), (21.8, 40.5), (19.2, 30), (17.6, 19)]
PTERYGOID_PLATES = [(18, 17), (13.5, 21), (12.5, 36), (16.5, 45), (20.6, 41), (18.5, 30)]
PETROUS = [(-10, 3), (-18, -2), (-28, -3), (-37, 4), (-38, 16), (-31, 25), ("Po", -5, 10), ("Po", 0, 11),
           ("Po", 5, 8.5), ("Po", 5.5, 1), (-14, 12)]  # fmt: skip
PETROUS_RIDGE = [(-8, 0), (-18, -4.5), (-30, -4), (-42, 4), (-53, 18), (-60, 36)]
MASTOID = [(-27, 8), (-40, 6), (-49, 16), (-50, 30), (-43, 43), (-35, 50), (-29, 45), (-26, 34), (-27, 22)]
GLENOID_FOSSA = [("Co", -6.4, 5), ("Co", -5.6, 0.6), ("Co", -2.5, -2.2), ("Co", 1, -2.8), ("Co", 5.5, -1),
                 ("Co", 10.5, 3.2), ("Co", 15, 1)]  # fmt: skip
EAR_CANAL = [("Po", 0, 0), ("Po", 2.8, 1.6), ("Po", 3.7, 4.6), ("Po", 2.4, 7.6), ("Po", 0, 8.6), ("Po", -2.6, 7.4),
             ("Po", -3.7, 4.4), ("Po", -2.8, 1.6)]  # fmt: skip
PALATE = ["ANS", ("ANS", -2.5, 0.9), ("ANS", -8, 3), (57, 49.5), (45, 47.4), (32, 46.4), ("PNS", 3, 1.8), "PNS",
          ("PNS", 4, -0.5), (34, 43.9), (48, 44.6), (60, 44), ("ANS", -5, -0.9)]  # fmt: skip
NASAL_FLOOR = ["PNS", ("PNS", 4, -0.5), (34, 43.9), (48, 44.6), (60, 44), ("ANS", -5, -0.9), ("ANS", -1.5, -0.3), "ANS"]
ORAL_PALATE = ["PNS", ("PNS", 3, 1.8), (32, 46.4), (45, 47.4), (54, 49.8), (61, 56), "upper neck"]
ANTERIOR_MAXILLA = ["ANS", ("ANS", -1.8, 1.2), ("A", 0.9, -3), "A", ("A", 0.4, 2.6), "Pr"]
MAXILLA = ["ANS", ("A", 0.8, -3), "A", ("A", 0.4, 2.6), "Pr", "upper neck", ("UPM", 2, -8.4), ("UMT", 0, -8),
           ("UMT", -11, -9), "tuberosity", ("PNS", 0.8, 3.5), "PNS", ("PNS", 6, 0), (48, 44.6), (60, 44)]  # fmt: skip
MANDIBLE = ["Id", "above B", "B", ("B", 0.45, 4), "Pog", "Gn", "Me", (44.9, 99.6), (29, 91.4), (12.5, 82.4),
            (2.5, 79.6), (-3.6, 77.6), "Go", (-8.7, 71.3), (-10, 65), (-11, 55), (-12.7, 43), "Ar", ("Co", -4.3, 5),
            ("Co", -2.8, 1.2), "Co", ("Co", 3.6, 1.4), ("Co", 5.4, 4.8), ("notch", -4.5, -2.2), "notch",
            ("notch", 6, -2), ("coronoid", -4, 4.5), "coronoid", ("coronoid", 3.4, 3.6), ("R", 1.4, -9),
            ("R", 0.3, -4), "R", ("R", 0.5, 5.5),
            ("R", 3.2, 13.5), ("LMT", -17, 7), ("LMT", -9, 8.6), ("LMT", 0, 8.6), ("LPM", 0, 8.8),
            "lower neck"]  # fmt: skip
BODY = ["Id", "B", "Pog", "Gn", "Me", (44.9, 99.6), (29, 91.4), (16, 84), (11, 77), (17, 66), ("R", 5, 12),
        ("LMT", -17, 7.5), ("LMT", 0, 8.6), ("LPM", 0, 8.8), "lower neck"]  # fmt: skip
SYMPHYSIS = ["Id", "above B", "B", ("B", 0.45, 4), "Pog", "Gn", "Me", ("Me", -4.5, -1.0), ("Me", -7, -6),
             ("LIA", -4, -1), "lower neck"]  # fmt: skip
MANDIBULAR_CANAL = [(4, 52), (8, 62), (17, 73), (30, 81), (43, 84), (50, 81)]
OBLIQUE_LINE = [("R", -1, -8), ("R", -0.5, 6), ("R", 3.5, 17), (32, 76), (40, 81)]
EAR = [(-42, -2), (-34, -10), (-25, -6), (-22, 6), (-26, 22), (-33, 32), (-38, 24), (-41, 10)]
SOFT_PALATE = ["PNS", (12, 46), (3.5, 55), (0, 64), (2.5, 66.5), (7, 61), (15, 52.5), ("PNS", 2, 3)]
TONGUE = [(64, 74), (60, 62), (48, 54), (34, 52), (20, 56), (11, 66), (9, 84), (14, 100), (36, 98), (58, 90)]
ORAL_GAP = [(62, 61), (50, 52.8), (36, 50.2), (22, 52.4), (13, 59)]
HYOID = [(13.5, 113.5), (17.5, 111.8), (20.6, 114.2), (20.4, 118), (17.8, 119), (15.4, 116.4)]
HYOID_HORN = [(16, 114.5), (6, 110.5), (-4, 106.5)]


# ------------------------------------------------------------------------------------------------------ teeth and spine


@dataclass
class Tooth:
    """Outline of a tooth, its enamel and its pulp, each (n, 2) in mm; `paired`: its left and right shadows differ;
    `weight` scales its attenuation (a lateral incisor is thin, and must not hide the central one's tip and apex)."""

    outline: np.ndarray
    enamel: np.ndarray
    pulp: np.ndarray
    paired: bool
    weight: float


# Half-outlines in mm from the cusp tip: (along the axis, across), across > 0 to the face. Molars: tip = mesial cusp.
SHAPES = {
    "incisor": [(0, 0), (0.3, 0.7), (3, 1.5), (6, 2.6), (9.5, 3.4), (12, 3.2), (18, 2.3), (22, 1.1), (23, 0),
                (22, -1.1), (18, -2.3), (12, -3.2), (9.5, -3.5), (7.5, -3), (4, -1.5), (0.3, -0.7)],
    "canine": [(0, 0), (1, 1.1), (3.5, 3), (6, 3.6), (9.5, 3.3), (15, 2.7), (21, 1.6), (23, 0), (21, -1.6), (15, -2.7),
               (9.5, -3.3), (6, -3.6), (3.5, -3), (1, -1.1)],
    "premolar": [(0, 0), (0.8, 1.2), (2.2, 2.9), (4, 3.5), (7.5, 2.6), (14, 2.1), (20, 1.2), (23, 0), (20, -1.2),
                 (14, -2.1), (7.5, -2.6), (4, -3.5), (2.2, -2.9), (0.8, -1.2)],
    "molar": [(0, 0), (0.9, 1.5), (3, 2.5), (5.5, 2.2), (8, 1.7), (14, 1.5), (20, 0.2), (22.5, -1), (20.5, -2.2),
              (15, -2.5), (11.8, -3.6), (15, -4.8), (20, -6), (21.8, -7.2), (19.5, -7.6), (13, -7.3), (8, -7.1),
              (5.5, -7.7), (3, -7.9), (0.9, -6.7), (0.2, -5.4), (1.1, -4), (1.6, -2.7), (1, -1.2)],
}  # fmt: skip
CROWN = {"incisor": 10.0, "canine": 9.5, "premolar": 7.5, "molar": 7.2}  # mm


def make_tooth(
    kind: str, tip: np.ndarray, apex: np.ndarray, width: float = 1, weight: float = 1, paired: bool = True
) -> Tooth:
    """Lay a shape along tip-apex, its front to the face, its breadth times `width`. Roots stretch, crowns do not."""
    length = np.linalg.norm(apex - tip)
    axis = (apex - tip) / length
    across = width * np.array([abs(axis[1]), -axis[0] * np.sign(axis[1])])
    shape = np.array(SHAPES[kind], float)
    crown = CROWN[kind]
    root = shape[:, 0] > crown
    shape[root, 0] = crown + (shape[root, 0] - crown) * (length - crown) / (shape[:, 0].max() - crown)

    def place(local: np.ndarray) -> np.ndarray:
        return tip + local[:, :1] * axis + local[:, 1:] * across

    centre = shape[:, 1].mean() if kind == "molar" else 0.0
    cap = shape[~root]
    cap = cap[np.argsort(np.arctan2(cap[:, 1] - centre, 4 - cap[:, 0]))]
    neck = np.array([[crown * 0.72, cap[-1, 1] * 0.5 + centre * 0.5], [crown * 0.72, cap[0, 1] * 0.5 + centre * 0.5]])
    pulp = np.array([[crown * 0.55, centre], [crown, centre], [length * 0.86, centre * 0.4]])
    outline = smooth(place(shape), closed=True, step=0.2)
    return Tooth(outline, place(np.vstack([cap, neck])), place(pulp), paired, weight)


def dentition(p: Points) -> list[Tooth]:
    """All teeth of one side, midline incisors first: tips on the arch between the landmarks, axes turning gradually."""
    teeth = [make_tooth("incisor", p["UIT"], p["UIA"], 1.0, 1.1, False),
             make_tooth("incisor", p["LIT"], p["LIA"], 0.85, 1.1, False)]  # fmt: skip

    def below_palate(tip: np.ndarray) -> float:
        """Room in mm between a cusp and the nasal floor."""
        floor = np.interp(tip[0], [p["PNS"][0], p["ANS"][0]], [p["PNS"][1], p["ANS"][1]])
        return float(np.clip(tip[1] - floor + 0.5, 13, 30))

    for jaw, incisor, apex, premolar, molar, up in (("U", "UIT", "UIA", "UPM", "UMT", -1),
                                                    ("L", "LIT", "LIA", "LPM", "LMT", 1)):  # fmt: skip
        arch = p[premolar] - p[molar]
        normal = np.array([-arch[1], arch[0]]) * up / np.linalg.norm(arch)  # from the cusps to the roots
        front = (p[apex] - p[incisor]) / np.linalg.norm(p[apex] - p[incisor])
        for kind, share, length, drop in (("incisor", 0.90, 19, -0.6), ("canine", 0.60, 24, 0.5),
                                          ("premolar", 0.29, 21.5, 0.3), ("premolar", 0, 21, 0)):  # fmt: skip
            tip = p[premolar] + share * (p[incisor] - p[premolar]) - drop * normal
            width, weight = (0.8, 0.4) if kind == "incisor" else (1.0, 0.8)
            axis = normal + share**1.5 * (front - normal)
            length = min(length, below_palate(tip)) if jaw == "U" else length
            teeth.append(make_tooth(kind, tip, tip + length * axis / np.linalg.norm(axis), width, weight))
        tilt = arch / np.linalg.norm(arch) * (-0.12 if jaw == "L" else -0.05)
        for back, length in ((0, 20.5), (10.6, 19.5)):
            tip = p[molar] - back * arch / np.linalg.norm(arch) + (0.5 if back else 0) * normal
            length = min(length, below_palate(tip)) if jaw == "U" else length
            teeth.append(make_tooth("molar", tip, tip + length * (normal + tilt)))
    return teeth


# Cervical vertebral maturation (Baccetti, Franchi, McNamara 2005), stages 1-6.
CONCAVITY = {
    "C2": (0.0, 1.5, 1.7, 1.9, 2.1, 2.3),
    "C3": (0.0, 0.1, 1.6, 1.8, 2.0, 2.2),
    "C4": (0.0, 0.0, 0.2, 1.6, 1.9, 2.1),
}  # mm, depth of the lower border
HEIGHT = (0.58, 0.61, 0.66, 0.76, 0.97, 1.12)  # posterior height / depth of C3 and C4: flat, square, upright
WEDGE = (0.36, 0.30, 0.18, 0.08, 0.02, 0.0)  # how much lower the front of C3 and C4 is than the back


def cervical_spine(head: Head) -> dict[str, np.ndarray]:
    """Closed outlines (n, 2) in mm: C2 with its dens, the bodies of C3-C6, the arches of C1, facets and processes."""
    stage, size = head.stage - 1, head.spine_size
    tip = head.points["Ba"] + [1.5, 5.5]
    parts: dict[str, np.ndarray] = {}

    def lay(origin: np.ndarray, degrees: float, local: Sequence) -> np.ndarray:
        down, front = polar((0, 0), degrees, 1), polar((0, 0), degrees - 90, 1)
        local = np.array(local, float) * size
        return origin + local[:, :1] * front + local[:, 1:] * down

    degrees = head.spine_angle
    dip = CONCAVITY["C2"][stage]
    parts["C2"] = lay(tip, degrees, [(0, 0), (3.6, 1.5), (4.2, 7), (4.2, 13), (6, 17), (7, 24), (8.2, 32.2),
                                     (7.4, 33.4), (4.5, 33 - dip), (0, 32.6 - dip * 1.15), (-4.5, 32 - dip * 0.8),
                                     (-7.4, 31.6), (-7.6, 30), (-7, 22), (-5.2, 14), (-4.6, 7),
                                     (-3.6, 1.6)])  # fmt: skip
    parts["atlas front"] = lay(tip, degrees, [(6, 5), (9.5, 6.5), (11, 10), (9.5, 14), (6.4, 15), (5.2, 10)])
    parts["atlas back"] = lay(tip, degrees, [(-20, 8), (-30, 5), (-37, 6.5), (-38, 11), (-31, 13), (-20, 13)])
    parts["C2 process"] = lay(tip, degrees, [(-7, 20), (-17, 19), (-30, 22), (-42, 28), (-41, 34), (-29, 31), (-16, 29),
                                             (-7.5, 29)])  # fmt: skip
    origin = lay(tip, degrees, [(0.3, 36.4)])[0]
    half, disc = 7.3, 3.6
    for name in ("C3", "C4", "C5", "C6"):
        degrees -= 2.5  # lordosis
        back = 2 * half * HEIGHT[stage]
        drop = back * WEDGE[stage]
        dip = CONCAVITY.get(name, CONCAVITY["C4"])[stage]
        parts[name] = lay(origin, degrees, [(-half, 0.2), (-half + 1, -0.4), (0, drop * 0.55), (half - 1.4, drop),
                                            (half - 0.2, drop + 1), (half - 0.5, (drop + back) / 2 + 0.6),
                                            (half + 0.4, back - 0.4), (half - 0.5, back + 0.7),
                                            (half * 0.5, back + 0.3 - dip * 0.8), (0, back + 0.2 - dip),
                                            (-half * 0.5, back + 0.2 - dip * 0.8), (-half + 0.7, back + 0.3),
                                            (-half, back - 0.8), (-half + 0.4, back / 2)])  # fmt: skip
        parts[name + " facet"] = lay(origin, degrees, [(-6, 2), (-13, -3), (-17, -1), (-16, 7), (-13, 12), (-7, 9)])
        parts[name + " process"] = lay(origin, degrees, [(-7, 1.5), (-18, 1), (-30, 6), (-40, 11), (-39.5, 15),
                                                         (-28, 12.5), (-17, 10.5), (-7.5, back * 0.75)])  # fmt: skip
        origin = lay(origin, degrees, [(0, back + disc)])[0]
    return {name: smooth(outline, closed=True) for name, outline in parts.items()}
