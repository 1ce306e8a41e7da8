"""Training steps of the five models at the sizes of their references on an accelerator: time, memory, images per
second.

    python benchmarks/gpu_steps.py

In fp32, fp16 and bf16, compiled or not, each in its own process, with Accelerate as in `core.run`: forward, loss,
backward, AdamW; random weights and images, no loader. Only SAM's first six blocks are frozen; the loss of the ear VAE
is without VGG16. Memory: peak allocated by torch. No targets. Without an accelerator, nothing is measured.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from results import ROOT, Result, show

from core.devices import make_accelerator
from core.errors import first_line
from core.schedules import parameter_groups

WARM_UP, ROUNDS = 5, 20
PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


def cephalometric(small: bool):
    from ceph.hrnet import HRNetLandmarks
    from ceph.losses import LandmarkLoss

    backbone, side, batch = ("hrnet_w18_small", 64, 2) if small else ("hrnet_w48", 512, 6)
    model = HRNetLandmarks(backbone, (side, side), side // 4)
    criterion = LandmarkLoss(model.stride, model.heatmap_size)
    data = {"image": torch.rand(batch, 1, side, side), "points": torch.rand(batch, 29, 2) * (side - 1)}
    data |= {"measurements": torch.zeros(batch, 10), "cvm_stage": torch.ones(batch, dtype=torch.long)}
    return model, criterion, data, lambda model: criterion(model(data["image"]), data)[0]


def ct_multilabel(small: bool):
    from core.losses.classification import AsymmetricLoss
    from ct.slice_classifier import SliceClassifier

    name, side, batch = ("test_resnet", 32, 2) if small else ("efficientnet_b0", 224, 64)
    data = {"slices": torch.randint(0, 256, (batch, 1, 3, side, side), dtype=torch.uint8)}
    data["labels"] = torch.randint(0, 2, (batch, 18)).float()
    criterion = AsymmetricLoss()
    model = SliceClassifier(18, name, image_size=side)
    return model, criterion, data, lambda model: criterion(model(data["slices"])["slices"][:, 0], data["labels"])


def ear_teacher(small: bool):
    from ear.losses import WEIGHTS, EarVAELoss
    from ear.sam_vae import EarVAE

    config, sam_side, frozen, batch = ("tiny", 128, 0, 2) if small else ("base", 1024, 6, 4)
    model = EarVAE(config, sam_image_size=sam_side, freeze_layers=frozen)
    criterion = EarVAELoss({name: weight for name, (weight, _) in WEIGHTS.items()} | {"perceptual": 0.0})
    data = {"image": torch.rand(batch, 3, 128, 128) * 2 - 1}
    return model, criterion, data, lambda model: criterion(model(data["image"]), data["image"])[0]


def hyperspectral(small: bool):
    from hsi.loss import MAESpectralLoss
    from hsi.mae_spectral import VARIANTS, MAESpectral

    model = MAESpectral(**VARIANTS["mae_tiny" if small else "mae_medium"])
    batch, statistics = 1 if small else 6, ([0.5] * 30, [0.3] * 30)
    model.set_statistics(*statistics)
    criterion = MAESpectralLoss(*statistics, 0, 1)
    data = {"cube": torch.rand(batch, 30, 500, 500), "noise": torch.rand(batch, model.n_noise)}
    data["foreground"] = torch.ones(batch, 500, 500, dtype=torch.bool)
    return model, criterion, data, lambda model: criterion(model(data["cube"], data["noise"]), data["foreground"])[0]


def implant(small: bool):
    from implants.dual_embedding import DualEmbeddingRegressor
    from implants.loss import DimensionLoss

    size, batch = ("tiny", 2) if small else ("base", 16)
    classifier = {"size": size, "classes": [str(number) for number in range(20)]}
    regressor = DualEmbeddingRegressor({"size": size}, classifier, classifier, scale_features=6)
    criterion = DimensionLoss()
    data = {"image": torch.rand(batch, 1, 224, 224), "scale": torch.randn(batch, 6), "target": torch.rand(batch, 2)}
    return regressor, criterion, data, lambda model: criterion(model(data), data, regressor)[0]


PROJECTS = (cephalometric, ct_multilabel, ear_teacher, hyperspectral, implant)


def steps(make: Callable, precision: str, compiled: bool, small: bool) -> dict:
    """Milliseconds, images per second and memory of a step, or the error."""
    sys.path.insert(0, str(ROOT / make.__name__))
    gpu, seconds, backend = torch.accelerator.is_available(), [], "inductor" if compiled else None
    accelerator = make_accelerator(mixed_precision=PRECISIONS[precision], dynamo_backend=backend)
    device = accelerator.device
    torch.manual_seed(0)
    model, criterion, data, loss = make(small)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-6, 1e-4))
    data |= {name: values.to(device) for name, values in data.items()}
    criterion.to(device)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    try:
        for _ in range(2 if small else WARM_UP + ROUNDS):
            start = time.perf_counter()
            accelerator.backward(loss(model))
            optimizer.step()
            optimizer.zero_grad()
            if gpu:
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
    except RuntimeError as error:  # probably out of memory
        return {"failed": first_line(error)}
    step, batch = float(np.median(seconds[-ROUNDS:])), len(next(iter(data.values())))
    found = {"device": torch.cuda.get_device_name() if device.type == "cuda" else device.type, "batch": batch}
    found |= {"milliseconds": round(1000 * step, 1), "images_a_second": round(batch / step, 1)}
    return found | ({"peak_gigabytes": round(torch.accelerator.max_memory_allocated() / 1e9, 2)} if gpu else {})


def measure(small: bool = False) -> list[Result]:
    """`small`: two steps of small models, also on a CPU, to test the program."""
    if not torch.accelerator.is_available() and not small:
        return [Result("training steps", None, "", "images a second", {"reason": "no accelerator"})]
    results = []
    for make, precision, compiled in product(PROJECTS, PRECISIONS, (False, True)):
        if small and (compiled or precision == "fp16"):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(steps, (make, precision, compiled, small))
        name = f"{make.__name__}, {precision}{', compiled' * compiled}"
        results.append(Result(name, found.get("images_a_second"), "", "images a second", found))
    return results


if __name__ == "__main__":
    show(measure(small="--small" in sys.argv))
