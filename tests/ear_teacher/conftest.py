from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from torch import nn
from torchvision.models import vgg16
from transformers import SamConfig, SamModel

from conftest import load_script
from ear.sam_vae import EarVAE
from files import write_csv
from launch import run

# A SAM whose whole model, mask decoder and all, is a few megabytes. At 1024 px it has 4096 tokens, as every SAM.
SMALL_SAM = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64, "output_channels": 64,
        "window_size": 14, "global_attn_indexes": [1],
    },
    "prompt_encoder_config": {"hidden_size": 64},
    "mask_decoder_config": {"hidden_size": 64, "mlp_dim": 64, "iou_head_hidden_dim": 64},
}  # fmt: skip


def randomise(model: nn.Module) -> None:
    """New values for every weight, of a size that lets all of them count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)


@pytest.fixture(scope="session")
def sam() -> SamModel:
    """A small SAM of random weights, relative and absolute positions included. Not to be changed."""
    torch.manual_seed(0)
    model = SamModel(SamConfig(**SMALL_SAM)).eval()
    randomise(model)
    return model


@pytest.fixture(scope="session")
def sam_folder(sam, tmp_path_factory) -> Path:
    """The folder of `sam`, as transformers writes it."""
    folder = tmp_path_factory.mktemp("sam") / "small"
    sam.save_pretrained(folder)
    return folder


@pytest.fixture
def make_vae():
    """A VAE that takes a moment, of 4×4 tokens: `make_vae(**arguments of EarVAE)`."""

    def make(seed=0, **arguments) -> EarVAE:
        torch.manual_seed(seed)
        tiny = {"sam_config": "tiny", "sam_image_size": 64, "latent_dim": 16, "image_size": 32, "freeze_layers": 2}
        return EarVAE(**tiny | arguments)

    return make


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory) -> Path:
    """Random weights of VGG16's features up to relu4_3, of a size that keeps activations near 1."""
    with torch.device("meta"):
        features = vgg16(weights=None).features[:22]
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, parameter in features.named_parameters():
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim == 4 else 0.1
        weights[f"features.{key}"] = scale * torch.randn(parameter.shape, generator=generator)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture (height, width, 3) uint8 of broad coloured blobs."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with train.csv (12 pictures) and val.csv (5), of 44×52 px, with boxes, subjects and sides. Synthetic.
    Not to be written to."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        table = []
        for number in range(count):
            name = f"{split}_{number}.png"
            Image.fromarray(smooth(rng, 52, 44)).save(folder / name)
            x0, y0 = rng.uniform(0, 8, 2).round(1)
            box = {"x0": x0, "y0": y0, "x1": x0 + 30, "y1": y0 + 38}
            side = ("left", "right", "")[number % 3]
            table.append({"image": name, **box, "subject": f"{split}{number // 2}", "side": side})
        write_csv(folder / f"{split}.csv", table)
    return folder


# Flags of a training run that takes seconds: 8×8 tokens, crops of 32×32 px.
TINY = "--sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 16 --freeze_layers 2 --perceptual_weight 0"
TINY += " --batch_size 4 --lr 1e-3 --num_workers 0 --log_with none --nb_to_plot 3"


def flags(pictures: Path, folder, *arguments) -> list[str]:
    manifests = ["--train_manifest", pictures / "train.csv", "--val_manifest", pictures / "val.csv"]
    return [str(flag) for flag in (*manifests, "--save_dir", folder, *TINY.split(), *arguments)]


@pytest.fixture(scope="session")
def launch(pictures):
    """Trains a tiny model in a process of its own, as a user would: `launch(folder, *more_flags)`."""

    def launch_tiny(folder, *arguments):
        return run("ear_teacher/train.py", *flags(pictures, folder, *arguments))

    return launch_tiny


@pytest.fixture(scope="session")
def train(pictures):
    """Trains a tiny model in this process, without pictures, which take longer than all else: `train(folder, …)`."""
    script = load_script("ear_teacher/train.py")

    def train_tiny(folder, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.figures.save", lambda *_: None)
            patch.setattr(script.Run, "show", lambda *_: None)
            try:
                script.main(flags(pictures, folder, *arguments))
            finally:  # a test may train twice
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()

    return train_tiny


@pytest.fixture(scope="session")
def trained(launch, tmp_path_factory) -> Path:
    """A run of four epochs. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = launch(folder, "--epochs", 4)
    assert done.returncode == 0, done.stderr
    return folder
