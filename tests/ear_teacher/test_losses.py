"""The seven terms of the loss against formulas of their own, their weights, and what happens without VGG16."""

import math
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from core.errors import UserError
from ear.losses import WEIGHTS, EarVAELoss

REFERENCE = {"l1": 1.0, "perceptual": 1.5, "ssim": 0.6, "edge": 0.3, "contrastive": 0.1, "center": 3.0, "kl": 1e-6}


def batch(views=1, seed=0):
    """What a VAE gives for four pictures of 16×16 px, and the pictures."""
    generator = torch.Generator().manual_seed(seed)
    images, made = torch.rand(2, 4, 3, 16, 16, generator=generator) * 2 - 1
    mu, logvar, other = torch.randn(3, 4, 5, generator=generator)
    result = {"reconstruction": made, "mu": mu, "logvar": logvar} | ({"mu_other": other} if views == 2 else {})
    return result, images


def only(name, weight=1.0):
    return dict.fromkeys(REFERENCE, 0.0) | {name: weight}


def ssim(a, b):
    """Mean structural similarity of pictures (B, C, H, W) in [0, 1], mirrored at the border."""
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(pictures):
        padded = np.pad(pictures, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), axis=(2, 3))
        return np.einsum("bcijkl,kl->bcij", windows, window)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return (similarity / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()


def slopes(pictures):
    """Scharr's derivatives along x and y, in intensity per pixel, without the border."""
    found = []
    for kernel in (np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32,) * 2:
        kernel = kernel.T if found else kernel
        windows = np.lib.stride_tricks.sliding_window_view(pictures, (3, 3), axis=(2, 3))
        found.append(np.einsum("bcijkl,kl->bcij", windows, kernel))
    return np.stack(found)


def centre_weight(side):
    x = (np.arange(side) + 0.5) / side * 2 - 1
    weight = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 0.35**2))
    return weight / weight.mean()


def repulsion(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [math.exp(unit[i] @ unit[j] / 0.5) for i in range(len(z)) for j in range(len(z)) if i != j]
    return math.log(np.mean(pairs))


def vgg_difference(a, b, file):
    """Mean absolute difference of relu1_2, relu2_2, relu3_3 and relu4_3."""
    weights = safetensors.torch.load_file(file)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    a, b, found = ((a + 1) / 2 - mean) / std, ((b + 1) / 2 - mean) / std, []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21)):
        if found:
            a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
        for i in block:
            kernel = weights[f"features.{i}.weight"], weights[f"features.{i}.bias"]
            a, b = (F.conv2d(x, *kernel, padding=1).relu() for x in (a, b))
        found.append((a - b).abs().mean().item())
    return np.mean(found)


def test_the_weights_are_those_of_the_reference():
    assert {name: weight for name, (weight, _) in WEIGHTS.items()} == REFERENCE


def test_every_term_against_a_formula_of_its_own(vgg_file):
    result, images = batch()
    made, target, mu, logvar = (
        x.double().numpy() for x in (result["reconstruction"], images, result["mu"], result["logvar"])
    )
    difference = np.abs(made - target)
    expected = {
        "l1": difference.mean(),
        "perceptual": vgg_difference(result["reconstruction"], images, vgg_file),
        "ssim": 1 - ssim((made + 1) / 2, (target + 1) / 2),
        "edge": np.abs(slopes(made) - slopes(target)).mean(),
        "contrastive": repulsion(mu),
        "center": (centre_weight(16) * difference).mean(),
        "kl": np.mean([0.5 * sum(m * m + math.exp(v) - 1 - v for m, v in zip(*row, strict=True))
                       for row in zip(mu, logvar, strict=True)]),
    }  # fmt: skip
    total, parts = EarVAELoss(REFERENCE, vgg_file)(result, images)
    assert list(parts) == list(expected)
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-4), name
    assert total.item() == pytest.approx(sum(REFERENCE[name] * value for name, value in expected.items()), rel=1e-4)


def test_two_views_of_an_ear_are_pulled_together():
    result, images = batch(views=2)
    criterion = EarVAELoss(only("contrastive"))
    codes = torch.cat([result["mu"], result["mu_other"]]).double().numpy()
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    terms = []
    for i in range(8):
        others = sum(math.exp(codes[i] @ codes[k] / 0.5) for k in range(8) if k != i)
        terms.append(-math.log(math.exp(codes[i] @ codes[(i + 4) % 8] / 0.5) / others))
    assert criterion(result, images)[0].item() == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_weight_counts_its_term_and_no_other(name, vgg_file):
    result, images = batch()
    expected = EarVAELoss(REFERENCE, vgg_file)(result, images)[1][name]
    total, parts = EarVAELoss(only(name, 0.75), vgg_file)(result, images)
    assert list(parts) == [name]
    assert torch.equal(parts[name], expected)
    assert torch.equal(total, 0.75 * expected)
    without, _ = EarVAELoss(REFERENCE | {name: 0}, vgg_file)(result, images)
    whole, _ = EarVAELoss(REFERENCE, vgg_file)(result, images)
    assert (whole - without).item() == pytest.approx(REFERENCE[name] * expected.item(), abs=2e-6)


def test_every_term_reaches_what_it_is_of(vgg_file):
    """Pictures' terms the reconstruction, codes' terms the codes; and nothing is nan at equal pictures."""
    for name in REFERENCE:
        result, images = batch()
        result = {key: tensor.requires_grad_() for key, tensor in result.items()}
        EarVAELoss(only(name), vgg_file)(result, images)[0].backward()
        reached = {key for key, tensor in result.items() if tensor.grad is not None and tensor.grad.any()}
        assert reached == {"contrastive": {"mu"}, "kl": {"mu", "logvar"}}.get(name, {"reconstruction"})
    result, images = batch()
    made = images.clone().requires_grad_()
    total, parts = EarVAELoss(REFERENCE, vgg_file)({**result, "reconstruction": made}, images)
    total.backward()
    assert made.grad.isfinite().all()
    for name in ("l1", "perceptual", "ssim", "edge", "center"):
        assert parts[name].item() == pytest.approx(0, abs=1e-6)


def test_a_single_picture_has_no_other_to_be_pushed_from(vgg_file):
    result, images = batch()
    one = {name: tensor[:1] for name, tensor in result.items()}
    total, parts = EarVAELoss(REFERENCE, vgg_file)(one, images[:1])
    assert parts["contrastive"].item() == 0
    assert total.isfinite()


def test_terms_are_float32_under_autocast(vgg_file):
    result, images = batch()
    result = {name: tensor.bfloat16() for name, tensor in result.items()}
    criterion = EarVAELoss(REFERENCE, vgg_file)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = criterion(result, images)
    expected, expected_parts = criterion({name: tensor.float() for name, tensor in result.items()}, images)
    assert total.dtype == torch.float32
    assert torch.equal(total, expected)
    for name, part in parts.items():
        assert part.dtype == torch.float32
        assert torch.equal(part, expected_parts[name]), name


def test_the_loss_has_nothing_to_learn_or_to_save(vgg_file):
    criterion = EarVAELoss(REFERENCE, vgg_file)
    assert list(criterion.parameters()) == []
    assert criterion.state_dict() == {}


# ------------------------------------------------------------------------------------------------ VGG16's weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def no_internet(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_internet)


def test_without_internet_and_file_one_line_names_both_ways_out(offline):
    with pytest.raises(UserError) as caught:
        EarVAELoss(REFERENCE)
    for text in ("no route to host", "--vgg_weights FILE", "--perceptual_weight 0"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weight_zero_needs_no_vgg(offline):
    result, images = batch()
    total, parts = EarVAELoss(REFERENCE | {"perceptual": 0})(result, images)
    assert set(parts) == set(REFERENCE) - {"perceptual"}
    assert total.isfinite()


def test_files_that_are_no_vgg_are_one_line_with_both_ways_out(tmp_path):
    text, other = tmp_path / "text.pth", tmp_path / "other.safetensors"
    text.write_text("not weights")
    torch.save({"0.weight": slice(1)}, tmp_path / "code.pth")
    safetensors.torch.save_file({"features.0.weight": torch.zeros(3)}, other)
    for file in (tmp_path / "absent.pth", text, tmp_path / "code.pth", other, tmp_path):
        with pytest.raises(UserError) as caught:
            EarVAELoss(REFERENCE, file)
        assert str(file) in str(caught.value)
        assert "--vgg_weights FILE" in str(caught.value)
        assert "--perceptual_weight 0" in str(caught.value)
        assert "\n" not in str(caught.value)
