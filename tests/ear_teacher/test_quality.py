"""PSNR and SSIM against their formulas; the linear baseline against a singular value decomposition."""

import math

import numpy as np
import pytest
import torch

from ear.quality import pixel_pca, quality


def pictures(count=3, size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 3, size, size, generator=generator) * 2 - 1


def test_psnr_is_of_every_picture_alone():
    made, target = pictures()
    made[1] = target[1] + 0.1 * (made[1] - target[1])
    found = quality(made, target)["psnr"]
    assert found.shape == (3,)
    for i in range(3):
        error = ((made[i] - target[i]).double().numpy() / 2) ** 2
        assert found[i].item() == pytest.approx(-10 * math.log10(error.mean()), rel=1e-5)
    assert found[1] > found[0] + 15


def test_psnr_of_a_known_difference():
    target = torch.zeros(1, 3, 16, 16)
    assert quality(target + 0.2, target)["psnr"].item() == pytest.approx(20, rel=1e-5)  # a tenth of the range


def test_ssim_against_numpy():
    made, target = pictures(2, 14)
    a, b = ((x.double().numpy() + 1) / 2 for x in (made, target))
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image):
        padded = np.pad(image, 5, mode="reflect")
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(padded, (11, 11)), window)

    def similarity(a, b):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        upper = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        return (upper / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()

    expected = [np.mean([similarity(a[i, c], b[i, c]) for c in range(3)]) for i in range(2)]
    assert quality(made, target)["ssim"].tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_pictures_and_one_picture():
    target = pictures()[1]
    found = quality(target, target)
    assert found["ssim"].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert (found["psnr"] > 60).all()
    alone = quality(pictures()[0][:1], target[:1])
    together = quality(pictures()[0], target)
    for name in ("psnr", "ssim"):
        assert alone[name].shape == (1,)
        assert alone[name][0].item() == pytest.approx(together[name][0].item(), rel=1e-5)


def test_values_out_of_range_are_clipped_and_half_precision_is_measured_in_float32():
    made, target = pictures()
    beyond = torch.where(made > 0.9, 7.0, made)
    expected = quality(torch.where(made > 0.9, 1.0, made), target)
    for name, value in quality(beyond, target).items():
        torch.testing.assert_close(value, expected[name])
    half = quality(made.bfloat16(), target)
    assert half["psnr"].dtype == half["ssim"].dtype == torch.float32


def test_the_smallest_pictures():
    made, target = pictures(2, 8)
    assert all(value.isfinite().all() for value in quality(made, target).values())


def test_pixel_pca_against_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    train, new = rng.integers(0, 256, (9, 6, 5, 3), np.uint8), rng.integers(0, 256, (2, 6, 5, 3), np.uint8)
    found = pixel_pca(train, 4)
    matrix = train.reshape(9, -1).astype(float)
    mean = matrix.mean(axis=0)
    _, _, rows = np.linalg.svd(matrix - mean, full_matrices=False)
    np.testing.assert_allclose(np.abs((found.components * rows[:4]).sum(axis=1)), 1, atol=1e-4)
    expected = mean + (new.reshape(2, -1) - mean) @ rows[:4].T @ rows[:4]
    expected = np.clip(expected, 0, 255).reshape(new.shape)
    assert np.abs(found.reconstruct(new) - expected).max() <= 0.51
    whole = pixel_pca(train, 100)
    assert len(whole.components) == 8
    assert np.abs(whole.reconstruct(train).astype(int) - train).max() <= 1
