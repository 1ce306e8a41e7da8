"""Checks encoder, VAE and one training step on this machine before a long training run.

    python ear_teacher/test_sam_model.py
    python ear_teacher/test_sam_model.py --sam_config tiny --sam_image_size 224      # without weights from the hub

The input is noise. Exit code 1 if a check fails.
"""

import sys
import time
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import ArgumentParser, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from ear.losses import WEIGHTS, EarVAELoss
from ear.sam_encoder import SAM_CONFIGS, SAM_MODEL
from ear.sam_vae import EarVAE


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sam_model", default=SAM_MODEL, help="SAM with a ViT: hub name or folder")
    parser.add_argument("--sam_config", choices=tuple(SAM_CONFIGS), help="SAM of random weights instead of --sam_model")
    parser.add_argument("--sam_image_size", type=int, default=1024, help="side of SAM's input, px")
    parser.add_argument("--image_size", type=int, default=128, help="side of crops and reconstructions, px")
    parser.add_argument("--latent_dim", type=positive_int, default=1024, help="dimensions of the latent code")
    parser.add_argument("--freeze_layers", type=int, default=6, help="frozen SAM blocks, from the first")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="gradient checkpointing of SAM's blocks")
    parser.add_argument("--vgg_weights", type=Path, metavar="FILE", help="VGG16 weights instead of a download")
    parser.add_argument("--batch_size", type=positive_int, default=2, help="batch size of the training step")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="precision of the training step")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console = make_console()
    accelerator = make_accelerator(mixed_precision=args.mixed_precision)
    torch.manual_seed(0)
    model = EarVAE(
        args.sam_config or "base", None if args.sam_config else args.sam_model, args.sam_image_size, args.latent_dim,
        args.image_size, args.freeze_layers, gradient_checkpointing=args.gradient_checkpointing,
    ).to(accelerator.device)  # fmt: skip
    images = torch.rand(args.batch_size, 3, args.image_size, args.image_size, device=accelerator.device) * 2 - 1
    failures = 0
    for name, check in (("encoder", check_encoder), ("VAE", check_vae), ("training step", check_training_step)):
        start = time.perf_counter()
        try:
            said = check(model, images, accelerator, args)
        except (AssertionError, RuntimeError) as error:  # RuntimeError: mostly out of memory
            failures += 1
            console.print(f"FAILED  {name}: {error}", style="bold red")
        else:
            console.print(f"ok      {name}: {said}; {time.perf_counter() - start:.1f} s")
    if failures:
        sys.exit(1)
    console.print("All 3 checks passed.", style="bold")


@torch.no_grad()
def check_encoder(model: EarVAE, images: torch.Tensor, accelerator, args) -> str:
    """Shape of the SAM features, and their dependence on the picture; returns a summary. Raises AssertionError."""
    sam = model.encoder.sam
    features = sam(images)
    expected = (len(images), sam.channels, sam.grid, sam.grid)
    assert tuple(features.shape) == expected, f"features {tuple(features.shape)}, expected {expected}"
    assert features.isfinite().all(), "features are not finite"
    assert not torch.allclose(features, sam(images.flip(3))), "a picture and its mirror image have the same features"
    side, count = model.image_size, sum(p.numel() for p in sam.parameters())
    return f"{side}×{side} enlarged to {sam.size}×{sam.size}, features {tuple(features.shape)}, {count / 1e6:.1f} M"


@torch.no_grad()
def check_vae(model: EarVAE, images: torch.Tensor, accelerator, args) -> str:
    """Shapes, range and determinism of codes and reconstructions in eval mode; returns a summary. Raises
    AssertionError."""
    model.eval()
    mu, logvar = model.encode(images)
    picture = model.decode(mu)
    assert mu.shape == logvar.shape == (len(images), model.latent_dim), f"codes {tuple(mu.shape)}"
    assert picture.shape == images.shape, f"reconstructions {tuple(picture.shape)}"
    assert picture.abs().max() <= 1, "reconstructions leave [-1, 1]"
    assert torch.equal(model(images)["reconstruction"], picture), "two passes in eval differ"
    total = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = f"{total / 1e6:.1f} M parameters, {learns / 1e6:.1f} M to train, {(total - learns) / 1e6:.1f} M frozen"
    return f"codes {tuple(mu.shape)}, {parts}"


def check_training_step(model: EarVAE, images: torch.Tensor, accelerator, args) -> str:
    """Finite loss terms and gradients of the trainable parameters, none of the frozen ones; returns a summary. Raises
    AssertionError."""
    weights, note = {name: weight for name, (weight, _) in WEIGHTS.items()}, ""
    try:
        criterion = EarVAELoss(weights, args.vgg_weights)
    except UserError:
        if args.vgg_weights:
            raise
        note = ", no perceptual term: VGG16's weights could not be fetched; train.py needs them, see --vgg_weights"
        criterion = EarVAELoss(weights | {"perceptual": 0.0})
    criterion = criterion.to(accelerator.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    loss, parts = criterion(model(images), images)
    bad = [name for name, part in parts.items() if not part.isfinite()]
    assert not bad, f"not finite: {', '.join(bad)}"
    accelerator.backward(loss)
    named = list(accelerator.unwrap_model(model).named_parameters())
    may_overflow = accelerator.scaler is not None  # fp16 loss scale not yet adapted
    learns = [(name, p.grad) for name, p in named if p.requires_grad]
    deaf = [name for name, grad in learns if grad is None or not (may_overflow or grad.isfinite().all())]
    assert not deaf, f"{len(deaf)} parameters have no finite gradient, {deaf[0]} first"
    woken = [name for name, p in named if not p.requires_grad and p.grad is not None]
    assert not woken, f"{len(woken)} frozen parameters have a gradient, {woken[0]} first"
    optimizer.step()
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
    return f"loss {loss.item():.3f} of {len(parts)} terms, batch {len(images)}{memory}{note}"


if __name__ == "__main__":
    script(main)
