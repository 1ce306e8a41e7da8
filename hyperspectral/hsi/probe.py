"""What features are worth: a linear classifier, exactly solved, or a segmentation head, on a spectral encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.checkpoints import fitting, load_model_folder
from core.errors import UserError, first_line
from core.seeding import sample_rng
from core.splits import position
from core.validation import DataReport
from hsi.dataset import augment
from hsi.files import H5_KEY, BadCube, Cube, read_cube, reason_of, report_bad
from hsi.mae_spectral import MAESpectral, resized

PROJECT = "hyperspectral_probe"
STRENGTHS = tuple(10.0**k for k in range(-4, 2))  # of the penalty on weights, from which cross-validation chooses
FOLDS = 5
IGNORED = 255  # the class of mask pixels that do not count, as usual in segmentation data


# ------------------------------------------------------------------------------------------------ a linear classifier


class LinearProbe(nn.Module):
    """Standardised features (N, D) to logits (N, classes): softmax regression."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear((features - self.mean) / self.std)

    @classmethod
    def fit(
        cls, features: np.ndarray, labels: np.ndarray, patients: Sequence[str], strengths: Sequence[float] = STRENGTHS
    ) -> tuple["LinearProbe", float]:
        """(the classifier, its penalty) for features (N, D) and class numbers (N,).

        The penalty is chosen by cross-validation over patients; the best mean log-likelihood of the held-out counts,
        of those of a class that others have, too. Deterministic: the problem is convex, and folds follow from the
        patients' names. Raises UserError for a single patient.
        """
        classes = int(labels.max()) + 1
        ranks = {patient: i for i, patient in enumerate(sorted(set(patients), key=position))}
        if len(ranks) < 2:
            raise UserError(f"cubes of {len(ranks)} patient have labels: cross-validation needs two, better twenty")
        fold = np.array([ranks[patient] % FOLDS for patient in patients])
        losses = np.zeros(len(strengths))
        for i, strength in enumerate(strengths):
            for held_out in np.unique(fold):
                inside = fold != held_out
                asked = ~inside & np.isin(labels, labels[inside])  # what was never seen is as unlikely as can be
                probe = cls.solve(features[inside], labels[inside], classes, strength)
                with torch.no_grad():
                    logits = probe(torch.from_numpy(features[asked]).double())
                losses[i] += float(F.cross_entropy(logits, torch.from_numpy(labels[asked]).long(), reduction="sum"))
        best = strengths[int(losses.argmin())]
        return cls.solve(features, labels, classes, best), best

    @classmethod
    def solve(cls, x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> "LinearProbe":
        """The classifier, in float64, of least mean cross-entropy plus `strength/2 Σw²` for features x (N, D) and class
        numbers y (N,)."""
        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)  # rounding errors of float32 say nothing
        x = np.hstack([(x - mean) / std, np.ones((len(x), 1))])  # (N, D + 1), the last for the biases
        truth = np.eye(classes)[y]

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weight = parameters.reshape(classes, -1)
            penalised = np.pad(weight[:, :-1], ((0, 0), (0, 1)))
            surprise = log_softmax(x @ weight.T, axis=1)
            gradient = (np.exp(surprise) - truth).T @ x / len(x) + strength * penalised
            return strength / 2 * (penalised**2).sum() - (truth * surprise).sum() / len(x), gradient.ravel()

        # That of torch can take a thousand fruitless line searches near the minimum.
        options = {"maxiter": 1000, "maxcor": 30, "ftol": 0, "gtol": 1e-7}
        found = minimize(objective, np.zeros(truth.shape[1] * x.shape[1]), jac=True, method="L-BFGS-B", options=options)
        probe, solution = cls(x.shape[1] - 1, classes).double(), torch.from_numpy(found.x).view(classes, -1)
        state = {"mean": mean, "std": std, "linear.weight": solution[:, :-1], "linear.bias": solution[:, -1]}
        probe.load_state_dict({name: torch.as_tensor(values) for name, values in state.items()})
        return probe


# ---------------------------------------------------------------------------------------------------------- heads


class SegmentationHead(nn.Module):
    """Features (B, S, h, w, D) and z-scores (B, C, H, W) to logits (B, K, H, W).

    A token sees what lies around, but is 25 px wide; the spectrum of each pixel says where exactly. Both are brought
    to the same width, and mixed by convolutions: one level of what UNETR does (Hatamizadeh et al. 2022).
    """

    def __init__(self, tokens: int, bands: int, classes: int, width: int = 64):
        super().__init__()
        self.context = nn.Conv2d(tokens, width, 1)
        self.spectrum = nn.Conv2d(bands, width, 1)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )  # fmt: skip

    def forward(self, grid: Tensor, cube: Tensor) -> Tensor:
        context = self.context(grid.permute(0, 1, 4, 2, 3).flatten(1, 2))  # (B, width, h, w)
        context = F.interpolate(context, cube.shape[2:], mode="bilinear", align_corners=False)
        return self.mix(torch.cat([context, self.spectrum(cube)], dim=1))


class ProbeModel(nn.Module):
    """Cubes (B, C, H, W) in raw units to logits: (B, classes), or with `segment` (B, classes, H, W).

    A classification is linear in the pooled features. The encoder takes no gradient while it is frozen.
    """

    def __init__(self, mae: MAESpectral, classes: int, segment: bool):
        super().__init__()
        mae.decoder = nn.Identity()  # only the encoder is asked
        width = mae.encoder.embed.out_features
        bands, groups = len(mae.mean), mae.grid[0]
        self.mae, self.segment = mae, segment
        self.head = SegmentationHead(groups * width, bands, classes) if segment else LinearProbe(width, classes)

    def forward(self, cube: Tensor) -> Tensor:
        features = self.mae.encode(cube)
        return self.head(features.grid, self.mae.normalize(cube)) if self.segment else self.head(features.pooled)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are places, not weights."""
        return {f"mae.{name}" for name in self.mae.no_weight_decay() if name.startswith("encoder.")}

    def layer_decay(self, decay: float) -> dict[str, float]:
        """Factors on the learning rate by name: `decay` to the number of layers above (Clark et al. 2020, ELECTRA)."""
        depth = len(self.mae.encoder.blocks)
        factors = {f"mae.encoder.blocks.{i}.": decay ** (depth - i) for i in range(depth)}
        return factors | {f"mae.encoder.{name}.": decay ** (depth + 1) for name in ("embed", "positions")}

    @classmethod
    def from_folder(cls, folder: Path, img_size: Sequence[int] | None = None) -> tuple["ProbeModel", dict]:
        """(model in eval mode, config) of the `best/` that probe.py wrote, for another size of cubes where it is given.

        Raises UserError if it is something else, or if the size does not fit.
        """
        state, config = load_model_folder(folder, PROJECT)
        with fitting(folder):
            mae = MAESpectral(**config["model"] | ({"img_size": img_size} if img_size else {}))
            model = cls(mae, len(config["classes"]), config["task"] == "segment")
            model.load_state_dict(resized(state, config["model"], config["wavelengths"], mae, config["wavelengths"]))
            return model.eval(), config


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus 1 − mean soft Dice over the classes, of each picture: small classes count like large ones.

    logits (B, K, H, W), masks (B, H, W) class numbers, `IGNORED` where nothing is known. The sum of the two is that of
    Isensee et al. 2021, nnU-Net.
    """
    logits, known = logits.float(), (masks != IGNORED)[:, None]
    truth = F.one_hot(masks.where(known[:, 0], 0), logits.shape[1]).movedim(3, 1) * known
    probabilities = logits.softmax(dim=1) * known
    overlap = (probabilities * truth).sum(dim=(2, 3))
    dice = (2 * overlap + 1) / (probabilities.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    return F.cross_entropy(logits, masks, ignore_index=IGNORED) + 1 - dice.mean()


def dice(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """`2 |A ∩ B| / (|A| + |B|)` of each picture and class, (B, K), from class numbers (B, H, W); NaN where both lack
    the class. Pixels of class `IGNORED` in `masks` do not count."""
    known = masks != IGNORED
    here = [torch.stack([(x == k) & known for k in range(classes)], dim=1).flatten(2) for x in (predicted, masks)]
    return 2 * (here[0] & here[1]).sum(dim=2) / (here[0].sum(dim=2) + here[1].sum(dim=2))


# ---------------------------------------------------------------------------------------------------------- data


class LabelledDataset(Dataset):
    """An item is a dict of `cube` float32 (C, H, W) in the files' units, `target`, `index`, `id`.

    `target` is the number of the cube's label in `classes`, or where that is None its mask, int64 (H, W). With `std`
    (C,), cubes are turned and changed a little, and masks with them; this depends on (seed, epoch, index) alone.
    """

    def __init__(
        self,
        cubes: Sequence[Cube],
        key: str = H5_KEY,
        classes: Sequence[str] | None = None,
        std: np.ndarray | None = None,
        seed: int = 0,
    ):
        self.cubes, self.key, self.classes, self.std = list(cubes), key, classes, std
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.cubes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        cube = self.cubes[index]
        pixels = read_cube(cube.file, self.key)
        plane = pixels[0] if self.classes else read_mask(cube.mask_file, pixels.shape[1:])  # a label turns with nothing
        if self.std is not None:
            pixels, plane = augment(pixels, plane, sample_rng(self.seed, self.epoch, index), self.std)
        target = self.classes.index(cube.label) if self.classes else torch.from_numpy(plane).long()
        return {"cube": torch.from_numpy(pixels), "target": target, "index": index, "id": cube.id}


def with_labels(splits: dict[str, list[Cube]], report: DataReport) -> tuple[dict[str, list[Cube]], list[str]]:
    """(cubes that have a label which occurs in train, these labels in alphabetical order).

    The others are added to the `report`. Raises UserError for fewer than two labels.
    """
    classes = sorted({cube.label for cube in splits["train"]} - {""})
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise UserError(f"a classification needs two labels among the train cubes, there is {found}: fill column label")
    for cube in (cube for part in splits.values() for cube in part):
        if cube.label not in classes:
            report_bad(report, cube, f"label not in train: {cube.label}" if cube.label else "no label")
    return {split: [cube for cube in part if cube.label in classes] for split, part in splits.items()}, classes


def with_masks(
    splits: dict[str, list[Cube]], size: tuple[int, int], names: Sequence[str], report: DataReport
) -> tuple[dict[str, list[Cube]], list[str]]:
    """(cubes that have a mask of `size` and of classes that occur in train, the classes' names).

    Reads all masks. The names are `names`, or the numbers where there are none. The other cubes are added to the
    `report`. Raises UserError if the masks of train that can be used have fewer than two classes, or if `names` are
    not as many, or two of them alike.
    """
    found = {}  # ID -> classes in its mask
    for cube in (cube for part in splits.values() for cube in part):
        try:
            if cube.mask_file is None:
                raise BadCube(f"{cube.file}: no mask: fill column mask_file")
            mask = read_mask(cube.mask_file, size)
            if (mask == IGNORED).all():
                raise BadCube(f"{cube.mask_file}: mask without classes: all pixels are {IGNORED}, which is unknown")
            found[cube.id] = set(np.flatnonzero(np.bincount(mask[mask != IGNORED])).tolist())
        except BadCube as error:
            report_bad(report, cube, reason_of(error, cube.mask_file or cube.file))
    classes = set().union(*(found[cube.id] for cube in splits["train"] if cube.id in found))
    if len(classes) < 2:
        seen = f"have class {classes.pop()} alone" if classes else "cannot be used"
        raise UserError(
            f"a segmentation needs masks of two classes, 0 and 1, and those of train {seen}: see the column mask_file; "
            f"{IGNORED} is no class, but unknown"
        )
    count = 1 + max(classes)
    if names and len(names) != count:
        raise UserError(f"--class_names are {len(names)}, but the masks of train have the classes 0 to {count - 1}")
    if len(set(names)) < len(names):
        raise UserError(f"--class_names {' '.join(names)}: two are alike")
    for cube in (cube for part in splits.values() for cube in part):
        if unknown := found.get(cube.id, set()) - classes:
            report_bad(report, cube, f"class not in train: {', '.join(map(str, sorted(unknown)))}")
    usable = {split: [c for c in part if found.get(c.id, {-1}) <= classes] for split, part in splits.items()}
    return usable, list(names) or [str(k) for k in range(count)]


def read_mask(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Class numbers uint8 (H, W) of a picture of one channel, or of palette indices. Raises BadCube if it is none."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "P", "1"):
                raise BadCube(f"{file}: no mask: {image.mode} pixels; store class numbers in one channel of 8 bits")
            mask = np.array(image, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of damaged files
        raise BadCube(f"{file}: no mask that can be read: {first_line(error)}") from error
    if mask.shape != tuple(size):
        raise BadCube(f"{file}: mask of another size: {mask.shape[0]}x{mask.shape[1]} px, not {size[0]}x{size[1]}")
    return mask
