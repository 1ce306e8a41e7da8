"""The classifier: every combination of the reference, freezing, gated attention, Grad-CAM, and its folder."""

import itertools

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from core.checkpoints import save_model
from core.errors import UserError
from core.losses.classification import AsymmetricLoss, FocalLoss, MaskedBCE
from core.schedules import parameter_groups
from core.unfreezing import is_frozen, set_frozen
from ct.labels import LABELS
from ct.slice_classifier import GatedAttention, SliceClassifier
from ct.slices import cutmix

SMALL = {"backbone": "resnet10t", "image_size": 32}
LOSSES = (FocalLoss, AsymmetricLoss, MaskedBCE)


def config_of(model, labels=LABELS, **changes):
    """What a folder of the model needs to be loaded."""
    config = {"kind": "slice classifier", "model": model.arguments, "labels": list(labels), "tune_fraction": 0.15}
    config |= {"taught": {"labels": dict.fromkeys(labels, 9)}, "slices": {}, "prevalence": {}, "calibration": {}}
    return config | changes


def slices(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("multiscale", [False, True], ids=["", "multiscale"])
@pytest.mark.parametrize("attention", ["none", "se", "cbam"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "efficientnet_b0"])
def test_every_combination_builds_trains_saves_and_loads(backbone, attention, multiscale, tmp_path):
    torch.manual_seed(0)
    model = SliceClassifier(18, backbone, attention, multiscale, image_size=32)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-4, {"backbone.": 0.1}))
    schedule = model.unfreezing(1)
    labels = torch.randint(0, 2, (4, 18), generator=torch.Generator().manual_seed(1)).float()
    labels[0, :3] = -1
    for loss_type, (epoch, mixing) in itertools.product(LOSSES, ((0, 1.0), (1, 0.0))):
        before = [parameter.detach().clone() for parameter in model.head.parameters()]
        model.train()
        schedule.apply(epoch)
        mixed, targets = cutmix(slices(4, 1, 3, 32, 32), labels, mixing)
        loss = loss_type()(model(mixed)["slices"][:, 0], targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
        assert all(not torch.equal(old, new) for old, new in zip(before, model.head.parameters(), strict=True))
    save_model(tmp_path / "best", model, config_of(model))
    again, _ = SliceClassifier.from_folder(tmp_path / "best")
    with torch.no_grad():
        expected, got = (m(slices(2, 3, 3, 32, 32))["slices"] for m in (model.eval(), again))
    assert got.shape == (2, 3, 18)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("backbone", "attention", "multiscale", "gated", "total"),
    [
        ("efficientnet_b0", "none", False, False, 4_030_606),
        ("efficientnet_b0", "se", False, False, 4_236_766),
        ("efficientnet_b0", "cbam", False, False, 4_235_506),
        ("resnet50", "none", False, False, 23_544_914),
        ("resnet101", "cbam", False, False, 43_061_430),
        ("efficientnet_b0", "se", True, True, 4_610_543),
    ],
)
def test_parameter_counts(backbone, attention, multiscale, gated, total):
    model = SliceClassifier(18, backbone, attention, multiscale, gated, image_size=64)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = SliceClassifier(18, **SMALL, attention="cbam", multiscale=True, gated_attention=True)
    with torch.no_grad():  # ResNet's blocks start at nothing: the last scale of each is 0
        for parameter in model.backbone.parameters():
            parameter[parameter == 0] = 0.1
    prediction = model(slices(2, 4, 3, 32, 32))
    prediction["volume"].square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_other_backbones_of_timm(backbone):
    model = SliceClassifier(
        18, backbone, "se", multiscale=True, image_size=64 if "swin" not in backbone else 224
    ).eval()
    size = model.arguments["image_size"]
    with torch.no_grad():
        assert model(slices(1, 2, 3, size, size))["slices"].shape == (1, 2, 18)
    named = [id(p) for part in model.stages() for module in part for p in module.parameters()]
    assert sorted(named) == sorted(id(p) for p in model.backbone.parameters())


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_b0", "resnet10t", "mobilenetv3_small_050"])
def test_unfreezing_goes_from_the_end_to_the_beginning_and_reaches_all(backbone):
    model = SliceClassifier(18, backbone, image_size=32)
    parts, schedule = model.stages(), model.unfreezing(3, every=2)
    assert 3 <= len(parts) <= 5
    named = [id(p) for part in parts for module in part for p in module.parameters()]
    assert sorted(named) == sorted(id(p) for p in model.backbone.parameters())
    first = next(model.backbone.parameters())
    assert any(p is first for module in parts[0] for p in module.parameters())
    learning = []
    for epoch in range(3 + 2 * len(parts)):
        model.train()
        schedule.apply(epoch)
        learning.append([not all(map(is_frozen, part)) for part in parts])
    assert learning[2] == [False] * len(parts)
    assert learning[3] == [False] * (len(parts) - 1) + [True]
    assert learning[5][-2:] == [True, True]
    assert not learning[5][0]
    assert all(learning[-1])


def test_a_frozen_backbone_keeps_its_weights_and_statistics_and_no_activations():
    torch.manual_seed(0)
    model = SliceClassifier(18, **SMALL, attention="se")
    model.train()
    set_frozen([model.backbone], True)
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        loss = model(slices(4, 1, 3, 32, 32))["slices"].square().sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items())
    assert sum(saved) < 4 * 512 * 60  # those of attention and head
    assert model.head.weight.grad.abs().sum() > 0


def test_gated_attention_against_the_formula():
    torch.manual_seed(0)
    gate, h = GatedAttention(5, 2, hidden=3), torch.randn(1, 4, 5)
    weights = gate(h)
    assert torch.allclose(weights.sum(dim=1), torch.ones(1, 2))
    for label in range(2):
        v, u, w = gate.tanh, gate.sigmoid, gate.weights.weight[label]
        scores = [w @ (torch.tanh(v.weight @ x + v.bias) * torch.sigmoid(u.weight @ x + u.bias)) for x in h[0]]
        assert torch.allclose(weights[0, :, label], torch.softmax(torch.stack(scores), 0), atol=1e-6)


def test_the_volume_is_the_head_of_the_weighted_features_in_any_order_of_slices():
    torch.manual_seed(0)
    model = SliceClassifier(18, **SMALL, gated_attention=True).eval()
    x = slices(1, 5, 3, 32, 32)
    with torch.no_grad():
        features, prediction = model.encode(x), model(x)
        weighted = torch.einsum("bsl,bsd->bld", prediction["weights"], features)
        expected = (weighted * model.head.weight).sum(-1) + model.head.bias
        assert torch.allclose(prediction["volume"], expected, atol=1e-5)
        assert torch.allclose(model(x.flip(1))["volume"], prediction["volume"], atol=1e-5)


def test_the_normalisation_is_kept_with_the_weights():
    """A later timm may give the same name other statistics."""
    assert {"mean", "std"} <= set(SliceClassifier(18, **SMALL).state_dict())


def test_the_first_answers_are_the_prevalence():
    model = SliceClassifier(18, **SMALL, gated_attention=True).eval()
    prevalence = np.linspace(0.05, 0.6, 18)
    model.start_at(prevalence)
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        first = model(slices(1, 2, 3, 32, 32))["volume"].sigmoid()[0]
    assert np.allclose(first, prevalence, atol=1e-6)


def test_grad_cam_points_at_what_the_logit_depends_on():
    """A model made to see brightness alone: the map must be where the bright square is."""
    torch.manual_seed(0)
    model = SliceClassifier(18, "resnet10t", image_size=96).eval()
    picture = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    picture[..., 64:, 64:] = 255
    maps = model.feature_maps(picture)[-1][0].detach()  # (C, 3, 3)
    with torch.no_grad():  # the head takes the channels that the square switches on
        model.head.weight.zero_()
        model.head.weight[7] = (maps[:, 2, 2] - maps[:, 0, 0]).clamp(min=0)
    heat = model.grad_cam(picture, 7)
    assert heat.shape == (1, 96, 96)
    assert heat.max() == 1
    assert heat[0, 64:, 64:].mean() > 2 * heat[0, :32, :32].mean()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_from_a_file_and_errors(tmp_path):
    backbone = timm.create_model("resnet10t", num_classes=10)
    save_file(backbone.state_dict(), tmp_path / "w.safetensors")
    model = SliceClassifier(18, **SMALL, backbone_weights=tmp_path / "w.safetensors")
    assert torch.equal(model.backbone.layer4[0].conv1.weight, backbone.layer4[0].conv1.weight)
    with pytest.raises(UserError, match="is not for resnet18"):
        SliceClassifier(18, "resnet18", image_size=32, backbone_weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="resnet51 is not a model of timm"):
        SliceClassifier(18, "resnet51")
    with pytest.raises(UserError, match=r"timm/resnet10t\..*--backbone_weights FILE.*--no-pretrained"):
        SliceClassifier(18, **SMALL, pretrained=True)  # the tests have no hub


def test_folders_of_other_models_are_refused(tmp_path):
    model, folder = SliceClassifier(2, **SMALL), tmp_path / "best"
    config = config_of(model, ("scar", "stone"))
    untaught = {"labels": {"scar": 3, "stone": 0}}
    for changes, message in (
        ({"taught": untaught}, "labels that were not taught: stone"),
        ({"taught": {"labels": {"scar": 3}}}, "no 'stone'"),
        ({"taught": None}, "no taught"),
        ({"labels": ["scar"]}, "do not fit"),
        ({"kind": "ear VAE"}, "a model of kind 'ear VAE', not 'slice classifier'"),
    ):
        save_model(folder, model, config | changes)
        with pytest.raises(UserError, match=message):
            SliceClassifier.from_folder(folder)
    save_model(folder, model, config)
    loaded, config = SliceClassifier.from_folder(folder)
    assert config["labels"] == ["scar", "stone"]
    with torch.no_grad():
        assert loaded(slices(1, 2, 3, 32, 32))["slices"].shape == (1, 2, 2)
