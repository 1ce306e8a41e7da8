"""Measures of reconstructions against slow loops and torchmetrics, and the two baselines. All cubes are synthetic."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)

from hsi.baselines import interpolate, mean_spectrum
from hsi.metrics import measure

SIZE, PATCH, BANDS = 40, (10, 3), 12  # 4 groups of 4×4 tokens
MEASURES = ("mse", "psnr", "sam", "ssim", "band_mean", "mse_by_band")


def random_hidden(cubes=1, share=0.8, seed=0, size=SIZE, patch=PATCH, bands=BANDS):
    """Always the same share of the tokens of each cube, as (B, C, H, W)."""
    side, groups = size // patch[0], bands // patch[1]
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(cubes, groups * side**2, generator=generator).argsort(dim=1).argsort(dim=1)
    hidden = (order < round(share * order.shape[1])).view(cubes, groups, side, side)
    return hidden.repeat_interleave(patch[1], 1).repeat_interleave(patch[0], 2).repeat_interleave(patch[0], 3)


def disc(size=SIZE, radius=0.45):
    """The field of view of a fundus camera, bool (1, H, W)."""
    place = (torch.arange(size) + 0.5) / size - 0.5
    return (place**2 + place[:, None] ** 2 < radius**2)[None]


@pytest.fixture
def case():
    """The arguments of `measure`: reconstructions of two cubes in 0..1, whose foreground is a disc."""
    torch.manual_seed(0)
    cube = 0.1 + 0.8 * torch.rand(2, BANDS, SIZE, SIZE)
    hidden = random_hidden(2)
    reconstruction = torch.where(hidden, cube + 0.1 * torch.randn_like(cube), cube)
    return reconstruction, cube, hidden, disc().expand(2, -1, -1), 1.0


# ------------------------------------------------------------------------------------------------ measures


def slow_measures(made, true, counted, data_range):
    """mse, psnr, sam, band mean and mse by band of one cube, voxel by voxel in float64."""
    bands, height, width = true.shape
    errors, angles, means = [[] for _ in range(bands)], [], []
    for row in range(height):
        for column in range(width):
            u, v = [], []
            for band in range(bands):
                if counted[band, row, column]:
                    u.append(made[band, row, column])
                    v.append(true[band, row, column])
                    errors[band].append((u[-1] - v[-1]) ** 2)
            if u:
                cosine = np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
                angles.append(math.degrees(math.acos(min(1.0, cosine))))
                means.append((np.mean(u) - np.mean(v)) ** 2)
    mse = np.mean(np.concatenate(errors))
    by_band = [np.mean(values) if values else np.nan for values in errors]
    psnr = 10 * math.log10(data_range**2 / mse)
    return {"mse": mse, "psnr": psnr, "sam": np.mean(angles), "band_mean": np.mean(means), "mse_by_band": by_band}


def test_against_a_loop_over_voxels(case):
    reconstruction, cube, hidden, foreground, data_range = case
    measures = measure(*case)
    for i in range(2):
        view = foreground[i].expand_as(hidden[i])
        for scope, counted in (("masked", hidden[i] & view), ("all", view)):
            arrays = (x.double().numpy() for x in (reconstruction[i], cube[i]))
            for name, value in slow_measures(*arrays, counted.numpy(), data_range).items():
                np.testing.assert_allclose(measures[f"{scope}_{name}"][i], value, rtol=2e-5, err_msg=f"{scope} {name}")


def test_whole_pictures_agree_with_torchmetrics(case):
    reconstruction, cube, hidden, foreground, _ = case
    measures = measure(reconstruction, cube, hidden, torch.ones_like(foreground), 1.0)
    angle = torch.stack([spectral_angle_mapper(a[None], b[None]) for a, b in zip(reconstruction, cube, strict=True)])
    ssim = structural_similarity_index_measure(reconstruction, cube, data_range=1.0, reduction="none")
    psnr = peak_signal_noise_ratio(reconstruction, cube, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(measures["all_sam"], angle.rad2deg(), rtol=0, atol=2e-3)  # acos in float32
    torch.testing.assert_close(measures["all_ssim"], ssim, rtol=0, atol=1e-6)
    torch.testing.assert_close(measures["all_psnr"], psnr)


def test_ssim_averages_torchmetrics_map_over_the_counted_voxels(case):
    reconstruction, cube, hidden, foreground, _ = case
    inside = foreground[:, None].expand_as(hidden)
    pictures = (torch.where(inside, x, 0) for x in (reconstruction, cube))
    _, ssim = structural_similarity_index_measure(*pictures, data_range=1.0, return_full_image=True)
    measures = measure(*case)
    for scope, counted in (("masked", hidden & inside), ("all", inside)):
        expected = [ssim[i][counted[i]].mean().item() for i in range(2)]
        assert measures[f"{scope}_ssim"].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_perfect_reconstruction(case):
    _, cube, hidden, foreground, data_range = case
    measures = measure(cube, cube, hidden, foreground, data_range)
    for scope in ("masked", "all"):
        for name, value in (("mse", 0), ("band_mean", 0), ("mse_by_band", 0), ("psnr", math.inf)):
            assert (measures[f"{scope}_{name}"] == value).all()
        assert measures[f"{scope}_ssim"].tolist() == pytest.approx([1, 1], abs=1e-6)
        assert measures[f"{scope}_sam"].tolist() == pytest.approx([0, 0], abs=1e-4)


def test_known_values():
    """A constant error of 0.1 in a cube of constant 0.5: 20 dB; twice as bright: no angle."""
    cube, hidden, view = torch.full((1, BANDS, SIZE, SIZE), 0.5), random_hidden(), torch.ones(1, SIZE, SIZE).bool()
    measures = measure(cube + 0.1, cube, hidden, view, 1.0)
    assert measures["masked_mse"].item() == pytest.approx(0.01, rel=1e-5)
    assert measures["masked_psnr"].item() == pytest.approx(20, abs=1e-4)
    assert measures["masked_band_mean"].item() == pytest.approx(0.01, rel=1e-5)
    assert measures["all_mse"].item() == pytest.approx(0.01 * hidden.float().mean().item(), rel=1e-5)
    assert measures["masked_sam"].item() == pytest.approx(0, abs=1e-4)
    assert measure(2 * cube, cube, hidden, view, 2.0)["masked_sam"].item() == pytest.approx(0, abs=1e-4)


def test_a_turned_spectrum_is_measured_over_hidden_bands_alone():
    """Hidden (0.3, 0.4) becomes (0.4, 0.3), an angle of acos(0.96); the two visible bands do not dilute it."""
    cube = torch.tensor([0.3, 0.4, 0.9, 0.2]).view(1, 4, 1, 1).repeat(1, 1, 6, 6)
    hidden = torch.zeros(1, 4, 6, 6, dtype=torch.bool)
    hidden[:, :2, :3] = True  # the lower half has no hidden band
    measures = measure(cube[:, [1, 0, 2, 3]], cube, hidden, torch.ones(1, 6, 6).bool(), 1.0)
    assert measures["masked_sam"].item() == pytest.approx(math.degrees(math.acos(0.96)), rel=1e-5)
    whole = math.degrees(math.acos((0.24 + 0.81 + 0.04) / (0.25 + 0.81 + 0.04)))
    assert measures["all_sam"].item() == pytest.approx(whole / 2, rel=1e-4)  # the lower half counts as 0
    assert measures["masked_mse_by_band"][0].tolist() == pytest.approx([0.01, 0.01, math.nan, math.nan], nan_ok=True)
    assert measures["all_mse_by_band"][0].tolist() == pytest.approx([0.005, 0.005, 0, 0])


def test_background_and_predictions_for_visible_voxels_never_count(case):
    reconstruction, cube, hidden, foreground, data_range = case
    expected = measure(*case)
    outside = ~foreground[:, None].expand_as(hidden)
    for junk in (torch.nan, 7.0):
        for_visible = torch.where(hidden & ~outside, reconstruction, junk)
        background = torch.where(outside, junk, cube)
        measures = measure(for_visible, background, hidden, foreground, data_range)
        for name, value in expected.items():
            assert torch.equal(measures[name], value), name


@pytest.mark.parametrize("scale", [4095.0, 1e-4])
def test_units_do_not_matter(case, scale):
    reconstruction, cube, hidden, foreground, _ = case
    expected, measures = measure(*case), measure(scale * reconstruction, scale * cube, hidden, foreground, scale)
    for name, value in expected.items():
        squared = scale**2 if "mse" in name or "band_mean" in name else 1
        torch.testing.assert_close(measures[name] / squared, value, rtol=1e-5, atol=1e-6)


def test_dark_spectra_have_their_true_angle(case):
    """The epsilon of the loss, 1e-8, would be as large as a spectrum of 5 voxels at 5e-5 of the range."""
    reconstruction, cube, hidden, foreground, _ = case
    dark = measure(1e-5 * reconstruction, 1e-5 * cube, hidden, foreground, 1.0)
    torch.testing.assert_close(dark["masked_sam"], measure(*case)["masked_sam"], rtol=1e-4, atol=0)


def test_a_cube_does_not_depend_on_its_batch(case):
    together = measure(*case)
    for i in range(2):
        alone = measure(*(x[i : i + 1] for x in case[:4]), case[4])
        assert list(alone) == list(together) == [f"{scope}_{name}" for scope in ("masked", "all") for name in MEASURES]
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][i : i + 1], rtol=1e-6, atol=1e-6)


def test_without_voxels_a_measure_is_nan(case):
    reconstruction, cube, _, foreground, _ = case
    nothing = torch.zeros_like(cube, dtype=torch.bool)
    measures = measure(reconstruction, cube, nothing, foreground, 1.0)
    assert all(value.isnan().all() for name, value in measures.items() if name.startswith("masked"))
    assert (measures["all_mse"] == 0).all()
    measures = measure(reconstruction, cube, ~nothing, torch.zeros_like(foreground), 1.0)
    assert all(value.isnan().all() for value in measures.values())


def test_black_pixels_have_no_angle(case):
    reconstruction, cube, hidden, foreground, _ = case
    black = cube.clone()
    black[:, :, 18:22, 18:22] = 0
    smaller = foreground.clone()
    smaller[:, 18:22, 18:22] = False
    measures = measure(reconstruction, black, hidden, foreground, 1.0)
    expected = measure(reconstruction, black, hidden, smaller, 1.0)
    assert torch.equal(measures["masked_sam"], expected["masked_sam"])
    assert not torch.equal(measures["masked_mse"], expected["masked_mse"])


def test_half_precision_is_measured_in_float32(case):
    half = [x.half() for x in case[:2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measures = measure(*half, *case[2:])
    expected = measure(*(x.float() for x in half), *case[2:])
    assert all(torch.equal(measures[name], value) for name, value in expected.items())


def test_arguments_that_do_not_fit(case):
    reconstruction, cube, hidden, foreground, _ = case
    with pytest.raises(ValueError, match="differ in shape"):
        measure(reconstruction[:1], cube, hidden, foreground, 1.0)
    with pytest.raises(ValueError, match=r"hidden \(2, 1, 40, 40\)"):
        measure(reconstruction, cube, hidden[:, :1], foreground, 1.0)
    with pytest.raises(ValueError, match=r"foreground \(1, 40, 40\)"):
        measure(reconstruction, cube, hidden, foreground[:1], 1.0)
    with pytest.raises(ValueError, match="data_range"):
        measure(reconstruction, cube, hidden, foreground, 0.0)


# ------------------------------------------------------------------------------------------------ baselines


def phantom(cubes=2, size=200, bands=BANDS, seed=0):
    """Smooth fields and thin dark lines, each with a spectrum of its own, in a black surround: (cube, foreground)."""
    torch.manual_seed(seed)
    place = torch.linspace(0, 2 * math.pi, size)
    phase = 6 * torch.rand(6, cubes, 1, 1)
    large = torch.sin(place + phase[0]) * torch.cos(place[:, None] + phase[1]) + torch.sin(place[:, None] + phase[2])
    lines = torch.exp(-40 * torch.sin(2 * place + 2 * torch.sin(place[:, None] + phase[3]) + phase[4]) ** 2)
    band = torch.linspace(0, 1, bands).view(-1, 1, 1)
    absorbed = (1 + band) * (0.6 + 0.25 * large[:, None]) + 0.8 * (1 - 0.7 * band) * lines[:, None]
    foreground = disc(size).expand(cubes, -1, -1)
    return torch.exp(-absorbed) * foreground[:, None] + 0.002 * torch.rand(cubes, bands, size, size), foreground


def statistics(cube, foreground):
    voxels = cube.transpose(0, 1)[:, foreground]
    return voxels.mean(dim=1), voxels.std(dim=1)


@pytest.fixture(scope="module")
def filled():
    """Two phantoms, what is hidden, their statistics, and the interpolation."""
    cube, foreground = phantom()
    hidden = random_hidden(2, size=200)
    mean, std = statistics(*phantom(8, seed=1))
    return cube, hidden, foreground, mean, std, interpolate(cube, hidden, foreground, mean, std, PATCH)


def test_mean_spectrum_by_hand():
    cube, hidden = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4) < 0.5
    result = mean_spectrum(cube, hidden, torch.tensor([1.0, 2.0, 3.0]))
    for index in np.ndindex(2, 3, 4, 4):
        assert result[index] == (index[1] + 1 if hidden[index] else cube[index])


def test_visible_voxels_are_kept(filled):
    cube, hidden, *_, result = filled
    assert torch.equal(result[~hidden], cube[~hidden])
    assert (result[hidden] != cube[hidden]).any()


def test_hidden_values_are_not_seen(filled):
    cube, hidden, foreground, mean, std, result = filled
    for junk in (torch.nan, -3.0):
        changed = interpolate(torch.where(hidden, junk, cube), hidden, foreground, mean, std, PATCH)
        assert torch.equal(changed, result)


def test_foreground_is_read_at_visible_voxels_alone(filled):
    cube, hidden, foreground, mean, std, result = filled
    unseen = hidden.all(dim=1)
    assert unseen.any()
    assert torch.equal(interpolate(cube, hidden, foreground ^ unseen, mean, std, PATCH), result)


def test_visible_background_is_not_seen(filled):
    cube, hidden, foreground, mean, std, result = filled
    changed = interpolate(torch.where(foreground[:, None], cube, 9.0), hidden, foreground, mean, std, PATCH)
    assert torch.equal(changed[hidden], result[hidden])


def test_interpolation_is_much_better_than_the_mean_spectrum_and_than_each_of_its_halves(filled):
    """Interpolation in the plane alone (bands taken one by one), and from other bands alone (pixels one by one)."""
    cube, hidden, foreground, mean, std, result = filled

    def error(reconstruction):
        return measure(reconstruction, cube, hidden, foreground, 1.0)["masked_mse"]

    def band_by_band(band):
        one = slice(band, band + 1)
        return interpolate(cube[:, one], hidden[:, one], foreground, mean[one], std[one], PATCH)

    in_plane = torch.cat([band_by_band(band) for band in range(BANDS)], dim=1)
    elsewhere = mean_spectrum(result, hidden.all(dim=1, keepdim=True).expand_as(hidden), mean)
    assert (error(result) < 0.2 * error(mean_spectrum(cube, hidden, mean))).all()
    assert (error(result) < 0.8 * error(in_plane)).all()
    assert (error(result) < 0.5 * error(elsewhere)).all()


def test_a_hidden_band_that_follows_from_another_is_found():
    """Bands that are multiples of one picture of noise: no interpolation in the plane could tell its pixels."""
    torch.manual_seed(0)
    picture = 0.5 + 0.1 * torch.randn(1, 1, SIZE, SIZE)
    cube = picture * torch.linspace(0.5, 1.5, BANDS).view(-1, 1, 1)
    hidden, view = random_hidden(share=0.4), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    mean, std = statistics(cube, view)
    found = hidden & ~hidden.all(dim=1, keepdim=True)
    error = (interpolate(cube, hidden, view, mean, std, PATCH) - cube)[found]
    assert error.square().mean() < 0.02 * (mean_spectrum(cube, hidden, mean) - cube)[found].square().mean()


def test_units_of_the_cube_do_not_matter_to_baselines(filled):
    cube, hidden, foreground, mean, std, result = filled
    scaled = interpolate(4095 * cube, hidden, foreground, 4095 * mean, 4095 * std, PATCH)
    torch.testing.assert_close(scaled / 4095, result, rtol=1e-4, atol=1e-4)


def test_baselines_are_deterministic_and_do_not_depend_on_the_batch(filled):
    cube, hidden, foreground, mean, std, result = filled
    assert torch.equal(interpolate(cube, hidden, foreground, mean, std, PATCH), result)
    for i in range(2):
        one = slice(i, i + 1)
        alone = interpolate(cube[one], hidden[one], foreground[one], mean, std, PATCH)
        torch.testing.assert_close(alone, result[one], rtol=1e-4, atol=1e-4)


def test_with_nothing_to_go_by_it_is_the_mean_spectrum(filled):
    cube, _, foreground, mean, std, _ = filled
    everything = torch.ones_like(cube, dtype=torch.bool)
    expected = mean_spectrum(cube, everything, mean)
    torch.testing.assert_close(interpolate(cube, everything, foreground, mean, std, PATCH), expected)


def test_one_visible_token_and_a_constant_cube_are_finite():
    hidden, view = torch.ones(1, BANDS, SIZE, SIZE, dtype=torch.bool), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    hidden[:, :3, 10:20, :10] = False
    mean, std = torch.full((BANDS,), 0.4), torch.full((BANDS,), 0.1)
    for cube in (torch.full((1, BANDS, SIZE, SIZE), 0.6), torch.rand(1, BANDS, SIZE, SIZE)):
        result = interpolate(cube, hidden, view, mean, std, PATCH)
        assert result.isfinite().all()
        assert (result[:, 3:] == 0.4).all()  # bands of which nothing is known
        assert result.min() > -0.5
        assert result.max() < 1.5
