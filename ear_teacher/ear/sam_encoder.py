"""Image encoder of SAM for any input size, with frozen first blocks.

Kirillov et al. 2023, "Segment Anything": a plain ViT with windowed attention (Li et al. 2022, "Exploring Plain Vision
Transformer Backbones for Object Detection"), as implemented in transformers.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import SamVisionModel

SAM_MODEL = "facebook/sam-vit-base"
SAM_CONFIGS = {
    "base": {},  # transformers' defaults are SAM-B: 12 blocks of 768, 89.7 M parameters
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "mlp_dim": 256,
        "output_channels": 64,
        "window_size": 8,  # divides the grids of 128 and 1024 px
        "global_attn_indexes": [1, 3],
    },
}


class SamEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] of any size to features (B, channels, grid, grid), grid = sam_image_size / 16.

    `sam_config`: "base", "tiny", or a dict of `SamVisionConfig` arguments, for random weights. `sam_model`: name on the
    Hugging Face hub or folder, for pretrained weights. `freeze_layers`: number of frozen blocks, from the first, all if
    there are fewer. `freeze_embeddings`: also freezes patch and position embeddings, so that no activations of frozen
    blocks are stored. Raises UserError for unavailable weights, an invalid input size and negative `freeze_layers`.
    """

    def __init__(
        self, sam_config: str | dict = "base", sam_model: str | Path | None = None, sam_image_size: int = 1024,
        freeze_layers: int = 6, freeze_embeddings: bool = False, gradient_checkpointing: bool = False,
    ):  # fmt: skip
        super().__init__()
        model = _pretrained(sam_model) if sam_model else _random(sam_config)
        self.config = model.config.to_diff_dict() if sam_model else sam_config  # before it is resized
        self.vision = model.vision_encoder
        self.channels = model.config.output_channels
        self.resize(sam_image_size)
        if not sam_model:
            nn.init.trunc_normal_(self.vision.pos_embed, std=0.02)
        if freeze_layers < 0:
            raise UserError(f"--freeze_layers {freeze_layers} is negative; 0 freezes none")
        self.vision.layers[:freeze_layers].requires_grad_(False)
        if freeze_embeddings:
            self.vision.patch_embed.requires_grad_(False)
            self.vision.pos_embed.requires_grad_(False)
        if gradient_checkpointing:
            # transformers has renamed it
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of SAM, in [0, 1]
        self.register_buffer("mean", (2 * mean - 1).view(3, 1, 1), persistent=False)
        self.register_buffer("std", (2 * std).view(3, 1, 1), persistent=False)

    def resize(self, sam_image_size: int) -> None:
        """Changes the input side to `sam_image_size` px, with resampled position embeddings (bicubic, antialiased).

        SAM resamples relative positions at every call. Raises UserError unless the side is a multiple of 16.
        """
        from timm.layers import resample_abs_pos_embed_nhwc

        vision, patch = self.vision, self.vision.config.patch_size
        if sam_image_size < patch or sam_image_size % patch:
            raise UserError(f"--sam_image_size {sam_image_size} is no multiple of {patch}, the side of SAM's patches")
        self.size, self.grid = sam_image_size, sam_image_size // patch
        learns = vision.pos_embed.requires_grad
        with torch.no_grad():
            positions = resample_abs_pos_embed_nhwc(vision.pos_embed, [self.grid, self.grid])
        vision.pos_embed = nn.Parameter(positions, requires_grad=learns)
        vision.patch_embed.image_size = (sam_image_size, sam_image_size)
        vision.config.image_size = vision.image_size = sam_image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = (images - self.mean) / self.std
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.vision(images).last_hidden_state


def _random(sam_config: str | dict) -> "SamVisionModel":
    """SAM encoder with random weights; the default SD of transformers, 1e-10, would prevent learning."""
    from transformers import SamVisionConfig, SamVisionModel  # slow import

    arguments = SAM_CONFIGS[sam_config] if isinstance(sam_config, str) else sam_config
    return SamVisionModel(SamVisionConfig.from_dict({"initializer_range": 0.02, **arguments}))


def _pretrained(name: str | Path) -> "SamVisionModel":
    """Encoder of a SAM on the hub or in a folder. Raises UserError for unavailable and for other models."""
    from transformers import SamVisionModel
    from transformers.utils import logging as transformers_logging

    offline = (
        "Offline: fetch config.json and model.safetensors of it elsewhere and name their folder with --sam_model "
        "FOLDER, or start from random weights with --sam_config base (or tiny)"
    )
    transformers_logging.set_verbosity_error()  # hides the list of unused decoder weights
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides retries
    try:
        model, found = SamVisionModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # several libraries, each with its own errors
        raise UserError(f"cannot load SAM {name} ({first_line(error)}). {offline}") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
        raise UserError(f"{name} is no SAM with a ViT: {len(missing)} weights are missing, {missing[0]} first")
    return model
