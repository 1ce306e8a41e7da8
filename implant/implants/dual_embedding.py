"""DualEmbeddingRegressor: length and diameter from visual features, company embedding and model embedding.

Visual features of a ViT and the embeddings of a company and a model classifier are projected to one width, fused,
concatenated with the scale features of the crop, and regressed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold
from core.unfreezing import Part, UnfreezingSchedule, frozen_context, set_frozen
from implants.records import TARGETS
from implants.vit import ImplantClassifier, ImplantVit, load_classifier

EMBEDDINGS = {"dual": ("company", "model"), "company": ("company",), "model": ("model",), "none": ()}
ATTENTION_TYPES = ("dual", "triple", "hierarchical", "cross", "concat")
LOG_VARIANCE_RANGE = (-8.0, 6.0)  # of standardised targets; keeps the loss finite


class DualEmbeddingRegressor(nn.Module):
    """Batches of `ImplantCrops` (`image` (B, 1 or 3, S, S) in [0, 1], `scale` (B, F)) to a dict:

    - `mm` (B, T), the `targets` in mm; `standard` (B, T), the standardised targets
    - `log_variance` (B, T) of the standardised targets, with `uncertainty`
    - `attention`: name of a weighting -> (B, branches) with sum 1; for "cross" (B, branches, tokens)
    - `auxiliary`: field -> logits (B, number of its classes)

    `visual`: arguments of `ImplantVit`; `company`, `model`: arguments of `ImplantClassifier`, or None. A batch may hold
    `features`, the output of `encode`, instead of `image`. Raises UserError for an `attention_type` that does not fit
    the branches, ValueError for unknown `targets`.
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
                set_frozen([self.encoders[name].head], True)  # keeps the class predictions
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
        self.fields = list(auxiliary or {})  # not keys of a ModuleDict, which refuses "type" and dots
        self.auxiliary = nn.ModuleList(nn.Linear(embedding_dim, len(names)) for names in (auxiliary or {}).values())
        self.register_buffer("target_mean", torch.zeros(len(targets)))
        self.register_buffer("target_std", torch.ones(len(targets)))

    def standardise(self, targets: Tensor) -> None:
        """Sets mean and SD of the standardisation from the training targets (N, T) in mm."""
        self.target_mean.copy_(targets.mean(dim=0))
        self.target_std.copy_(targets.std(dim=0).clamp(min=1e-3))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images (B, 1 or 3, S, S) in [0, 1] by branch: `visual` (B, width), `company` and `model`
        (B, embedding_dim of the classifier), and for cross-attention `tokens` (B, N, width)."""
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
        result["auxiliary"] = {f: head(hidden).float() for f, head in zip(self.fields, self.auxiliary, strict=True)}
        if self.uncertainty:
            result["log_variance"] = log_variance[0].clamp(*LOG_VARIANCE_RANGE)
        return result

    def name_classes(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """ "company", "model" -> indices (B,) of the predicted classes, from `features` of `encode`, for encoders with
        classes."""
        named = {name: encoder for name, encoder in self.encoders.items() if name != "visual" and encoder.classes}
        return {name: encoder.head(features[name]).argmax(dim=1) for name, encoder in named.items()}

    def unfreezing(self, half: int, full: int) -> UnfreezingSchedule:
        """Schedule: encoders frozen before epoch `half`, upper halves trained from `half` on, all from `full` on."""
        upper: list[Part] = []
        lower: list[Part] = []
        for name, encoder in self.encoders.items():
            below, above = (encoder if name == "visual" else encoder.backbone).halves()
            lower += below
            upper += above if name == "visual" else [*above, encoder.embedding]
        return UnfreezingSchedule([(half, upper), (full, lower)])

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["DualEmbeddingRegressor", dict]:
        """(model in eval mode, config) of a run of train.py or its best/. Raises UserError for missing or other
        models."""
        state, config = load_model_folder(folder, "implant regressor")
        with fitting(folder):
            must_hold(config, image_size=int, margin=int | float, modalities=list | None, train_sizes=list,
                      taught=dict, limits=dict)  # fmt: skip
            model = cls(**config["model"])
            if not all(config["taught"].get("targets", {}).get(target) for target in model.targets):
                raise ValueError("a target without training cases")
            model.load_state_dict(state)
            return model.eval(), config


def load_visual(path: Path, image_size: int) -> ImplantVit:
    """ViT of a classifier (see `load_classifier`) or visual ViT of a regressor, at `image_size` px.

    Raises UserError for other models, and for a regressor of another size.
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
    """Fusion module of ATTENTION_TYPES for branches -> widths. Raises UserError if it does not fit the branches."""
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
    """Base class with the projections of the branches to one width. `forward`: features by branch to (fused
    (B, output width), attention weights by name)."""

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
    """n branches (B, D) to their weighted sum (B, D) and the softmax weights (B, n)."""

    def __init__(self, branches: int, width: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(branches * width, width), nn.Tanh(), nn.Linear(width, branches))

    def forward(self, *branches: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.gate(torch.cat(branches, dim=1)).softmax(dim=1)
        return (weights[..., None] * torch.stack(branches, dim=1)).sum(dim=1), weights


class DualAttention(Fusion):
    """Visual features, concatenated with the weighted sum of company and model."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.weighting, self.width = Weighting(2, width), 2 * width

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        branches = self.project(features)
        embedding, weights = self.weighting(branches["company"], branches["model"])
        return torch.cat([branches["visual"], embedding], dim=1), {"company, model": weights}


class TripleAttention(Fusion):
    """Weighted sum of visual features and embeddings."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.weighting = Weighting(len(widths), width)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        fused, weights = self.weighting(*self.project(features).values())
        return fused, {", ".join(self.names): weights}


class HierarchicalAttention(Fusion):
    """Weighted sum of company and model, then of that and the visual features."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.embeddings, self.all = Weighting(2, width), Weighting(2, width)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        branches = self.project(features)
        embedding, first = self.embeddings(branches["company"], branches["model"])
        fused, second = self.all(branches["visual"], embedding)
        return fused, {"company, model": first, "visual, embeddings": second}


class CrossAttention(Fusion):
    """Visual features, concatenated with cross-attention of each embedding over the patch tokens (Vaswani et al. 2017,
    "Attention Is All You Need"). Weights (B, embeddings, N) are means over the heads."""

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
    """Concatenation of all branches without weights, the baseline."""

    def __init__(self, widths: Mapping[str, int], width: int):
        super().__init__(widths, width)
        self.width = len(widths) * width

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.cat(list(self.project(features).values()), dim=1), {}
