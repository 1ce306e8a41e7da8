import math

import numpy as np
import pytest
import torch

from ceph.heatmaps import decode_dark, encode_heatmaps, to_heatmap, to_input
from core.windows import Letterbox


def random_points(count, size, margin, seed=0):
    return torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed)) * (size - 1 - 2 * margin) + margin


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("margin", [0.0, 12.0])
def test_decoding_finds_noise_free_centres(sigma, margin):
    points = random_points(1000, 128, margin)
    found, confidence = decode_dark(encode_heatmaps(points, 128, sigma), sigma)
    error = (found - points).norm(dim=-1)
    assert error.mean() <= 0.01
    assert error.max() <= 0.03
    assert (confidence > 0.85).all()
    rounded = (points.round() - points).norm(dim=-1).mean()
    assert error.mean() < rounded / 20  # what argmax alone would cost


def test_encoding_is_the_gaussian_at_the_unrounded_centre():
    heatmap = encode_heatmaps(torch.tensor([[[3.3, 5.8]]]), (9, 7), sigma=1.7)[0, 0]
    assert heatmap.shape == (9, 7)
    for y in range(9):
        for x in range(7):
            expected = math.exp(-((x - 3.3) ** 2 + (y - 5.8) ** 2) / (2 * 1.7**2))
            assert heatmap[y, x].item() == pytest.approx(expected, abs=1e-6)


def test_unknown_and_far_points_have_empty_maps():
    points = torch.tensor([[[math.nan, 4.0], [-50.0, 4.0], [4.0, 4.0]]])
    heatmaps = encode_heatmaps(points, 16, sigma=2.0)
    assert heatmaps.isfinite().all()
    assert (heatmaps[0, 0] == 0).all()
    assert (heatmaps[0, 1] == 0).all()
    assert heatmaps[0, 2].max() == 1


def test_decoding_does_without_a_loop_over_points(monkeypatch):
    """A thousand maps cost as many torch calls as one."""
    from torch.overrides import TorchFunctionMode

    class Counter(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for number in (1, 1000):
        heatmaps = encode_heatmaps(random_points(number, 128, 10), 128, 2.0)
        with Counter() as counter:
            decode_dark(heatmaps, 2.0)
        counts.append(counter.calls)
    assert counts[0] == counts[1]


def test_decoding_survives_flat_negative_and_noisy_maps():
    generator = torch.Generator().manual_seed(1)
    flat, negative = torch.zeros(1, 1, 32, 32), -torch.rand(1, 1, 32, 32, generator=generator)
    noise = torch.randn(1, 1, 32, 32, generator=generator)
    points, confidence = decode_dark(torch.cat([flat, negative, noise]), 2.0)
    assert points.isfinite().all()
    assert confidence.isfinite().all()
    assert (points >= -1.5).all()
    assert (points <= 32.5).all()


def test_smoothing_helps_against_noise():
    points = random_points(500, 64, 12)
    generator = torch.Generator().manual_seed(2)
    noisy = encode_heatmaps(points, 64, 2.0) + 0.05 * torch.randn(1, 500, 64, 64, generator=generator)
    found, _ = decode_dark(noisy, 2.0)
    highest = noisy.flatten(2).argmax(-1)
    argmax = torch.stack([highest % 64, highest // 64], dim=-1).float()
    assert (found - points).norm(dim=-1).mean() < 0.5 * (argmax - points).norm(dim=-1).mean()


def test_too_small_maps_are_refused():
    with pytest.raises(ValueError, match="too small"):
        decode_dark(torch.zeros(1, 1, 4, 64))


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_grids_are_aligned_by_their_edges(stride):
    """The first heatmap pixel covers the first `stride` input pixels: its centre is their centre."""
    assert to_heatmap(torch.tensor([(stride - 1) / 2]), stride).item() == pytest.approx(0)
    points = torch.rand(10, 2) * 500
    assert torch.allclose(to_input(to_heatmap(points, stride), stride), points, atol=1e-4)
    width = 512  # flipping commutes with the change of grid, which u / stride does not
    flipped = to_heatmap(width - 1 - points[:, 0], stride)
    assert torch.allclose(flipped, width // stride - 1 - to_heatmap(points[:, 0], stride), atol=1e-4)


@pytest.mark.parametrize("size", [(2400, 1935), (1935, 2400), (1001, 777), (512, 512), (333, 901)])
@pytest.mark.parametrize("flip", [False, True])
def test_round_trip_from_native_to_heatmap_and_back(size, flip):
    """image -> letterbox -> heatmap -> decode -> native, exact to 0.02 input px."""
    rng = np.random.default_rng(0)
    box, stride = Letterbox(size, (512, 512)), 4
    native = rng.uniform([30, 30], np.array(size) - 30, (200, 2))
    frame = torch.from_numpy(box.to_frame(native)).float()[None]
    if flip:
        frame[..., 0] = 511 - frame[..., 0]
    decoded, _ = decode_dark(encode_heatmaps(to_heatmap(frame, stride), 128, 2.0), 2.0)
    decoded = to_input(decoded, stride)
    if flip:
        decoded[..., 0] = 511 - decoded[..., 0]
    back = box.to_picture(decoded[0].double().numpy())
    assert np.linalg.norm(back - native, axis=1).max() * box.scale <= 0.02
