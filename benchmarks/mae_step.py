"""Training step of the masked autoencoder against a plain one, in the style of the code of He et al.: mae_medium.

    python benchmarks/mae_step.py

A step is forward, loss, backward and AdamW update on cubes of 500×500 px and 30 bands. The plain model embeds all
tokens by a convolution before it selects the visible ones, and computes attention as softmax(q kᵀ) v. Both have the
same decoder, sizes and loss, and compute the same function (the largest difference of their predictions is printed).
The main difference is attention: the ratio to a plain model with fused attention is printed, too. Steps of all three
alternate, on a CPU in one thread, so that other load on the machine affects all alike. Target: at least 1.5 times
faster.
"""

import copy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import numpy as np
import torch
from device import MACHINE, PRECISION
from mae_decoder import BATCH, ROUNDS, VARIANT, Training, make_model, sample
from results import Result, show
from torch import Tensor, nn

from hsi.mae_spectral import MAESpectral

TARGET = 1.5


class PlainMAE(nn.Module):
    """The same function with the weights of `ours` and the full decoder, as in the code of He et al. 2022."""

    def __init__(self, ours: MAESpectral, fused: bool = False):
        super().__init__()
        self.ours = copy.deepcopy(ours)
        linear = self.ours.encoder.embed
        token = (ours.patch_bands, ours.patch, ours.patch)
        self.embed = nn.Conv3d(1, linear.out_features, kernel_size=token, stride=token)
        self.embed.weight.data = linear.weight.data.reshape(self.embed.weight.shape)
        self.embed.bias.data = linear.bias.data
        self.ours.encoder.embed = nn.Identity()
        for block in (*self.ours.encoder.blocks, *self.ours.decoder.blocks):
            block.attn.fused_attn = fused

    def forward(self, cube: Tensor, noise: Tensor) -> dict[str, Tensor]:
        encoder, decoder, groups = self.ours.encoder, self.ours.decoder, self.ours.grid[0]
        cube = self.ours.normalize(cube)
        target = self.ours.patchify(cube).unflatten(1, (groups, -1))
        shuffled = noise[:, : self.ours.n_tokens].argsort(dim=1)
        restored = shuffled.argsort(dim=1)
        x = self.embed(cube[:, None]).flatten(2).transpose(1, 2) + encoder.positions()  # (B, N, D)
        x = take(x, shuffled[:, : self.ours.n_visible])
        for block in encoder.blocks:
            x = block(x)
        x = decoder.embed(encoder.norm(x))
        masked = decoder.mask_token.to(x.dtype).expand(len(x), self.ours.n_tokens - x.shape[1], -1)
        x = take(torch.cat([x, masked], dim=1), restored) + decoder.positions()
        for block in decoder.blocks:
            x = block(x)
        patches = decoder.head(decoder.norm(x)).unflatten(1, (groups, -1)).float()
        hidden = (restored >= self.ours.n_visible).unflatten(1, (groups, -1))
        columns = torch.arange(self.ours.n_columns, device=cube.device).expand(len(cube), -1)
        return {"patches": patches, "target": target, "hidden": hidden, "columns": columns}


def take(x: Tensor, which: Tensor) -> Tensor:
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def largest_difference(ours: MAESpectral, plain: PlainMAE) -> float:
    """Largest difference of the predictions (z-scores) in float32 on the CPU."""
    cube, noise = sample(1)
    a, b = ours(cube, noise), plain(cube, noise)
    assert torch.equal(a["hidden"], b["hidden"])
    return float((a["patches"] - b["patches"]).abs().max())


def measure() -> list[Result]:
    ours = make_model()
    models = {"ours": ours, "plain": PlainMAE(ours), "plain_with_fused_attention": PlainMAE(ours, fused=True)}
    difference = largest_difference(ours, models["plain"])
    trainings = [Training(model) for model in models.values()]
    for training in trainings:
        training.step()  # warm-up, initialises AdamW
    seconds = np.array([[training.step() for training in trainings] for _ in range(ROUNDS)])
    ratio, ratio_fused = np.median(seconds[:, 1:] / seconds[:, :1], axis=0).tolist()
    milliseconds = np.median(1000 * seconds, axis=0).round(1).tolist()
    details = {"model": VARIANT, "ratio_to_plain_with_fused_attention": round(ratio_fused, 2)}
    details |= {"milliseconds_a_step": dict(zip(models, milliseconds, strict=True))}
    details |= {"largest_difference": difference, "batch": BATCH, "steps": ROUNDS, "precision": PRECISION}
    details |= {"machine": MACHINE, "threads": torch.get_num_threads()}
    return [Result("step against a plain MAE", round(ratio, 2), f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
