import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ceph.anatomy import anatomy_of
from ceph.heatmaps import encode_heatmaps, to_heatmap
from ceph.hrnet import HRNetLandmarks, decode
from ceph.losses import LandmarkLoss
from core.checkpoints import save_model
from core.errors import UserError
from core.landmarks import make_schema


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return HRNetLandmarks("hrnet_w18_small", (64, 64), 16)


def batch_for(model, size=2):
    generator = torch.Generator().manual_seed(1)
    height, width = model.heatmap_size[0] * model.stride, model.heatmap_size[1] * model.stride
    return {
        "image": torch.rand(size, 1, height, width, generator=generator),
        "points": torch.rand(size, 29, 2, generator=generator) * (width - 1),
        "measurements": torch.randn(size, 10, generator=generator),
        "cvm_stage": torch.tensor([2, 5])[:size],
    }


@pytest.mark.parametrize(
    ("backbone", "total"),
    [("hrnet_w48", 66_053_405), ("hrnet_w32", 29_676_941), ("hrnet_w18_small", 1_607_645)],
)
def test_parameter_counts(backbone, total):
    with torch.device("meta"):
        model = HRNetLandmarks(backbone)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


@pytest.mark.parametrize("heatmap_size", [64, 128, 256])
def test_heatmap_sizes_at_512(heatmap_size):
    model = HRNetLandmarks("hrnet_w18_small", (512, 512), heatmap_size).eval()
    with torch.inference_mode():
        prediction = model(torch.rand(1, 1, 512, 512))
    assert prediction["heatmaps"].shape == (1, 29, heatmap_size, heatmap_size)
    assert prediction["measurements"].shape == (1, 10)
    assert prediction["cvm_stage"].shape == (1, 6)
    assert model.stride == 512 // heatmap_size


def test_the_head_equals_the_convolution_of_concatenated_branches(small):
    small.eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        branches = small.backbone((image - 0.449) / 0.226)[1:]
        assert [tuple(b.shape[1:]) for b in branches] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
        enlarged = [F.interpolate(b, size=(16, 16), mode="bilinear", align_corners=False) for b in branches]
        weight = torch.cat([merge.weight for merge in small.merge], dim=1)
        expected = small.head(F.conv2d(torch.cat(enlarged, dim=1), weight))
        assert torch.allclose(small(image)["heatmaps"], expected, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_frozen_statistics_none(small):
    small.train()
    criterion = LandmarkLoss(small.stride, small.heatmap_size)
    batch = batch_for(small)
    loss, _ = criterion(small(batch["image"]), batch)
    loss.backward()
    missing = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # features_only keeps the stem's output, which nothing reads; all of it lies on the way to the branches.
    assert missing == []
    small.zero_grad()


def test_the_loss_against_its_parts_by_hand(small):
    criterion = LandmarkLoss(small.stride, small.heatmap_size, sigma=1.5, branch_weight=0.3)
    batch = batch_for(small)
    batch["points"][0, 3] = torch.nan
    batch["measurements"][1, 4] = torch.nan
    batch["cvm_stage"][1] = -1
    prediction = {
        "heatmaps": torch.rand(2, 29, 16, 16),
        "measurements": torch.randn(2, 10),
        "cvm_stage": torch.randn(2, 6),
    }
    loss, parts = criterion(prediction, batch)

    points = to_heatmap(batch["points"], 4)
    target = encode_heatmaps(points, (16, 16), 1.5)
    dark, wing = [], []
    for b in range(2):
        for k in range(29):
            if torch.isnan(points[b, k]).any():
                continue
            h, t = prediction["heatmaps"][b, k].numpy(), target[b, k].numpy()
            dark.append(((h - t) ** 2).sum() / (t**2).sum())
            p = np.exp(25 * h) / np.exp(25 * h).sum()
            ys, xs = np.mgrid[:16, :16]
            for found, true in ((p * xs).sum(), points[b, k, 0].item()), ((p * ys).sum(), points[b, k, 1].item()):
                x = abs(found - true)
                wing.append((10 * np.log(1 + x / 2) if x < 10 else x - 10 + 10 * np.log(6)) / 10)
    z = (prediction["measurements"] - batch["measurements"]).abs()
    huber = torch.where(z < 1, 0.5 * z**2, z - 0.5).nanmean().item()
    stage = -prediction["cvm_stage"][0].log_softmax(0)[batch["cvm_stage"][0]].item()
    assert parts["dark"].item() == pytest.approx(np.mean(dark), rel=1e-4)
    assert parts["wing"].item() == pytest.approx(np.mean(wing), rel=1e-3)
    assert parts["cvm"].item() == pytest.approx(huber + stage, rel=1e-4)
    expected = 0.5 * np.mean(dark) + 0.5 * np.mean(wing) + 0.3 * (huber + stage)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("names", "branch"), [(["P1", "P2"], []), (["N", "Me"], ["measurements"])])
def test_what_the_anatomy_has_not_is_not_there(names, branch, tmp_path):
    """Neither layers nor losses; what is left is called by a neutral name. Saved and loaded, all is as before."""
    anatomy = anatomy_of(make_schema({"name": "other", "names": names}, ""))
    model = HRNetLandmarks("hrnet_w18_small", (64, 64), 16, anatomy=anatomy)
    assert any("cvm" in name for name in model.state_dict()) == bool(branch)
    prediction = model(torch.rand(2, 1, 64, 64))
    assert list(prediction) == ["heatmaps", *branch]
    assert prediction["heatmaps"].shape == (2, 2, 16, 16)
    batch = {"points": torch.rand(2, 2, 2) * 60, "measurements": torch.zeros(2, len(branch))}
    loss, parts = LandmarkLoss(4, (16, 16), branch_weight=0.3)(prediction, batch)
    assert list(parts) == ["dark", "wing", *(["branch"] if branch else [])]
    expected = 0.5 * parts["dark"] + 0.5 * parts["wing"] + 0.3 * parts.get("branch", 0)
    assert loss.item() == pytest.approx(expected.item())
    data = {"mean_shape": [[0, 0]] * 2, "ground_truth": "mean", "taught": anatomy.taught(np.zeros((1, 2, 2)), [None])}
    config = model.config(2.0) | data
    save_model(tmp_path / "best", model, config)
    loaded, _ = HRNetLandmarks.from_folder(tmp_path / "best")
    assert loaded.anatomy == anatomy
    for missing in ("taught", "schema"):
        save_model(tmp_path / "best", model, {key: value for key, value in config.items() if key != missing})
        with pytest.raises(UserError, match=f"no {missing}"):
            HRNetLandmarks.from_folder(tmp_path / "best")


def test_a_batch_without_any_truth_costs_nothing_and_does_not_break(small):
    criterion = LandmarkLoss(small.stride, small.heatmap_size)
    batch = batch_for(small)
    batch["points"], batch["measurements"] = torch.full((2, 29, 2), torch.nan), torch.full((2, 10), torch.nan)
    batch["cvm_stage"] = torch.tensor([-1, -1])
    loss, _ = criterion(small(batch["image"]), batch)
    loss.backward()
    assert loss.item() == 0
    small.zero_grad()


def test_rare_stages_count_for_more(small):
    batch = batch_for(small)
    batch["cvm_stage"] = torch.tensor([1, 4])
    with torch.no_grad():
        prediction = small.eval()(batch["image"])
    small.train()
    weights = np.array([1, 3.0, 1, 1, 0.5, 1])
    plain, weighted = (
        LandmarkLoss(small.stride, small.heatmap_size, stage_weights=w)(prediction, batch)[1]["cvm"].item()
        for w in (None, weights)
    )
    costs = -prediction["cvm_stage"].log_softmax(1)[[0, 1], [1, 4]].numpy()
    assert weighted - plain == pytest.approx(((weights[[1, 4]] - 1) * costs).mean(), rel=1e-4)


def test_a_perfect_prediction_decodes_exactly_and_costs_little():
    criterion = LandmarkLoss(4, (128, 128))
    points = torch.rand(1, 29, 2) * 400 + 50
    prediction = {
        "heatmaps": encode_heatmaps(to_heatmap(points, 4), (128, 128), 2.0),
        "measurements": torch.zeros(1, 10),
        "cvm_stage": torch.tensor([[0.0, 50, 0, 0, 0, 0]]),
    }
    batch = {"points": points, "measurements": torch.zeros(1, 10), "cvm_stage": torch.tensor([1])}
    loss, parts = criterion(prediction, batch)
    assert parts["dark"] < 1e-9
    assert parts["wing"] < 0.05  # soft-argmax's own error
    assert loss < 0.03
    found, confidence = decode(prediction, 4, 2.0)
    assert (found - points).norm(dim=-1).max() < 0.1
    assert confidence.min() > 0.9


def test_one_batch_overfits():
    torch.manual_seed(0)
    model = HRNetLandmarks("hrnet_w18_small", (64, 64), 32)
    criterion = LandmarkLoss(model.stride, model.heatmap_size, sigma=1.5)
    batch = batch_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = criterion(model(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"backbone": "resnet50"}, "not an HRNet"),
        ({"backbone": "hrnet_w99"}, "not an HRNet"),
        ({"image_size": (100, 100)}, "multiples of 32"),
        ({"heatmap_size": 100}, "does not divide"),
    ],
)
def test_impossible_models_say_what_to_change(arguments, text):
    with pytest.raises(UserError, match=text):
        HRNetLandmarks(**{"backbone": "hrnet_w18_small", **arguments})


@pytest.fixture
def imagenet_weights():
    """Stands in for ImageNet weights: random ones of the whole classifier, with three input channels."""
    torch.manual_seed(5)
    return timm.create_model("hrnet_w18_small", pretrained=False).state_dict()


def test_weights_from_a_file_are_summed_to_grey(tmp_path, imagenet_weights):
    save_file(imagenet_weights, tmp_path / "w.safetensors")
    model = HRNetLandmarks("hrnet_w18_small", (64, 64), 16, backbone_weights=tmp_path / "w.safetensors").eval()
    rgb = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=(1, 2, 3, 4)).eval()
    rgb.load_state_dict({k: v for k, v in imagenet_weights.items() if k in rgb.state_dict()})
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        ours, theirs = model.backbone(image)[1:], rgb(image.repeat(1, 3, 1, 1))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_weights_of_another_model_are_refused(tmp_path, imagenet_weights):
    torch.save({"state_dict": {"module.conv1.weight": imagenet_weights["conv1.weight"]}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not for hrnet_w18_small"):
        HRNetLandmarks("hrnet_w18_small", (64, 64), 16, backbone_weights=tmp_path / "w.pth")


def test_pretrained_weights_come_from_timms_hub_or_the_way_out_is_named(tmp_path, monkeypatch, imagenet_weights):
    """The hub's own cache layout, filled by hand, stands in for a download."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"timm/hrnet_w18_small\..*--backbone_weights FILE.*--no-pretrained"):
        HRNetLandmarks("hrnet_w18_small", (64, 64), 16, pretrained=True)
    fill_hub_cache(tmp_path, "hrnet_w18_small", imagenet_weights)
    model = HRNetLandmarks("hrnet_w18_small", (64, 64), 16, pretrained=True)
    grey = imagenet_weights["conv1.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(model.backbone.conv1.weight, grey, atol=1e-6)
    assert torch.equal(model.backbone.conv2.weight, imagenet_weights["conv2.weight"])


def fill_hub_cache(folder, backbone, state):
    repository = folder / ("models--" + timm.get_pretrained_cfg(backbone).hf_hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(state, snapshot / "model.safetensors")
