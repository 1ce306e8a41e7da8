"""Vision transformers of timm, and the classifier that provides the company or model embedding.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; sizes and weights of Steiner et al. 2022, "How to train your
ViT?"; convolutional stem of Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.backbones import timm_backbone
from core.checkpoints import fitting, load_model_folder, load_weights
from core.errors import UserError
from core.files import must_hold
from core.unfreezing import Part

WIDTHS = {"tiny": 192, "small": 384, "base": 768}  # of features; all have 12 blocks of 16-px patches
PATCH = 16  # px


class ImplantVit(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1], S = `image_size`, to features (B, width) and patch tokens (B, N, width).

    `pretrained`: ImageNet weights from the hub; `weights`: from a file. `conv_stem`: four convolutions instead of the
    linear patch embedding, better on small data sets; for random weights only. Raises UserError for unavailable
    weights, pretrained weights with `conv_stem`, and an `image_size` that is no multiple of 16.
    """

    def __init__(
        self, size: str = "base", image_size: int = 224, conv_stem: bool = False, pretrained: bool = False,
        weights: Path | None = None,
    ):  # fmt: skip
        super().__init__()
        if conv_stem and (pretrained or weights):
            raise UserError("ImageNet weights are for patches: leave out --conv_stem, or add --no-pretrained")
        import timm  # slow import

        if image_size < PATCH or image_size % PATCH:
            raise UserError(f"--image_size {image_size} is no multiple of {PATCH}, the side of the patches")
        name = f"vit_{size}_patch16_224"
        stem = {"embed_layer": ConvStem} if conv_stem else {}
        self.vit = timm_backbone(name, pretrained, weights, num_classes=0, img_size=image_size, **stem)
        self.width = self.vit.num_features
        self.arguments = {"size": size, "image_size": image_size, "conv_stem": conv_stem}
        pretraining = timm.get_pretrained_cfg(name)
        for buffer in ("mean", "std"):
            value = torch.tensor(getattr(pretraining, buffer)).view(3, 1, 1)
            self.register_buffer(buffer, value, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vit.forward_features((images - self.mean) / self.std)  # (B, 1 + N, width)
        return self.vit.forward_head(tokens), tokens[:, self.vit.num_prefix_tokens :]

    def halves(self) -> tuple[list[Part], list[Part]]:
        """(lower, upper): patch and position embeddings with the first half of the blocks; other half with the norm."""
        vit, half = self.vit, len(self.vit.blocks) // 2
        lower = [vit.cls_token, vit.pos_embed, vit.patch_embed, vit.norm_pre, *vit.blocks[:half]]
        return lower, [*vit.blocks[half:], vit.norm, vit.fc_norm]


class ConvStem(nn.Module):
    """Replacement of timm's `PatchEmbed`, with its arguments: (B, 3, S, S) to (B, (S / 16)², width)."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_):
        from timm.models.levit import Stem16

        super().__init__()
        self.grid_size = (img_size // patch_size,) * 2
        self.num_patches = self.grid_size[0] ** 2
        self.stem = Stem16(in_chans, embed_dim, nn.Hardswish)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images).flatten(2).transpose(1, 2)


class ImplantClassifier(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] to logits (B, number of classes), through an embedding (B, embedding_dim).

    `classes`: names; `dropout`: rate before the head; other arguments as `ImplantVit`. Attribute `taught`: class ->
    number of training cases, empty if unknown.
    """

    def __init__(
        self, size: str = "base", classes: Sequence[str] = (), embedding_dim: int = 256, image_size: int = 224,
        dropout: float = 0.1, conv_stem: bool = False, pretrained: bool = False, weights: Path | None = None,
    ):  # fmt: skip
        super().__init__()
        self.backbone = ImplantVit(size, image_size, conv_stem, pretrained, weights)
        self.embedding = nn.Linear(self.backbone.width, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embedding_dim, len(classes))
        self.classes, self.embedding_dim, self.taught = list(classes), embedding_dim, {}
        self.arguments = {
            "size": size, "classes": self.classes, "embedding_dim": embedding_dim, "image_size": image_size,
            "dropout": dropout, "conv_stem": conv_stem,
        }  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] to logits (B, number of classes)."""
        return self.head(self.dropout(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] to embeddings (B, embedding_dim)."""
        return self.embedding(self.backbone(images)[0])


def load_classifier(path: Path, image_size: int, target: str = "") -> ImplantClassifier:
    """Classifier in eval mode, from a run of train_classifier.py, its best/, or a `.pth` or `.safetensors` file.

    A file holds the weights of a ViT, a linear layer on its features (the embedding) and optionally one on that (the
    head), recognised by shape. Its classes are numbered and `taught` is empty. Position embeddings are resampled to
    `image_size`. Raises UserError for other files and folders, and for a run that classifies another `target`.
    """
    from timm.layers import resample_abs_pos_embed

    path, config = Path(path), {"taught": {}}
    if path.is_dir():
        state, config = load_model_folder(path, "implant classifier")
    else:
        state, config["model"] = _known_by_shape(load_weights(path), path)
    with fitting(path):
        must_hold(config, model=dict, taught=dict)
        for other in config["taught"] if target else ():
            if other != target:
                raise UserError(f"{path} classifies {other}, not {target}; give a run with --target {target}")
        model = ImplantClassifier(**config["model"] | {"image_size": image_size})
        model.taught = next(iter(config["taught"].values()), {})
        positions = "backbone.vit.pos_embed"
        grid = model.backbone.vit.patch_embed.grid_size
        state[positions] = resample_abs_pos_embed(state[positions], grid, num_prefix_tokens=1)
        model.load_state_dict(state)
    return model.eval()


def _known_by_shape(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict]:
    """(state of an ImplantClassifier, its arguments) from weights of any names. Raises UserError."""
    marks = [name for name in state if name.endswith("patch_embed.proj.weight")]
    width = len(state[marks[0]]) if len(marks) == 1 else None
    if width not in WIDTHS.values():
        raise UserError(f"{path} holds no ViT of {', '.join(map(str, WIDTHS.values()))} channels (tiny, small, base)")
    prefix = marks[0].removesuffix("patch_embed.proj.weight")
    vit = re.compile(re.escape(prefix) + r"(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.)")
    known = {f"backbone.vit.{name.removeprefix(prefix)}": value for name, value in state.items() if vit.match(name)}
    others = {name: value for name, value in state.items() if not vit.match(name)}
    embedding = _linear(others, width, path)
    if embedding is None:
        raise UserError(f"{path} holds no linear layer on the ViT's {width} channels, which would be the embedding")
    known["embedding.weight"], known["embedding.bias"] = embedding
    inner = len(known["embedding.bias"])
    head = _linear(others, inner, path) or (torch.zeros(0, inner), torch.zeros(0))
    known["head.weight"], known["head.bias"] = head
    size = next(size for size, channels in WIDTHS.items() if channels == width)
    classes = [str(number) for number in range(len(known["head.bias"]))]
    return known, {"size": size, "classes": classes, "embedding_dim": inner}


def _linear(state: dict[str, Tensor], inner: int, path: Path) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the linear layer on `inner` channels, removed from `state`; None without one."""
    names = [name for name, value in state.items() if value.ndim == 2 and value.shape[1] == inner]
    if len(names) > 1:
        raise UserError(f"{path} holds several linear layers on {inner} channels: {', '.join(names)}")
    if not names:
        return None
    weight = state.pop(names[0])
    bias = state.pop(names[0].removesuffix("weight") + "bias", None)
    return weight, torch.zeros(len(weight)) if bias is None else bias
