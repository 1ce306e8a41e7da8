"""The variational autoencoder: its sizes, its gradients, and that a code is all that the decoder sees."""

import resource

import numpy as np
import pytest
import torch
from torch import nn

from core.checkpoints import save_model
from core.errors import UserError
from ear.crops import EarCrops, read_manifest
from ear.losses import WEIGHTS, EarVAELoss
from ear.quality import quality
from ear.sam_vae import LOGVAR_RANGE, EarVAE

WITHOUT_VGG = {name: weight for name, (weight, _) in WEIGHTS.items()} | {"perceptual": 0}


def images(count, size=32, seed=1):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def counts(model):
    """(all, trainable, frozen) parameters."""
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return sizes[True] + sizes[False], sizes[True], sizes[False]


# ------------------------------------------------------------------------------------------------ parameters


def test_parameters_of_the_default_model():
    """The reference: 148 M, 105 M of them trainable, 43 M frozen."""
    with torch.device("meta"):
        model = EarVAE()
    assert counts(model) == (147_393_263, 104_819_695, 42_573_568)
    assert counts(model) == pytest.approx((148e6, 105e6, 43e6), rel=0.02)
    assert counts(model.encoder.sam)[0] == pytest.approx(89.7e6, rel=0.001)
    with torch.device("meta"):
        frozen = counts(EarVAE(freeze_embeddings=True))
    assert frozen[0] == 147_393_263
    assert frozen[2] == pytest.approx(46.3e6, rel=0.001)


@pytest.mark.parametrize("size", [672, 448, 224])
def test_other_input_sizes_differ_by_their_positions_alone(size):
    """The sizes are reached by strides, not by other layers."""
    with torch.device("meta"):
        ours, default = counts(EarVAE(sam_image_size=size)), counts(EarVAE())
    assert default[0] - ours[0] == 768 * (64**2 - (size // 16) ** 2)
    assert ours[2] == default[2]


@pytest.mark.parametrize("arguments", [{}, {"freeze_embeddings": True}, {"freeze_layers": 0}, {"sam_image_size": 224}])
def test_every_parameter_learns_unless_it_is_frozen(make_vae, arguments):
    model = make_vae(**arguments).train()
    loss, _ = EarVAELoss(WITHOUT_VGG)(model(images(3)), images(3))
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 1e-9, name
        else:
            assert parameter.grad is None, name
    assert not model.logvar.weight.any()  # starts at zero, and yet learns


def test_a_step_down_the_gradient_lowers_the_loss_of_the_default_model_as_much_as_it_says():
    """SAM-B at 224 px, 147 M parameters less some positions; a tenth of a second-order step. Also in 6 GB."""
    torch.manual_seed(0)
    model, criterion, target = EarVAE(sam_image_size=224).train(), EarVAELoss(WITHOUT_VGG), images(2, 128)
    assert model.encoder.sam.grid == 14

    def loss():
        torch.manual_seed(1)  # the same noise
        return criterion(model(target), target)[0]

    before = loss()
    before.backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    squared = sum(parameter.grad.square().sum() for parameter in learning)
    assert torch.isfinite(squared)
    rate = 1e-3 * before.item() / squared.item()  # so that the loss falls by a thousandth
    with torch.no_grad():
        for parameter in learning:
            parameter -= rate * parameter.grad
        fall = before.item() - loss().item()
    assert fall == pytest.approx(1e-3 * before.item(), rel=0.3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 6e9


# ------------------------------------------------------------------------------------------------ codes


@torch.no_grad()
def test_outputs_have_their_shapes_and_range(make_vae):
    model = make_vae().eval()
    result = model(images(3))
    assert set(result) == {"reconstruction", "mu", "logvar"}
    assert result["reconstruction"].shape == (3, 3, 32, 32)
    assert result["mu"].shape == result["logvar"].shape == (3, 16)
    assert model.decode(100 * torch.randn(4, 16)).abs().max() <= 1
    assert (model.latent_dim, model.image_size) == (16, 32)


@torch.no_grad()
def test_a_code_is_all_that_the_decoder_sees(make_vae):
    """Shuffled codes give the shuffled pictures; what was encoded in between does not matter."""
    model = make_vae().eval()
    z = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    expected, order = model.decode(z), [3, 0, 4, 2, 1]
    torch.testing.assert_close(model.decode(z[order]), expected[order])
    assert (expected[0] - expected[1]).abs().mean() > 0.01
    model.encode(images(5, seed=2))
    assert torch.equal(model.decode(z), expected)
    first, second = model(images(5, seed=2)), model(images(5, seed=3))
    assert not torch.equal(first["reconstruction"], second["reconstruction"])
    torch.testing.assert_close(model.decode(first["mu"]), first["reconstruction"])


@torch.no_grad()
def test_eval_takes_the_means(make_vae):
    model = make_vae().eval()
    ours, again = model(images(3)), model(images(3))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert torch.equal(ours["reconstruction"], model.decode(ours["mu"]))
    mu, logvar = model.encode(images(3))
    assert torch.equal(mu, ours["mu"])
    assert torch.equal(logvar, ours["logvar"])


@torch.no_grad()
def test_training_draws_codes_from_the_normal_distribution_that_was_encoded(make_vae, monkeypatch):
    model, drawn = make_vae().train(), []
    mu, logvar = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model, "encode", lambda _: (mu.expand(4000, 16), 2 * logvar.expand(4000, 16)))
    monkeypatch.setattr(model.decoder, "forward", lambda z: drawn.append(z) or z)
    model(images(1))
    score = (drawn[0] - mu) / logvar.exp()  # (4000, 16)
    assert score.mean(dim=0).abs().max() < 5 / 4000**0.5
    assert score.std(dim=0).sub(1).abs().max() < 5 / 8000**0.5
    assert torch.corrcoef(score.T).sub(torch.eye(16)).abs().max() < 5 / 4000**0.5


@torch.no_grad()
def test_training_draws_anew_each_time(make_vae):
    model = make_vae().train()
    first, second = (model(images(3))["reconstruction"] for _ in range(2))
    assert (first - second).abs().mean() > 1e-4


@torch.no_grad()
def test_a_picture_alone_gives_what_it_gives_in_a_batch(make_vae):
    model = make_vae().eval()
    together = model(images(4))
    for i in range(4):
        alone = model(images(4)[i : i + 1])
        for name in alone:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_two_views_give_the_codes_of_both(make_vae):
    model = make_vae().eval()
    ears, other = images(3), images(3, seed=5)
    result = model(ears, other)
    assert set(result) == {"reconstruction", "mu", "logvar", "mu_other"}
    for name, tensor in model(ears).items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["mu_other"], model(other)["mu"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_stage_of_the_decoder_uses_the_code(make_vae):
    """With the code of its first map held, another code for any one stage gives another picture."""
    model = make_vae().eval()
    z, other = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    expected = model.decode(z)
    assert len(model.decoder.stages) == 3
    for stage in model.decoder.stages:
        for film in stage.films:
            handle = film.register_forward_pre_hook(lambda _, inputs: (other,))
            assert (model.decode(z) - expected).abs().mean() > 1e-4
            handle.remove()
    assert torch.equal(model.decode(z), expected)


@torch.no_grad()
def test_extreme_log_variances_stay_in_range(make_vae):
    model = make_vae().train()
    for bias in (1e4, -1e4):
        nn.init.constant_(model.logvar.bias, bias)
        result = model(images(2))
        low, high = LOGVAR_RANGE
        assert ((result["logvar"] >= low) & (result["logvar"] <= high)).all()
        assert all(tensor.isfinite().all() for tensor in result.values())


# ------------------------------------------------------------------------------------------------ sizes


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_pictures_of_every_size(make_vae, size):
    model = make_vae(image_size=size).eval()
    assert model(images(2, size))["reconstruction"].shape == (2, 3, size, size)
    assert len(model.decoder.stages) == np.log2(size / 4)


@pytest.mark.parametrize("size", [100, 0, 4, -8, 96, 129])
def test_other_picture_sizes_are_refused(make_vae, size):
    with pytest.raises(UserError, match=rf"--image_size {size}\b.*64, 128") as caught:
        make_vae(image_size=size)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("grid", [64, 42, 28, 14, 8])
def test_every_grid_becomes_a_code_of_a_4_by_4_map(make_vae, grid):
    model, seen = make_vae(sam_image_size=16 * grid).eval(), []
    model.encoder.pool.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    mu, logvar = model.encode(images(1))
    assert mu.shape == logvar.shape == (1, 16)
    side = {64: 8, 42: 6, 28: 4, 14: 4, 8: 4}[grid]
    assert seen == [((1, 96, side, side), (1, 96, 4, 4))]


# ------------------------------------------------------------------------------------------------ on the disk


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 448])
def test_a_saved_model_of_a_sam_needs_that_sam_no_more(make_vae, sam_folder, tmp_path, size):
    model = make_vae(sam_config="base", sam_model=sam_folder, sam_image_size=size, freeze_layers=1, size="tiny").eval()
    config = {"kind": "ear VAE", "taught": {}, "model": model.arguments, "data": {}}
    save_model(tmp_path / "run" / "best", model, config)
    assert str(sam_folder) not in (tmp_path / "run" / "best" / "config.json").read_text()
    again, config = EarVAE.from_folder(tmp_path / "run")
    assert not again.training
    assert config["model"]["sam_image_size"] == size
    expected, found = model(images(2)), again(images(2))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (expected["mu"][0] - expected["mu"][1]).abs().max() > 1e-4
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == [name for name, parameter in again.named_parameters() if parameter.requires_grad]
    assert again.arguments == model.arguments


@torch.no_grad()
def test_a_saved_tiny_model(make_vae, tmp_path):
    arguments = {"freeze_layers": 3, "freeze_embeddings": True, "gradient_checkpointing": True, "latent_dim": 7}
    model = make_vae(**arguments).eval()
    save_model(tmp_path, model, {"kind": "ear VAE", "taught": {}, "model": model.arguments, "data": {}})
    again = EarVAE.from_pretrained(tmp_path)
    assert counts(again) == counts(model)
    assert torch.equal(again(images(2))["reconstruction"], model(images(2))["reconstruction"])


def test_other_models_are_refused(make_vae, tmp_path):
    model = make_vae()
    save_model(tmp_path / "detector", model, {"kind": "ear detector", "model": {}})
    save_model(tmp_path / "other", model, {"kind": "other", "model": {}})
    save_model(tmp_path / "old", model, {"kind": "ear VAE", "model": model.arguments, "data": {}})
    texts = {
        "detector": "not 'ear VAE'",
        "other": "of kind 'other'",
        "nowhere": "not a model folder",
        "old": "no taught",
    }
    for folder, text in texts.items():
        with pytest.raises(UserError, match=text) as caught:
            EarVAE.from_pretrained(tmp_path / folder)
        assert str(tmp_path / folder) in str(caught.value)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ learning


def test_one_batch_overfits(make_vae, pictures):
    """Eight pictures: far nearer than their mean, the best that a model without codes can do."""
    ears = EarCrops(read_manifest(pictures / "train.csv")[:8], 32)
    batch = torch.stack([ears[i]["image"] for i in range(8)])
    model = make_vae().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    criterion = EarVAELoss(WITHOUT_VGG)
    for update in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - update / 60)
        loss, _ = criterion(model(batch), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        psnr = quality(model.eval()(batch)["reconstruction"], batch)["psnr"].mean()
    baseline = quality(batch.mean(dim=0).expand_as(batch), batch)["psnr"].mean()
    assert psnr > baseline + 4
