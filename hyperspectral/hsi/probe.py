"""Models and data of a spectral probe on an encoder: a linear classifier with an exact solution, or a segmentation
head.

The script probe.py fits and evaluates probes; probe_report.py writes the results.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from core.checkpoints import fitting, load_model_folder
from core.errors import UserError, first_line
from core.files import must_hold
from core.processes import shared
from core.seeding import sample_rng
from core.splits import position
from core.validation import DataReport
from hsi.dataset import CubeDataset, augment
from hsi.files import H5_KEY, BadCube, Cube, Splits, leave_out, read_cube
from hsi.mae_spectral import MAESpectral, resized

KIND = "spectral probe"  # in config.json
STRENGTHS = tuple(10.0**k for k in range(-4, 2))  # weight penalties for cross-validation
FOLDS = 5
IGNORED = 255  # class of unknown mask pixels, a convention of segmentation data
COLOURS = ("#000000", "#e9c46a", "#d1495b", "#4cc9f0", "#70e000", "#9d4edd", "#f77f00", "#ffffff")  # of classes


# ------------------------------------------------------------------------------------------------ a linear classifier


class LinearProbe(nn.Module):
    """Softmax regression: features (N, D), standardised, to logits (N, classes)."""

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
        """(classifier, weight penalty) for features (N, D) and class numbers (N,).

        The penalty has the best held-out log-likelihood in cross-validation over patients, over cubes whose class
        occurs in the other folds. Deterministic: a convex problem, with folds by patient name. Raises UserError for a
        single patient.
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
                asked = ~inside & np.isin(labels, labels[inside])  # unseen classes have no likelihood
                probe = cls.solve(features[inside], labels[inside], classes, strength)
                with torch.no_grad():
                    logits = probe(torch.from_numpy(features[asked]).double())
                losses[i] += float(F.cross_entropy(logits, torch.from_numpy(labels[asked]).long(), reduction="sum"))
        best = strengths[int(losses.argmin())]
        return cls.solve(features, labels, classes, best), best

    @classmethod
    def solve(cls, x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> "LinearProbe":
        """Classifier in float64 with minimal mean cross-entropy plus `strength/2 Σw²`, for features x (N, D) and class
        numbers y (N,)."""
        from scipy.optimize import minimize
        from scipy.special import log_softmax

        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)  # below: rounding errors of float32
        x = np.hstack([(x - mean) / std, np.ones((len(x), 1))])  # (N, D + 1), ones for the biases
        truth = np.eye(classes)[y]

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weight = parameters.reshape(classes, -1)
            penalised = np.pad(weight[:, :-1], ((0, 0), (0, 1)))
            surprise = log_softmax(x @ weight.T, axis=1)
            gradient = (np.exp(surprise) - truth).T @ x / len(x) + strength * penalised
            return strength / 2 * (penalised**2).sum() - (truth * surprise).sum() / len(x), gradient.ravel()

        # Not torch's L-BFGS, whose line search may stall near the minimum.
        options = {"maxiter": 1000, "maxcor": 30, "ftol": 0, "gtol": 1e-7}
        found = minimize(objective, np.zeros(truth.shape[1] * x.shape[1]), jac=True, method="L-BFGS-B", options=options)
        probe, solution = cls(x.shape[1] - 1, classes).double(), torch.from_numpy(found.x).view(classes, -1)
        state = {"mean": mean, "std": std, "linear.weight": solution[:, :-1], "linear.bias": solution[:, -1]}
        probe.load_state_dict({name: torch.as_tensor(values) for name, values in state.items()})
        return probe


# ---------------------------------------------------------------------------------------------------------- heads


class SegmentationHead(nn.Module):
    """Segmentation head: features (B, S, h, w, D) and z-scores (B, C, H, W) to logits (B, K, H, W).

    Tokens have context but are 25 px wide; the spectrum of each pixel adds resolution. Both are projected to one width
    and mixed by convolutions, as in one level of UNETR (Hatamizadeh et al. 2022).
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
    """Probe on an encoder: cubes (B, C, H, W) in raw units to logits (B, classes), or (B, classes, H, W) if `segment`.

    Classification is linear in the pooled features. `taught`: numbers and names of the classes with training cases; in
    eval mode, the logits of other classes are −∞.
    """

    def __init__(self, mae: MAESpectral, classes: int, segment: bool):
        super().__init__()
        self.taught: dict[int, str] = {}  # empty: all
        mae.decoder = nn.Identity()  # only the encoder is used
        width = mae.encoder.embed.out_features
        bands, groups = len(mae.mean), mae.grid[0]
        self.mae, self.segment = mae, segment
        self.head = SegmentationHead(groups * width, bands, classes) if segment else LinearProbe(width, classes)

    def forward(self, cube: Tensor) -> Tensor:
        features = self.mae.encode(cube)
        logits = self.head(features.grid, self.mae.normalize(cube)) if self.segment else self.head(features.pooled)
        if self.taught and not self.training:
            untaught = [k for k in range(logits.shape[1]) if k not in self.taught]
            logits[:, untaught] = -torch.inf
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of the position embeddings, which have no weight decay."""
        return {f"mae.{name}" for name in self.mae.no_weight_decay() if name.startswith("encoder.")}

    def layer_decay(self, decay: float) -> dict[str, float]:
        """Learning rate factors by name: `decay` to the power of the number of layers above (Clark et al. 2020,
        ELECTRA)."""
        depth = len(self.mae.encoder.blocks)
        factors = {f"mae.encoder.blocks.{i}.": decay ** (depth - i) for i in range(depth)}
        return factors | {f"mae.encoder.{name}.": decay ** (depth + 1) for name in ("embed", "positions")}

    @classmethod
    def from_folder(cls, folder: Path, img_size: Sequence[int] | None = None) -> tuple["ProbeModel", dict]:
        """(model in eval mode, config) of a `best/` folder of probe.py, optionally for cubes of `img_size` (H, W).

        Raises UserError for other models and for a size that does not fit.
        """
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, wavelengths=list, classes=list, task=str, taught=dict)
            mae = MAESpectral(**config["model"] | ({"img_size": img_size} if img_size else {}))
            model = cls(mae, len(config["classes"]), config["task"] == "segment")
            model.load_state_dict(resized(state, config["model"], config["wavelengths"], mae, config["wavelengths"]))
            counts = config["taught"]["classes"]
            model.taught = {k: name for k, name in enumerate(config["classes"]) if counts[name]}
            return model.eval(), config


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus 1 − mean soft Dice over classes per picture, which weights small and large classes equally.

    logits (B, K, H, W), masks (B, H, W) class numbers, or `IGNORED`. The sum of Isensee et al. 2021, nnU-Net.
    """
    logits, known = logits.float(), (masks != IGNORED)[:, None]
    truth = F.one_hot(masks.where(known[:, 0], 0), logits.shape[1]).movedim(3, 1) * known
    probabilities = logits.softmax(dim=1) * known
    overlap = (probabilities * truth).sum(dim=(2, 3))
    dice = (2 * overlap + 1) / (probabilities.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    return F.cross_entropy(logits, masks, ignore_index=IGNORED) + 1 - dice.mean()


def dice(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Dice `2 |A ∩ B| / (|A| + |B|)` (B, K) of each picture and class, from class numbers (B, H, W); NaN if both lack
    the class. Pixels of class `IGNORED` in `masks` do not count."""
    known = masks != IGNORED
    here = [torch.stack([(x == k) & known for k in range(classes)], dim=1).flatten(2) for x in (predicted, masks)]
    return 2 * (here[0] & here[1]).sum(dim=2) / (here[0].sum(dim=2) + here[1].sum(dim=2))


# ---------------------------------------------------------------------------------------------------------- data


class LabelledDataset(CubeDataset):
    """Items are dicts of `cube` float32 (C, H, W) in the files' units, `target`, `index`, `id`.

    `target`: number of the cube's label in `classes`, or without `classes` the mask, int64 (H, W). With `std` (C,),
    cubes and masks are augmented, depending on (seed, epoch, index) only.
    """

    def __init__(
        self, cubes: Sequence[Cube], key: str = H5_KEY, classes: Sequence[str] | None = None,
        std: np.ndarray | None = None, seed: int = 0,
    ):  # fmt: skip
        super().__init__(cubes, key, seed=seed)
        self.classes, self.std = classes, std

    def __getitem__(self, index: int) -> dict:
        cube = self.cubes[index]
        pixels = read_cube(cube.file, self.key)
        plane = pixels[0] if self.classes else read_mask(cube.mask_file, pixels.shape[1:])  # labels are not transformed
        if self.std is not None:
            pixels, plane = augment(pixels, plane, sample_rng(self.seed, self.epoch, index), self.std)
        target = self.classes.index(cube.label) if self.classes else torch.from_numpy(plane).long()
        return {"cube": torch.from_numpy(pixels), "target": target, "index": index, "id": cube.id}


def with_labels(splits: Splits, report: DataReport) -> tuple[dict[str, list[Cube]], dict[str, int]]:
    """(cubes by split whose label occurs in train; label -> number of train cubes, in alphabetical order).

    The others are added to the `report`. Raises UserError for fewer than two labels.
    """
    labels = [cube.label for cube in splits["train"] if cube.label]
    classes = {label: labels.count(label) for label in sorted(set(labels))}
    bad = {
        cube.id: f"label not in train: {cube.label}; train has {', '.join(classes)}" if cube.label else "no label"
        for cube in (cube for part in splits.values() for cube in part if cube.label not in classes)
    }
    usable = leave_out(splits, bad, report)
    if len(classes) < 2:
        found = f"only {labels[0]!r}" if classes else "none"
        raise UserError(f"a classification needs two labels among the train cubes, there is {found}: fill column label")
    return usable, classes


def read_classes(splits: Splits, size: tuple[int, int], accelerator=None) -> dict[str, set[int] | str]:
    """ID -> classes in the cube's mask of `size` (H, W), or the problem of the mask.

    Each mask is read once; the ranks of an accelerate.Accelerator share them and return the same results.
    """

    def classes_of(cube: Cube) -> set[int] | str:
        try:
            if cube.mask_file is None:
                return "no mask: fill column mask_file"
            mask = read_mask(cube.mask_file, size)
        except BadCube as error:
            return error.reason
        found = set(np.flatnonzero(np.bincount(mask[mask != IGNORED])).tolist())
        return found or f"mask without classes: all pixels are {IGNORED}, which is unknown"

    cubes = [cube for part in splits.values() for cube in part]
    results = shared(accelerator, classes_of, cubes) if accelerator else map(classes_of, cubes)
    return {cube.id: result for cube, result in zip(cubes, results, strict=True)}


def with_masks(
    splits: Splits, found: Mapping[str, set[int] | str], names: Sequence[str], report: DataReport
) -> tuple[dict[str, list[Cube]], dict[str, int]]:
    """(cubes by split whose mask classes occur in train; class name -> number of train cubes with it, from class 0).

    `found`: of `read_classes`. Class names are `names`, or else the numbers. The other cubes are added to the `report`.
    Raises UserError for fewer than two classes in train, and for too few or duplicate `names`.
    """
    in_train = [classes for cube in splits["train"] if isinstance(classes := found[cube.id], set)]
    classes, bad = set().union(*in_train), {}
    for name, result in found.items():
        if isinstance(result, str):
            bad[name] = result
        elif unknown := result - classes:
            unknown, known = (", ".join(map(str, sorted(numbers))) for numbers in (unknown, classes))
            bad[name] = f"class not in train: {unknown}; train has {known}"
    usable = leave_out(splits, bad, report)
    if len(classes) < 2:
        seen = f"have class {classes.pop()} alone" if classes else "cannot be used"
        raise UserError(
            f"a segmentation needs masks of two classes, 0 and 1, and those of train {seen}: see the column mask_file; "
            f"{IGNORED} is no class, but unknown"
        )
    count = 1 + max(classes)
    if names and len(names) < count:
        raise UserError(f"--class_names are {len(names)}, but the masks of train have the classes 0 to {count - 1}")
    if len(set(names)) < len(names):
        raise UserError(f"--class_names {' '.join(names)}: two are alike")
    names = names or [str(k) for k in range(count)]
    return usable, {name: sum(k in classes for classes in in_train) for k, name in enumerate(names)}


def read_mask(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Class numbers uint8 (H, W) of a picture with one channel or with a palette. Raises BadCube for others."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "P", "1"):
                raise BadCube(file, f"no mask: {image.mode} pixels; store class numbers in one channel of 8 bits")
            mask = np.array(image, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of Pillow, for damaged files
        raise BadCube(file, f"no mask that can be read: {first_line(error)}") from error
    if mask.shape != tuple(size):
        raise BadCube(file, f"mask of another size: {mask.shape[0]}x{mask.shape[1]} px, not {size[0]}x{size[1]}")
    return mask


def palette(classes: int) -> list[int]:
    """PNG palette of the classes: red, green and blue (0 to 255) in turn."""
    return [part for k in range(classes) for part in bytes.fromhex(COLOURS[k % len(COLOURS)][1:])]


def mask_picture(mask: np.ndarray, classes: int) -> Image.Image:
    """Picture of class numbers (H, W) with a palette of the classes' colours."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette(classes))
    return image
