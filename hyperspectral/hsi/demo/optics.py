"""How strongly the pigments of an eye absorb at each wavelength; phantom.py mixes a synthetic fundus from them.

Wavelengths in nm, 400-1000. Absorption is natural (base e) throughout.
"""

from collections.abc import Sequence

import numpy as np

SHORTEST, LONGEST = 400.0, 1000.0  # nm, what HAEMOGLOBIN covers

# Molar extinction of oxy- and deoxy-haemoglobin, 1/(cm·M): rounded, from memory, after S. Prahl's compilation "Optical
# Absorption of Hemoglobin" (Oregon Medical Laser Center, 1998; data of W. B. Gratzer and N. Kollias).
HAEMOGLOBIN = np.array([
    # nm, HbO2, Hb
    (400, 266200, 223300), (410, 466800, 304000), (420, 480400, 407600), (430, 246100, 528600), (440, 102600, 413300),
    (450, 62800, 103300), (460, 44500, 23390), (470, 33200, 16160), (480, 26600, 14550), (490, 23700, 16680),
    (500, 20900, 20860), (510, 20000, 25770), (520, 24200, 31590), (530, 40000, 39040), (540, 53200, 46590),
    (550, 43000, 53410), (560, 32600, 53790), (570, 44500, 45070), (580, 50100, 37020), (590, 14400, 28320),
    (600, 3200, 14680), (610, 1510, 9440), (620, 942, 6510), (630, 610, 5150), (640, 442, 4350), (650, 368, 3750),
    (660, 320, 3230), (670, 294, 2800), (680, 278, 2410), (690, 276, 2050), (700, 290, 1790), (710, 314, 1540),
    (720, 348, 1330), (730, 390, 1100), (740, 446, 1120), (750, 518, 1410), (760, 586, 1550), (770, 650, 1310),
    (780, 710, 1080), (790, 756, 891), (800, 816, 762), (820, 916, 694), (850, 1058, 691), (900, 1198, 762),
    (950, 1204, 602), (1000, 1024, 207),
])  # fmt: skip
MOLAR = 150 / 64_500  # mol/l: 150 g/l of a protein of 64 500 g/mol, as in whole blood


def blood(wavelengths: Sequence[float], oxygen: float) -> np.ndarray:
    """Absorption of whole blood (C,), 1/mm, with a share `oxygen` (0-1) of its haemoglobin oxygenated."""
    nm, oxy, deoxy = HAEMOGLOBIN.T
    extinction = [np.exp(np.interp(wavelengths, nm, np.log(values))) for values in (oxy, deoxy)]
    return np.log(10) * MOLAR / 10 * (oxygen * extinction[0] + (1 - oxygen) * extinction[1])


def melanin(wavelengths: Sequence[float]) -> np.ndarray:
    """Absorption of melanin (C,), 1 at 550 nm; a power law (Jacques 2013, "Optical properties of biological tissues").

    The exponent, -3.3, is that of melanosomes in skin.
    """
    return power_law(wavelengths, -3.3)


def lens(wavelengths: Sequence[float]) -> np.ndarray:
    """Absorption of the yellow lens (C,), 1 at 450 nm: a smooth stand-in for the table of Pokorny et al. 1987."""
    return np.exp((450 - np.asarray(wavelengths)) / 38)


def macular_pigment(wavelengths: Sequence[float]) -> np.ndarray:
    """Absorption of lutein and zeaxanthin (C,), about 1 at its peak near 460 nm, none beyond 530 nm; two Gaussians
    in the manner of Bone et al. 1992."""
    nm = np.asarray(wavelengths)
    return 0.97 * np.exp(-0.5 * ((nm - 453) / 22) ** 2) + 0.5 * np.exp(-0.5 * ((nm - 485) / 12) ** 2)


def power_law(wavelengths: Sequence[float], exponent: float) -> np.ndarray:
    """(λ / 550 nm)^exponent (C,): how scattering tissue depends on wavelength."""
    return (np.asarray(wavelengths) / 550) ** exponent
