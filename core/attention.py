"""Attention on feature maps, from timm: squeeze-and-excitation and CBAM.

- `se`: Hu et al. 2018, "Squeeze-and-Excitation Networks": `x · σ(W₂ ReLU(W₁ mean_HW(x)))`, with biases.
- `cbam`: Woo et al. 2018, "CBAM: Convolutional Block Attention Module": channel attention `x · σ(M(mean_HW(x)) +
  M(max_HW(x)))` with one MLP M without biases, then spatial attention `x · σ(BN(conv7×7([mean_C(x), max_C(x)])))`.
  [mean, max] is the order of timm and of equation 3; the authors' code and weights have [max, mean].
  According to timm, results with CBAM are mixed: compare with `none`.
"""

from torch import nn

ATTENTIONS = ("none", "se", "cbam")


def spatial_attention(kernel_size: int = 7) -> nn.Module:
    """Spatial attention of CBAM: `(B, C, H, W)` -> `(B, C, H, W)`, any C."""
    from timm.layers.cbam import SpatialAttn  # imported on use: timm takes seconds

    return SpatialAttn(kernel_size)


def attention(name: str, channels: int, reduction: int = 16) -> nn.Module:
    """Attention module `(B, channels, H, W)` -> `(B, channels, H, W)`; `none` is the identity.

    The hidden layer of the MLP has `max(1, channels // reduction)` units, as in the papers; timm's default for `se`
    rounds to a multiple of 8 (8 units instead of 4 for 64 channels). Raises ValueError for names not in ATTENTIONS.
    """
    from timm.layers.cbam import CbamModule
    from timm.layers.squeeze_excite import SqueezeExcite

    hidden = max(1, channels // reduction)
    if name == "none":
        return nn.Identity()
    if name == "se":
        return SqueezeExcite(channels, rd_channels=hidden)
    if name == "cbam":
        return CbamModule(channels, rd_channels=hidden)
    raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}; got {name!r}")
