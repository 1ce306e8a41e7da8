"""The detector, its loss, and where it gets its encoder from."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from core.checkpoints import save_model
from core.errors import UserError
from ear.detector import NEAR, EarDetector, log_gaussians, peak_mass, places
from ear.losses import SIGMA, DetectionLoss, map_divergence, side_loss
from ear.sam_vae import EarVAE

SIDE = 32  # px of the windows here


def make_detector(**arguments) -> EarDetector:
    torch.manual_seed(0)
    tiny = {"sam_config": "tiny", "sam_image_size": 64, "num_landmarks": 5, "freeze_layers": 0, "image_size": SIDE,
            "latent_dim": 4}  # fmt: skip
    return EarDetector(**tiny | arguments)


def make_batch(count=4):
    """Windows with an ellipse of bright noise, its box and five points on it; every other one is called a left ear, and
    is lighter at its left."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    images, points, boxes = [], [], []
    for number in range(count):
        centre, half = rng.uniform(12, 20, 2), rng.uniform(5, 9, 2)
        inside = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1
        lighter = 0.5 * ((x < centre[0]) == (number % 2 == 1))
        images.append(np.where(inside, rng.uniform(0, 0.5, (3, SIDE, SIDE)) + lighter, -0.8))
        angle = np.arange(5) * 2 * np.pi / 5
        points.append(centre + 0.8 * half * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        boxes.append([*(centre - half), *(centre + half)])
    columns = {"image": images, "points": points, "box": boxes, "left": np.arange(count) % 2}
    return {name: torch.tensor(np.array(column)).float() for name, column in columns.items()}


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A VAE as train.py leaves it, of random weights; not to be written to."""
    torch.manual_seed(3)
    vae = EarVAE("tiny", sam_image_size=64, latent_dim=8, image_size=16, freeze_layers=2)
    folder = tmp_path_factory.mktemp("vae") / "best"
    save_model(folder, vae, {"kind": "ear VAE", "taught": {}, "model": vae.arguments, "data": {}})
    return folder


# ---------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(("sam_image_size", "side"), [(64, 32), (128, 32), (224, 56)])
def test_shapes(sam_image_size, side):
    model = make_detector(sam_image_size=sam_image_size).eval()
    result = model(torch.rand(2, 3, SIDE, SIDE) * 2 - 1)
    shapes = {name: tuple(value.shape) for name, value in result.items()}
    assert shapes == {"points": (2, 5, 2), "centre": (2, 2), "box": (2, 4), "guess": (2, 5, 2),
                      "maps": (2, 6, side, side), "score": (2,), "left": (2,)}  # fmt: skip
    assert (result["box"][:, 2:] > result["box"][:, :2]).all()
    torch.testing.assert_close((result["box"][:, :2] + result["box"][:, 2:]) / 2, result["centre"])


def test_every_parameter_learns_unless_it_is_frozen():
    batch = make_batch()
    for frozen in (False, True):
        model = make_detector(freeze_encoder=frozen)
        DetectionLoss(SIDE)(model(batch["image"]), batch)[0].backward()
        without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        expected = {n for n, _ in model.named_parameters() if n.startswith("encoder.")} if frozen else set()
        # Softmax takes out what all places have in common, and keys' biases: their gradients are rounding errors.
        assert without - {"head.maps.bias"} == expected - {"head.maps.bias"}


def test_a_frozen_encoder_keeps_no_activations():
    model, kept = make_detector(freeze_encoder=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        code = model.encoder(make_batch()["image"])[2]
        assert kept == []  # its parameters take no gradients,
        model(make_batch()["image"])
        assert kept
    assert not code.requires_grad


@pytest.fixture(scope="module")
def learnt():
    """(detector that has learnt a batch by heart, the batch, the losses on the way). Not to be changed."""
    model, batch, criterion = make_detector(), make_batch(), DetectionLoss(SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss, _ = criterion(model(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, batch, losses


def test_one_batch_can_be_learnt_by_heart(learnt):
    model, batch, losses = learnt
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        result = model(batch["image"])
    assert (result["points"] - batch["points"]).norm(dim=2).mean() < 1.0  # px
    assert (result["box"] - batch["box"]).abs().mean() < 1.5
    assert ((result["left"] > 0) == (batch["left"] > 0)).all()


def test_the_score_tells_an_ear_from_none(learnt):
    model, batch, _ = learnt
    nothing = torch.full((4, 3, SIDE, SIDE), -0.8)
    with torch.no_grad():
        scores = model(torch.cat([batch["image"], nothing]))["score"]
    assert scores[:4].min() > scores[4:].max() + 0.1


# ------------------------------------------------------------------------------------------------------ in a picture


def find_white(model, images):
    """In place of the network: box and points of what is white in a window."""
    results = []
    for image in images:
        y, x = torch.nonzero(image.mean(dim=0) > 0.5, as_tuple=True)
        low, high = torch.stack([x.min(), y.min()]).float() - 0.5, torch.stack([x.max(), y.max()]).float() + 0.5
        results.append((torch.cat([low, high]), torch.stack([low, high, (low + high) / 2])))
    box, points = (torch.stack(column) for column in zip(*results, strict=True))
    return {"box": box, "points": points, "score": torch.tensor([0.25]), "left": torch.tensor([1.0])}


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256)])
def test_two_stages_find_a_place_in_the_picture(monkeypatch, size):
    monkeypatch.setattr(EarDetector, "forward", find_white)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[61:143, 97:151] = 255
    model = make_detector(image_size=128)
    found = model.predict(pixels)
    box = np.array([96.5, 60.5, 150.5, 142.5])
    one_px = 82 * 1.3 / 128  # of the second window
    np.testing.assert_allclose(found.box, box, atol=one_px)
    np.testing.assert_allclose(found.landmarks, [box[:2], box[2:], (box[:2] + box[2:]) / 2], atol=one_px)
    assert (found.score, found.side) == (0.25, "")


def test_left_ears_are_looked_at_in_a_mirror(monkeypatch):
    """The second look sees the white bar at the other end; box, points and their order come back to the picture."""
    seen = []

    def watch(model, images):
        seen.append((images[0, 0] > 0.5).float().mean(dim=0))  # white over the columns
        return find_white(model, images)

    monkeypatch.setattr(EarDetector, "forward", watch)
    pixels = np.full((200, 200, 3), 100, np.uint8)
    pixels[80:120, 60:120] = 255
    found = make_detector(image_size=128, margin=1.0, num_landmarks=3, flip=(1, 0, 2)).predict(pixels)
    first, second = (np.flatnonzero(columns.numpy()) for columns in seen)
    assert abs(first.mean() - (89.5 + 0.5) * 128 / 200 + 0.5) < 1
    assert abs(second.mean() - 63.5) < 1
    np.testing.assert_allclose(found.box, [59.5, 79.5, 119.5, 119.5], atol=1)
    # The network's order is low, high, middle: in the mirror, low and high exchange their x, and the flip their places.
    np.testing.assert_allclose(found.landmarks, [[59.5, 119.5], [119.5, 79.5], [89.5, 99.5]], atol=1)
    assert found.side == "left"


def test_stage_2_has_the_margin(monkeypatch):
    """And both stages run in eval mode."""
    seen = []

    def watch(model, images):
        seen.append((model.training, (images[0].mean(dim=0) > 0).float().mean().item()))
        return find_white(model, images)

    monkeypatch.setattr(EarDetector, "forward", watch)
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[80:120, 80:120] = 255
    make_detector(image_size=128, margin=1.0).train().predict(pixels)
    assert [training for training, _ in seen] == [False, False]
    assert [share for _, share in seen] == pytest.approx([0.2**2, 0.5**2], abs=0.02)


# ---------------------------------------------------------------------------------------------------------- folders


def test_the_encoder_comes_from_the_vae(vae_folder):
    taught = EarVAE.from_pretrained(vae_folder).encoder
    model = EarDetector.from_vae_checkpoint(checkpoint_path=vae_folder, num_landmarks=7, freeze_encoder=True).eval()
    for name, value in taught.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], value, rtol=0, atol=0)
    assert model.arguments["num_landmarks"] == 7
    assert model.arguments["freeze_layers"] == 2
    assert not any(p.requires_grad for p in model.encoder.parameters())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(model.encoder(images), taught(images))


def test_the_encoder_may_be_resized_and_unfrozen(vae_folder):
    model = EarDetector.from_vae_checkpoint(vae_folder, sam_image_size=128, freeze_layers=0)
    taught = EarVAE.from_pretrained(vae_folder).encoder
    taught.sam.resize(128)
    torch.testing.assert_close(model.encoder.sam.vision.pos_embed, taught.sam.vision.pos_embed)
    torch.testing.assert_close(model.encoder.mu.weight, taught.mu.weight, rtol=0, atol=0)
    assert model.encoder.sam.grid == 8
    assert all(p.requires_grad for p in model.encoder.parameters())


def test_a_saved_detector_comes_back(tmp_path):
    model = make_detector(margin=0.4, width=32, flip=(1, 0, 2, 3, 4)).eval()
    config = {"kind": "ear detector", "model": model.arguments, "schema": {}, "mean_ear": {},
              "taught": {"landmarks": {}}}  # fmt: skip
    save_model(tmp_path / "best", model, config)
    for folder in (tmp_path / "best", tmp_path):  # a run stands for its best/
        again, config = EarDetector.from_folder(folder)
        assert config["kind"] == "ear detector"
        assert not again.training
        pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        ours, theirs = model.predict(pixels), again.predict(pixels)
        np.testing.assert_array_equal(ours.landmarks, theirs.landmarks)
        np.testing.assert_array_equal(ours.box, theirs.box)
        assert ours.side == theirs.side != ""


def test_vae_and_detector_are_not_mistaken_for_each_other(vae_folder, tmp_path):
    model = make_detector()
    save_model(tmp_path / "best", model, {"kind": "ear detector", "model": model.arguments})
    with pytest.raises(UserError, match=r"\(no schema\)"):
        EarDetector.from_folder(tmp_path)
    config = {"kind": "ear detector", "model": model.arguments, "schema": {"names": ["a"]}, "mean_ear": {}}
    for taught, text in (({}, "no taught"), ({"taught": {"landmarks": {"b": 1}}}, "a landmark of the schema was not")):
        save_model(tmp_path / "best", model, config | taught)
        with pytest.raises(UserError, match=text):
            EarDetector.from_folder(tmp_path)
    with pytest.raises(UserError, match="kind 'ear VAE', not 'ear detector'"):
        EarDetector.from_folder(vae_folder)
    with pytest.raises(UserError, match="kind 'ear detector', not 'ear VAE'"):
        EarDetector.from_vae_checkpoint(tmp_path / "best")


# ------------------------------------------------------------------------------------------------------ maps and loss


def test_places_of_gaussians_are_their_centres():
    points = torch.tensor([[[0.3, 0.6], [0.52, 0.48]]])
    torch.testing.assert_close(places(log_gaussians(points, 0.05, 40)), points, atol=1e-4, rtol=0)
    peak = torch.nonzero(log_gaussians(points, 0.05, 40)[0, 0] == log_gaussians(points, 0.05, 40)[0, 0].max())[0]
    assert peak.tolist() == [23, 11] or peak.tolist() == [24, 12]  # row 0.6 · 40 - 0.5, column 0.3 · 40 - 0.5


def test_peak_mass_is_one_for_a_peak_and_an_area_for_a_flat_map():
    peak = log_gaussians(torch.tensor([[[0.5, 0.5]]]), 0.01, 40)[:, 0]
    flat = torch.zeros(1, 40, 40)
    two = torch.logaddexp(peak, log_gaussians(torch.tensor([[[0.2, 0.8]]]), 0.01, 40)[:, 0])
    mass = peak_mass(torch.cat([peak, flat, two]))
    assert mass.tolist() == pytest.approx([1.0, ((2 * round(40 * NEAR) + 1) / 40) ** 2, 0.5], abs=1e-3)


def test_map_divergence_is_that_of_the_distributions():
    torch.manual_seed(0)
    maps, points = torch.randn(2, 3, 12, 12), torch.rand(2, 3, 2)
    known = torch.tensor([[True, True, False], [True, False, True]])
    steps = (torch.arange(12) + 0.5) / 12
    squares = (steps - points[..., :1]).square()[..., None, :] + (steps - points[..., 1:]).square()[..., :, None]
    target = Categorical(logits=(-squares / (2 * SIGMA**2)).flatten(2))
    expected = kl_divergence(target, Categorical(logits=maps.flatten(2)))[known].mean()
    torch.testing.assert_close(map_divergence(maps, points, known), expected)
    exact = (-squares / (2 * SIGMA**2))[..., :, :]
    assert map_divergence(exact, points, known) == pytest.approx(0, abs=1e-5)


def perfect(batch):
    """The prediction that the loss asks for."""
    centre = (batch["box"][:, :2] + batch["box"][:, 2:]) / 2
    target = torch.cat([batch["points"], centre[:, None]], dim=1)
    maps, left = log_gaussians((target + 0.5) / SIDE, SIGMA, 32), 40 * (2 * batch["left"] - 1)
    return {"points": batch["points"], "guess": batch["points"], "centre": centre, "box": batch["box"], "maps": maps,
            "left": left}  # fmt: skip


def test_the_right_answer_costs_nothing_and_every_part_counts():
    batch = make_batch()
    loss, parts = DetectionLoss(SIDE)(perfect(batch), batch)
    assert loss == pytest.approx(0, abs=1e-4)
    assert set(parts) == {"heatmap", "wing", "guess", "box", "side"}
    for name, part in (("maps", "heatmap"), ("points", "wing"), ("guess", "guess"), ("box", "box"), ("left", "side")):
        worse = perfect(batch)
        worse[name] = worse[name] + (torch.randn_like(worse[name]) if name == "maps" else 50.0 if name == "left" else 1)
        loss, parts = DetectionLoss(SIDE)(worse, batch)
        assert parts[part] > 0.05
        assert sum(parts.values()) == loss
        assert sum(value for other, value in parts.items() if other != part) == pytest.approx(0, abs=1e-4)


def test_the_box_part_is_giou_and_distance():
    """Two boxes of 4×4, one px apart: intersection 12, union 20, hull 20."""
    batch = {"points": torch.full((1, 1, 2), torch.nan), "box": torch.tensor([[8.0, 8.0, 12.0, 12.0]]),
             "left": torch.zeros(1)}  # fmt: skip
    prediction = perfect(batch) | {"box": torch.tensor([[9.0, 8.0, 13.0, 12.0]])}
    _, parts = DetectionLoss(SIDE)(prediction, batch)
    assert parts["box"].item() == pytest.approx(1 - 12 / 20 + 4 * (0.5 / SIDE), abs=1e-5)


def test_the_side_part_is_the_cross_entropy_of_known_sides():
    logits = torch.tensor([2.0, -1.0, 7.0], requires_grad=True)
    loss = side_loss(logits, torch.tensor([1.0, 1.0, torch.nan]))
    assert loss.item() == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2)
    loss.backward()
    assert logits.grad[2] == 0
    assert side_loss(logits, torch.full((3,), torch.nan)) == 0


@pytest.mark.parametrize("place", [[torch.nan, torch.nan], [-3.0, 10.0], [10.0, SIDE + 2.0]])
def test_landmarks_that_are_unknown_or_outside_do_not_count(place):
    batch = make_batch()
    prediction = {name: value.clone().requires_grad_() for name, value in perfect(batch).items()}
    batch["points"][1, 2] = torch.tensor(place)
    loss, _ = DetectionLoss(SIDE)(prediction, batch)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    loss.backward()
    assert prediction["points"].grad[1, 2].tolist() == [0, 0]
    assert prediction["maps"].grad.isfinite().all()
    assert not prediction["maps"].grad[1, 2].any()


def test_a_batch_without_any_known_landmark_has_a_loss():
    batch = make_batch()
    batch["points"][:] = torch.nan
    model = make_detector()
    loss, parts = DetectionLoss(SIDE)(model(batch["image"]), batch)
    loss.backward()
    assert loss.isfinite()
    assert parts["guess"] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_sides_that_nobody_knows_are_no_part_of_the_loss():
    batch = make_batch()
    batch["left"][:] = torch.nan
    prediction = make_detector()(batch["image"])
    (loss, parts), (all_loss, all_parts) = (DetectionLoss(SIDE, sides)(prediction, batch) for sides in (False, True))
    assert all_parts.keys() - parts.keys() == {"side"}
    assert torch.equal(loss, all_loss)
