"""Attention on feature maps, from timm: squeeze-and-excitation and CBAM.

- `se`: Hu et al. 2018, "Squeeze-and-Excitation Networks": `x · σ(W₂ ReLU(W₁ mean_HW(x)))`, with biases.
- `cbam`: Woo et al. 2018, "CBAM: Convolutional Block Attention Module": first channels, `x · σ(M(mean_HW(x)) +
  M(max_HW(x)))` with one MLP M without biases, then positions, `x · σ(BN(conv7×7([mean_C(x), max_C(x)])))`. The order
  [mean, max] is timm's and the paper's equation 3; the authors' code has [max, mean], which matters only to their
  weights. timm warns that results with CBAM are mixed: compare with `none`.
"""

from torch import nn

ATTENTIONS = ("none", "se", "cbam")


def spatial_attention(kernel_size: int = 7) -> nn.Module:
    """CBAM's second half on its own: (B, C, H, W) -> (B, C, H, W), any C."""
    from timm.layers.cbam import SpatialAttn  # timm takes seconds to import: only where a model is built

    return SpatialAttn(kernel_size)


def attention(name: str, channels: int, reduction: int = 16) -> nn.Module:
    """Attention module `(B, channels, H, W)` -> `(B, channels, H, W)`; `none` is the identity.

    The MLP's hidden layer has `channels // reduction` units, at least one, as in the papers. (timm's own rule rounds
    it for `se` to a multiple of 8, so that 64 channels would get 8 units instead of 4.)
    Raises ValueError for a name that is not in ATTENTIONS.
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
