"""DualEmbeddingRegressor: length and diameter from what an implant looks like, who made it, and which model it is.

Two classifiers, of companies and of models, give an embedding each, a third ViT gives visual features. All three are
projected to one width, fused, joined by the scale of the crop, and regressed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold
from core.unfreezing import Part, UnfreezingSchedule, frozen_context, set_frozen
from implants.records import LIMITS, TARGETS
from implants.vit import ImplantClassifier, ImplantVit, load_classifier

EMBEDDINGS = {"dual": ("company", "model"), "company": ("company",), "model": ("model",), "none": ()}
ATTENTION_TYPES = ("dual", "triple", "hierarchical", "cross", "concat")
LOG_VARIANCE_RANGE = (-8.0, 6.0)  # of standardised targets: neither a loss of minus infinity nor an overflow


class DualEmbeddingRegressor(nn.Module):
    """Batches of `ImplantCrops` (`image` (B, 1 or 3, S, S) in [0, 1], `scale` (B, F)) to a dict:

    - `mm` (B, T), the `targets` in mm; `standard` (B, T), the same standardised as in training
    - with `uncertainty` `log_variance` (B, T) of the standardised targets
    - `attention`: name of a weighting -> (B, number of branches), adding up to 1; of "cross" (B, branches, tokens)
    - `auxiliary`: field -> logits (B, number of its classes)

    `company` and `model` are arguments of `ImplantClassifier`, or None; `visual` are those of `ImplantVit`. In place of
    `image` a batch may hold `features`, what `encode` gave for it. Raises UserError for an `attention_type` that has
    nothing to weigh.
    """

    def __init__(
        self, visual: Mapping[str, object], company: Mapping[str, object] | None = None,
        model: Mapping[str, object] | None = None, attention_type: str = "triple", embedding_dim: int = 256,
        scale_features: int = 0, auxiliary: Mapping[str, Sequence[str]] | None = None, uncertainty: bool = False,
        dropout: float = 0.2, targets: Sequence[str] = TARGETS,
    ):  # fmt: skip
        super().__init__()
        if not targets or not set(targets) <= set(TARGETS):
            raise ValueError(f"targets {targets} are not among {', '.join(TARGETS)}")
        self.targets = tuple(targets)
        self.arguments = {
            "visual": visual, "company": company, "model": model, "attention_type": attention_type,
            "embedding_dim": embedding_dim, "scale_features": scale_features, "auxiliary": auxiliary,
            "uncertainty": uncertainty, "dropout": dropout,
            "targets": self.targets,
        }  # fmt: skip
        self.encoders = nn.ModuleDict({"visual": ImplantVit(**visual)})
        widths = {"visual": self.encoders["visual"].width}
        for name, arguments in (("company", company), ("model", model)):
            if arguments:
                self.encoders[name] = ImplantClassifier(**arguments)
                set_frozen([self.encoders[name].head], True)  # it names the class, and stays as it was trained
                widths[name] = self.encoders[name].embedding_dim
        self.fusion = fusion(attention_type, widths, embedding_dim)
        self.scale = nn.Sequential(nn.Linear(scale_features, 64), nn.GELU()) if scale_features else None
        inner = self.fusion.width + (64 + scale_features if scale_features else 0)
        self.hidden = nn.Sequential(
            nn.Linear(inner, embedding_dim), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(embedding_dim, embedding_dim), nn.GELU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.uncertainty = uncertainty
        self.head = nn.Linear(embedding_dim, len(targets) * (1 + uncertainty))
        self.auxiliary = nn.ModuleDict(
            {field: nn.Linear(embedding_dim, len(names)) for field, names in (auxiliary or {}).items()}
        )
        self.register_buffer("target_mean", torch.zeros(len(targets)))
        self.register_buffer("target_std", torch.ones(len(targets)))

    def standardise(self, targets: Tensor) -> None:
        """Takes mean and standard deviation of the training split's targets (N, T), mm."""
        self.target_mean.copy_(targets.mean(dim=0))
        self.target_std.copy_(targets.std(dim=0).clamp(min=1e-3))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features by branch of images (B, 1 or 3, S, S): `visual` (B, width), `company` and `model` (B, length of
        their embedding), and for cross-attention `tokens` (B, N, width)."""
        features = {}
        for name, encoder in self.encoders.items():
            with frozen_context(encoder):
                if name == "visual":
                    features["visual"], tokens = encoder(images)
                else:
                    features[name] = encoder.embed(images)
        return features | {"tokens": tokens} if self.fusion.needs_tokens else features

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | dict[str, Tensor]]:
        features = batch["features"] if "features" in batch else self.encode(batch["image"])
        fused, attention = self.fusion(features)
        if self.scale:
            fused = torch.cat([fused, self.scale(batch["scale"]), batch["scale"]], dim=1)
        hidden = self.hidden(fused)
        standard, *log_variance = self.head(hidden).float().split(len(self.targets), dim=1)
        result = {"standard": standard, "mm": standard * self.target_std + self.target_mean, "attention": attention}
        result["auxiliary"] = {field: head(hidden).float() for field, head in self.auxiliary.items()}
        if self.uncertainty:
            result["log_variance"] = log_variance[0].clamp(*LOG_VARIANCE_RANGE)
        return result

    def name_classes(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For "company" and "model", where there are such encoders with classes: the numbers (B,) of the likeliest
        ones, from what `encode` gave."""
        named = {name: encoder for name, encoder in self.encoders.items() if name != "visual" and encoder.classes}
        return {name: encoder.head(features[name]).argmax(dim=1) for name, encoder in named.items()}

    def unfreezing(self, half: int, full: int) -> UnfreezingSchedule:
        """All encoders frozen before epoch `half`; their upper halves learn from it on, the rest from `full` on."""
        upper: list[Part] = []
        lower: list[Part] = []
        for name, encoder in self.encoders.items():
            below, above = (encoder if name == "visual" else encoder.backbone).halves()
            lower += below
            upper += above if name == "visual" else [*above, encoder.embedding]
        return UnfreezingSchedule([(half, upper), (full, lower)])

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["DualEmbeddingRegressor", dict]:
        """(model in eval mode, config) of a run of train.py or its best/. Raises UserError for another model's."""
        state, config = load_model_folder(folder, "implant regressor")
        with fitting(folder):
            config = {"limits": LIMITS} | config
            must_hold(config, image_size=int, margin=int | float, modalities=list | None, train_sizes=list,
                      taught=dict, limits=dict)  # fmt: skip
            model = cls(**config["model"])
            model.load_state_dict(state)
            return model.eval(), config


def load_visual(path: Path, image_size: int) -> ImplantVit:
    """The ViT of a classifier (see `load_classifier`), or the visual one of a regressor, at `image_size`.

    Raises UserError for something else, and for a regressor at another size.
    """
    if Path(path).is_dir() and load_model_folder(path)[1].get("kind") == "implant regressor":
        vit = DualEmbeddingRegressor.from_folder(path)[0].encoders["visual"]
        if vit.arguments["image_size"] != image_size:
            raise UserError(
                f"{path} sees {vit.arguments['image_size']} px: add --image_size {vit.arguments['image_size']}"
            )
        return vit
    return load_classifier(path, image_size).backbone


# ------------------------------------------------------------------------------------------------------------- fusions


def fusion(attention_type: str, widths: Mapping[str, int], width: int) -> nn.Module:
    """The module of ATTENTION_TYPES for branches of `widths`. Raises UserError where it has nothing to weigh."""
    embeddings = len(widths) - 1
    if attention_type in ("dual", "hierarchical") and embeddings < 2:
        raise UserError(
            f"--attention_type {attention_type} weighs company against model, and needs --embeddings dual; take "
            "triple, cross or concat" + ("" if embeddings else "; without any embedding concat")
        )
    if attention_type in ("triple", "cross") and not embeddings:
        raise UserError(f"--attention_type {attention_type} needs an embedding; with --embeddings none take concat")
    kind = {"dual": DualAttention, "triple": TripleAttention, "hierarchical": HierarchicalAttention,
            "cross": CrossAttention, "concat": Concatenation}[attention_type]  # fmt: skip
    return kind(widths, width)


class Fusion(nn.Module):
    """What all have: the projections of the branches to one width. `forward` takes features by branch and returns
    (fused (B, `width`), attention weights by name)."""

    needs_tokens = False

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__()
        self.names, self.width = tuple(widths), width
        self.projections = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(inner, width), nn.LayerNorm(width)) for name, inner in widths.items()}
        )

    def project(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (B, W) of each branch to its embedding (B, embedding_dim)."""
        return {name: self.projections[name](features[name]) for name in self.names}


class Weighting(nn.Module):
    """Branches (B, D) each to their weighted sum (B, D) and the weights (B, n), a softmax over all of them together."""

    def __init__(self, branches: int, width: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(branches * width, width), nn.Tanh(), nn.Linear(width, branches))

    def forward(self, *branches: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.gate(torch.cat(branches, dim=1)).softmax(dim=1)
        return (weights[..., None] * torch.stack(branches, dim=1)).sum(dim=1), weights


class DualAttention(Fusion):
    """Company against model; visual features stand beside their weighted sum."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.weighting, self.width = Weighting(2, width), 2 * width

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        branches = self.project(features)
        embedding, weights = self.weighting(branches["company"], branches["model"])
        return torch.cat([branches["visual"], embedding], dim=1), {"company, model": weights}


class TripleAttention(Fusion):
    """The weighted sum of visual features and embeddings."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.weighting = Weighting(len(widths), width)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        fused, weights = self.weighting(*self.project(features).values())
        return fused, {", ".join(self.names): weights}


class HierarchicalAttention(Fusion):
    """Company against model, then their sum against visual features."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.embeddings, self.all = Weighting(2, width), Weighting(2, width)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        branches = self.project(features)
        embedding, first = self.embeddings(branches["company"], branches["model"])
        fused, second = self.all(branches["visual"], embedding)
        return fused, {"company, model": first, "visual, embeddings": second}


class CrossAttention(Fusion):
    """Each embedding looks for its own among the visual patch tokens (Vaswani et al. 2017, "Attention Is All You
    Need"); what they find stands beside the visual features. Weights are means over the heads, (B, embeddings, N)."""

    needs_tokens = True

    def __init__(self, widths: Mapping[str, int], width: int, heads: int = 4):
        super().__init__(widths, width)
        self.tokens = nn.Sequential(nn.Linear(widths["visual"], width), nn.LayerNorm(width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.width = len(widths) * width

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        branches = self.project(features)
        visual = branches.pop("visual")
        queries, tokens = torch.stack(list(branches.values()), dim=1), self.tokens(features["tokens"])
        found, weights = self.attention(queries, tokens, tokens)
        fused = torch.cat([visual, (queries + found).flatten(1)], dim=1)
        return fused, {f"{', '.join(branches)} over patches": weights}


class Concatenation(Fusion):
    """All branches side by side, without weights: the baseline."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.width = len(widths) * width

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.cat(list(self.project(features).values()), dim=1), {}
