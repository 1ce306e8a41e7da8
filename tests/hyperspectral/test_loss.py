"""The loss of the masked autoencoder against formulas in NumPy, and its gradients where things are at zero."""

import numpy as np
import pytest
import torch

from hsi.loss import MAESpectralLoss
from hsi.mae_spectral import MAESpectral

GROUPS, BANDS, PATCH, ROWS, COLUMNS = 3, 2, 4, 2, 3
C, H, W = GROUPS * BANDS, ROWS * PATCH, COLUMNS * PATCH
MEAN, STD = np.linspace(0.2, 0.5, C), np.linspace(0.05, 0.15, C)
LOW, HIGH = 0.1, 0.7
WEIGHTS = {"mse_weight": 1.0, "sam_weight": 0.1, "variance_weight": 0.01, "range_penalty_weight": 0.001}
NAMES = dict(zip(WEIGHTS, ("mse", "sam", "variance", "range"), strict=True))  # argument -> part


def make_case(number=4, columns=ROWS * COLUMNS, seed=0):
    """(prediction, foreground): random z-scores at `columns` of the places, other ones in each cube. Each cube hides
    the same number of tokens, and thus has another number of hidden ones among the decoded."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(number, GROUPS, ROWS * COLUMNS, BANDS * PATCH**2, generator=generator)
    patches = target + 0.7 * torch.randn(target.shape, generator=generator)
    order = torch.rand(number, GROUPS * ROWS * COLUMNS, generator=generator).argsort(dim=1)
    hidden = (order < 12).view(number, GROUPS, -1)
    chosen = torch.rand(number, ROWS * COLUMNS, generator=generator).argsort(dim=1)[:, :columns].sort(dim=1).values
    prediction = {
        "patches": torch.stack([x[:, j] for x, j in zip(patches, chosen, strict=True)]),
        "target": torch.stack([x[:, j] for x, j in zip(target, chosen, strict=True)]),
        "hidden": torch.stack([x[:, j] for x, j in zip(hidden, chosen, strict=True)]),
        "columns": chosen,
    }
    return prediction, torch.rand(number, H, W, generator=generator) < 0.7


def make_loss(**options):
    return MAESpectralLoss(MEAN, STD, LOW, HIGH, **options)


def by_hand(prediction, foreground, loss_on="masked", norm_pix_loss=False):
    """Each term in float64, one cube and one column after the other."""
    patches, target = (prediction[name].detach().double().numpy() for name in ("patches", "target"))
    hidden, columns = prediction["hidden"].numpy(), prediction["columns"].numpy()
    errors, angles, variances, excesses = [], [], [], []
    for b in range(len(patches)):
        of_cube = []
        for k, j in enumerate(columns[b]):
            spectra, truth = np.empty((2, C, PATCH * PATCH))
            for s in range(GROUPS):
                counts = loss_on == "all" or hidden[b, s, k]
                if counts:
                    error = np.mean((patches[b, s, k] - target[b, s, k]) ** 2)
                    of_cube.append(error / (target[b, s, k].var(ddof=1) + 1e-6) if norm_pix_loss else error)
                for i in range(BANDS):
                    band, values = s * BANDS + i, slice(i * PATCH**2, (i + 1) * PATCH**2)
                    truth[band] = target[b, s, k, values] * STD[band] + MEAN[band]
                    spectra[band] = patches[b, s, k, values] * STD[band] + MEAN[band] if counts else truth[band]
            cosine = (spectra * truth).sum(0) / np.linalg.norm(spectra, axis=0) / np.linalg.norm(truth, axis=0)
            r, c = divmod(j, COLUMNS)
            inside = foreground[b, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].numpy().ravel()
            angles.append(np.where(inside, np.arccos(np.clip(cosine, -1, 1)), 0))
            spectra, truth = spectra / (HIGH - LOW), truth / (HIGH - LOW)
            variances.append((spectra.std(axis=0) - truth.std(axis=0)) ** 2)
            low, high = LOW / (HIGH - LOW), HIGH / (HIGH - LOW)
            excesses.append(np.maximum(low - spectra, 0) ** 2 + np.maximum(spectra - high, 0) ** 2)
        errors.append(np.mean(of_cube) if of_cube else 0)
    return {name: float(np.mean(x)) for name, x in zip(NAMES.values(), (errors, angles, variances, excesses),
                                                        strict=True)}  # fmt: skip


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("columns", [ROWS * COLUMNS, 2])
def test_every_term_is_its_formula(loss_on, norm_pix_loss, columns):
    prediction, foreground = make_case(columns=columns)
    loss, parts = make_loss(loss_on=loss_on, norm_pix_loss=norm_pix_loss)(prediction, foreground)
    expected = by_hand(prediction, foreground, loss_on, norm_pix_loss)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 1e-4  # each of them was put to the test
    weighted = sum(weight * expected[NAMES[name]] for name, weight in WEIGHTS.items())
    assert float(loss) == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_has_its_effect(name):
    prediction, foreground = make_case()
    expected = by_hand(prediction, foreground)
    loss, _ = make_loss(**dict.fromkeys(WEIGHTS, 0.0) | {name: 3.0})(prediction, foreground)
    assert float(loss) == pytest.approx(3 * expected[NAMES[name]], rel=1e-4)


@pytest.mark.parametrize("columns", [ROWS * COLUMNS, 1])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(columns, loss_on):
    """Or two processes, or accumulated batches, would not equal one."""
    prediction, foreground = make_case(columns=columns)
    criterion = make_loss(loss_on=loss_on)
    whole, parts = criterion(prediction, foreground)
    halves = [criterion({n: x[i] for n, x in prediction.items()}, foreground[i]) for i in (slice(2), slice(2, 4))]
    assert float(sum(loss for loss, _ in halves) / 2) == pytest.approx(float(whole), rel=1e-6)
    for name, part in parts.items():
        assert float(sum(half[name] for _, half in halves) / 2) == pytest.approx(float(part), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_visible_tokens_get_a_gradient_only_if_all_count(name):
    prediction, foreground = make_case()
    hidden = prediction["hidden"]
    for loss_on, visible_too in (("masked", False), ("all", True)):
        prediction["patches"] = prediction["patches"].detach().requires_grad_()
        weights = dict.fromkeys(WEIGHTS, 0.0) | {name: 1.0}
        make_loss(loss_on=loss_on, **weights)(prediction, foreground)[0].backward()
        gradient = prediction["patches"].grad
        assert bool(gradient[~hidden].any()) == visible_too
        assert gradient[hidden].any()


def test_the_angle_counts_the_foreground_alone():
    prediction, foreground = make_case()
    prediction["patches"].requires_grad_()
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"sam_weight": 1.0}
    make_loss(**weights)(prediction, foreground)[0].backward()
    model = MAESpectral((H, W), (PATCH, BANDS), C, 8, 1, 1, 8, 1, 1)  # knows how to put tokens back
    gradient, hidden = (
        model.unpatchify(x.flatten(1, 2))
        for x in (prediction["patches"].grad, prediction["hidden"][..., None].expand_as(prediction["patches"]))
    )
    counted = hidden & foreground[:, None]
    assert not gradient[~counted].any()
    assert (gradient[counted] != 0).float().mean() > 0.99


@pytest.mark.parametrize("decoder", ["full", "cross"])
def test_units_do_not_matter(decoder):
    """Reflectance, or counts of 12 bits, with statistics to match: the same loss, and the same gradients."""
    cube = torch.rand(2, C, H, W, generator=torch.Generator().manual_seed(3))
    foreground = cube.mean(dim=1) > 0.4
    results = []
    for scale in (1.0, 4095.0):
        torch.manual_seed(0)
        model = MAESpectral((H, W), (PATCH, BANDS), C, 8, 1, 1, 8, 1, 1, decoder=decoder, decode_ratio=0.5)
        model.set_statistics(MEAN * scale, STD * scale)
        noise = torch.rand(2, model.n_noise, generator=torch.Generator().manual_seed(4))
        criterion = MAESpectralLoss(model.mean, model.std, LOW * scale, HIGH * scale)
        loss, parts = criterion(model(cube * scale, noise), foreground)
        loss.backward()
        numbers = {"loss": loss, **parts}
        results.append(({k: float(v.detach()) for k, v in numbers.items()}, model.encoder.embed.weight.grad))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-7)


def at_zero(kind):
    """A case in which a square root, an angle or a variance is at zero."""
    prediction, foreground = make_case()
    zero = torch.from_numpy(-MEAN / STD).float().view(GROUPS, 1, BANDS, 1)  # z-scores of a raw value of 0
    zero = zero.expand(4, -1, ROWS * COLUMNS, -1, PATCH**2).flatten(3, 4)
    if kind == "perfect":
        prediction["patches"] = prediction["target"].clone()
    if kind in ("zero targets", "all zero"):
        prediction["target"] = zero.clone()
    if kind in ("zero predictions", "all zero"):
        prediction["patches"] = zero.clone()
    if kind == "constant tokens":
        prediction["target"] = torch.full_like(prediction["target"], 0.3)
    if kind == "flat spectra":
        flat = torch.from_numpy((0.4 - MEAN) / STD).float().view(GROUPS, 1, BANDS, 1)
        prediction["patches"] = flat.expand(4, -1, ROWS * COLUMNS, -1, PATCH**2).flatten(3, 4).clone()
        prediction["target"] = prediction["patches"].clone()
    if kind == "nothing hidden":
        prediction["hidden"] = torch.zeros_like(prediction["hidden"])
    if kind == "no foreground":
        foreground = torch.zeros_like(foreground)
    return prediction, foreground


KINDS = ["perfect", "zero targets", "zero predictions", "all zero", "constant tokens", "flat spectra"]
KINDS += ["nothing hidden", "no foreground"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_and_gradients_are_finite_at_zero(kind, loss_on, norm_pix_loss):
    prediction, foreground = at_zero(kind)
    prediction["patches"].requires_grad_()
    loss, parts = make_loss(loss_on=loss_on, norm_pix_loss=norm_pix_loss)(prediction, foreground)
    loss.backward()
    assert all(part.isfinite() for part in (loss, *parts.values()))
    assert prediction["patches"].grad.isfinite().all()
    if kind == "perfect":
        assert float(parts["mse"].detach()) == 0
        assert float(parts["sam"].detach()) < 1e-5
        assert prediction["patches"].grad.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    prediction, foreground = make_case()
    prediction["patches"] = (prediction["patches"] * 200).to(dtype)  # squares overflow in float16
    wide = prediction | {"patches": prediction["patches"].float()}
    expected, _ = make_loss()(wide, foreground)
    prediction["patches"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss, parts = make_loss()(prediction, foreground)
    assert {part.dtype for part in (loss, *parts.values())} == {torch.float32}
    assert torch.equal(loss.detach(), expected)
    loss.backward()
    assert prediction["patches"].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("decoder", ["full", "cross"])
def test_a_step_under_autocast_is_finite(dtype, decoder):
    torch.manual_seed(0)
    model = MAESpectral((H, W), (PATCH, BANDS), C, 8, 1, 1, 8, 1, 1, decoder=decoder)
    model.set_statistics(MEAN * 4095, STD * 4095)
    criterion = MAESpectralLoss(model.mean, model.std, LOW * 4095, HIGH * 4095)
    cube = torch.rand(2, C, H, W, generator=torch.Generator().manual_seed(3)) * 4095
    cube[0, :, :PATCH] = 0
    foreground = torch.ones(2, H, W, dtype=torch.bool)
    noise = torch.rand(2, model.n_noise, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = criterion(model(cube, noise), foreground)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(criterion(model(cube, noise), foreground)[0].detach()), rel=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_unknown_kind_of_tokens_is_refused():
    with pytest.raises(ValueError, match="loss_on is visible"):
        make_loss(loss_on="visible")
