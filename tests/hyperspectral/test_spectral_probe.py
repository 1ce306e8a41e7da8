"""The parts of probe.py: the linear classifier, the heads, the loss, labelled cubes. Data are synthetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from core.checkpoints import save_model
from core.errors import UserError
from core.schedules import parameter_groups
from core.unfreezing import UnfreezingSchedule
from core.validation import DataReport
from files import write_cube
from hsi.files import H5_KEY, BadCube, Cube, read_cube
from hsi.mae_spectral import MAESpectral
from hsi.probe import (
    COLOURS,
    IGNORED,
    STRENGTHS,
    LabelledDataset,
    LinearProbe,
    ProbeModel,
    dice,
    mask_picture,
    palette,
    read_classes,
    read_mask,
    segmentation_loss,
    with_labels,
    with_masks,
)

PROBE = "hyperspectral/probe.py"
QUICK = ("--num_workers", 0, "--log_with", "none", "--bootstrap", 40, "--batch_size", 4, "--warmup_epochs", 0)

# ------------------------------------------------------------------------------------------------ linear classifier


def blobs(classes=3, patients=12, cubes=5, width=6, seed=0):
    """(features, labels, patients): classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=patients * cubes)
    features = rng.normal(size=(len(labels), width)) + rng.normal(size=(classes, width))[labels]
    scale = 10.0 ** rng.integers(-2, 3, width)
    return (features * scale + 7).astype(np.float32), labels, np.repeat([f"P{i}" for i in range(patients)], cubes)


def predict(probe, features):
    with torch.no_grad():
        return probe(torch.from_numpy(features).double()).softmax(dim=1).numpy()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_linear_probe_is_the_minimum(classes, strength):
    """The gradient of the penalised cross-entropy is 0 there, and it is convex: every other place is worse."""
    features, labels, patients = blobs(classes)
    probe, chosen = LinearProbe.fit(features, labels, patients, [strength])
    assert chosen == strength
    x = features.astype(np.float64)
    x = torch.from_numpy((x - x.mean(axis=0)) / x.std(axis=0))
    parameters = [p.detach().clone().requires_grad_() for p in (probe.linear.weight, probe.linear.bias)]

    def objective(weight, bias):
        log_p = (x @ weight.T + bias).log_softmax(dim=1)
        return -log_p[torch.arange(len(x)), labels].mean() + strength / 2 * (weight**2).sum()

    least = objective(*parameters)
    for gradient in torch.autograd.grad(least, parameters):
        assert gradient.abs().max() < 1e-6
    with torch.no_grad():
        for size in (1e-3, 0.1, 3):
            assert objective(*(p + size * torch.randn_like(p) for p in parameters)) > least


def test_units_of_the_features_do_not_count():
    features, labels, patients = blobs()
    probe, penalty = LinearProbe.fit(features, labels, patients)
    scale, shift = np.float32(10.0) ** np.arange(-3, 3, dtype=np.float32), np.arange(6, dtype=np.float32)
    other, same = LinearProbe.fit(features * scale + shift, labels, patients)
    assert same == penalty
    np.testing.assert_allclose(predict(other, features * scale + shift), predict(probe, features), atol=1e-4)


@pytest.mark.parametrize("rounding", [0, 1e-9])
def test_a_constant_feature_does_no_harm(rounding):
    """Not even where it varies by rounding errors, and then differs in a new cube."""
    features, labels, patients = blobs()
    dead = 0.1 + rounding * np.random.default_rng(1).normal(size=(len(labels), 1))
    probe, _ = LinearProbe.fit(features, labels, patients)
    other, _ = LinearProbe.fit(np.hstack([features, dead]), labels, patients)
    new = np.hstack([features, np.full_like(dead, 0.11)])
    np.testing.assert_allclose(predict(other, new), predict(probe, features), atol=1e-5)


def test_separable_classes_have_a_finite_solution():
    labels = np.arange(40) % 2
    features = np.stack([10.0 * labels, np.random.default_rng(0).normal(size=40)], axis=1)
    probe, _ = LinearProbe.fit(features, labels, [f"P{i // 2}" for i in range(40)])
    assert (predict(probe, features).argmax(axis=1) == labels).all()
    assert float(probe.linear.weight.detach().abs().max()) < 100


def test_the_penalty_is_chosen_by_patients_held_out_together():
    """Features that tell the patient and nothing else, labels by patient: of use to one who has seen the patient."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(30), 4)
    features = rng.normal(size=(30, 60))[who] + 0.01 * rng.normal(size=(120, 60))
    labels = rng.integers(2, size=30)[who]
    _, by_patient = LinearProbe.fit(features, labels, [f"P{i}" for i in who])
    _, by_cube = LinearProbe.fit(features, labels, [f"C{i}" for i in range(120)])
    assert by_patient == max(STRENGTHS)
    assert by_cube < 0.1


def test_the_fit_follows_from_the_data_alone():
    features, labels, patients = blobs()
    torch.manual_seed(1)
    probe, penalty = LinearProbe.fit(features, labels, patients)
    torch.manual_seed(2)
    again, same = LinearProbe.fit(features, labels, patients)
    assert penalty == same
    assert torch.equal(probe.linear.weight, again.linear.weight)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled, same = LinearProbe.fit(features[order], labels[order], patients[order])
    assert penalty == same
    np.testing.assert_allclose(predict(shuffled, features), predict(probe, features), atol=1e-5)


def test_a_class_of_one_patient_does_not_choose_the_penalty():
    """Held out, it is a class that nobody has seen: its cubes cannot say which penalty is better."""
    features, labels, patients = blobs(2, patients=20, cubes=4, seed=2)
    _, penalty = LinearProbe.fit(features, labels, patients)
    rare = np.random.default_rng(0).normal(features.mean(axis=0), features.std(axis=0), size=(12, features.shape[1]))
    targets, names = np.concatenate([labels, np.full(12, 2)]), [*patients, *["rare"] * 12]
    probe, chosen = LinearProbe.fit(np.concatenate([features, rare]), targets, names)
    assert probe.linear.out_features == 3
    assert chosen == penalty == 0.1


def test_one_patient_is_refused():
    features, labels, _ = blobs()
    with pytest.raises(UserError, match="cubes of 1 patient") as caught:
        LinearProbe.fit(features, labels, ["P1"] * len(labels))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ model


def tiny_mae(size=(40, 40), seed=0):
    torch.manual_seed(seed)
    mae = MAESpectral(size, (10, 5), 30, 16, 3, 2, 8, 1, 2)
    mae.set_statistics(torch.linspace(0.1, 0.6, 30), torch.linspace(0.05, 0.2, 30))
    return mae.eval()


def cubes_of(model, number=2, seed=0):
    return torch.rand(number, 30, *model.mae.img_size, generator=torch.Generator().manual_seed(seed))


def loss_of(model, cubes):
    """Of any targets."""
    logits = model(cubes)
    targets = torch.arange(logits[:, 0].numel()).view_as(logits[:, 0]) % logits.shape[1]
    return segmentation_loss(logits, targets) if model.segment else F.cross_entropy(logits, targets)


@torch.no_grad()
def test_a_classification_is_linear_in_the_pooled_features():
    mae = tiny_mae()
    cubes = torch.rand(3, 30, 40, 40)
    pooled = mae.encode(cubes).pooled.numpy()
    model = ProbeModel(mae, 4, segment=False)
    model.head.mean.copy_(torch.from_numpy(pooled.mean(axis=0)))
    model.head.std.copy_(torch.from_numpy(pooled.std(axis=0)))
    weight, bias = model.head.linear.weight.numpy(), model.head.linear.bias.numpy()
    expected = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0) @ weight.T + bias
    logits = model(cubes)
    assert logits.shape == (3, 4)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 40), (20, 60)])
def test_a_segmentation_has_a_logit_for_every_pixel_and_class(size):
    model = ProbeModel(tiny_mae(size), 5, segment=True)
    cubes = cubes_of(model)
    logits = model(cubes)
    assert logits.shape == (2, 5, *size)
    scores = (cubes - model.mae.mean.view(1, 30, 1, 1)) / model.mae.std.view(1, 30, 1, 1)
    torch.testing.assert_close(logits, model.head(model.mae.encode(cubes).grid, scores))
    changed = cubes.clone()
    changed[:, :, 3, 17] += 1  # in the patch of row 0, column 1
    difference = (model(changed) - logits).abs().amax(dim=(0, 1))
    assert difference[3, 17] > difference.median()
    torch.testing.assert_close(model(cubes[:1]), logits[:1], atol=1e-5, rtol=1e-4)  # a cube does not see its batch


@torch.no_grad()
def test_the_head_sees_tokens_and_pixels_where_they_are():
    """A cube that is turned in its plane would need turned tokens: without them, only the pixels' part turns."""
    model = ProbeModel(tiny_mae(), 3, segment=True)
    grid, cube = torch.zeros(1, 6, 4, 4, 16), torch.zeros(1, 30, 40, 40)
    empty = model.head.context(grid.permute(0, 1, 4, 2, 3).flatten(1, 2))
    grid[0, :, 1, 2] = 5
    context = (model.head.context(grid.permute(0, 1, 4, 2, 3).flatten(1, 2)) - empty).abs().sum(dim=1)[0]
    assert context.argmax() == 1 * 4 + 2
    assert torch.count_nonzero(context) == 1
    change = (model.head(grid, cube) - model.head(torch.zeros_like(grid), cube)).abs().sum(dim=1)[0]
    assert change[10:20, 20:30].mean() > 2 * change.mean()


@pytest.mark.parametrize("segment", [False, True])
def test_a_frozen_encoder_stays_and_the_head_learns(segment):
    model = ProbeModel(tiny_mae(), 3, segment)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.1))
    model.train()
    UnfreezingSchedule([(9, [model.mae])]).apply(0)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, cubes_of(model)).backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in model.mae.parameters())
    for name, value in model.state_dict().items():
        buffer = name in ("head.mean", "head.std")
        assert torch.equal(value, before[name]) == (name.startswith("mae.") or buffer), name


@pytest.mark.parametrize("segment", [False, True])
def test_fine_tuning_reaches_every_parameter(segment):
    model = ProbeModel(tiny_mae(), 3, segment).train()
    loss_of(model, cubes_of(model)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not any("decoder" in name for name, _ in model.named_parameters())


def test_rates_rise_towards_the_head():
    model = ProbeModel(tiny_mae(), 3, segment=False)
    groups = parameter_groups(model, 1.0, 0.1, model.layer_decay(0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: group for group in groups for parameter in group["params"]}
    assert found.keys() == {name for name, _ in model.named_parameters()}
    layers = ("embed.weight", "blocks.0.norm1.weight", "blocks.1.attn.qkv.weight", "blocks.2.mlp.fc2.bias")
    rates = [found[name]["lr"] for name in (*(f"mae.encoder.{layer}" for layer in layers), "head.linear.weight")]
    assert rates == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    assert found["mae.encoder.positions.plane"]["lr"] == rates[0]
    decays = {name: group["weight_decay"] for name, group in found.items()}
    assert decays["mae.encoder.positions.plane"] == decays["mae.encoder.positions.spectrum"] == 0
    assert decays["head.linear.bias"] == decays["mae.encoder.norm.weight"] == 0
    assert decays["head.linear.weight"] == decays["mae.encoder.embed.weight"] == 0.1


@torch.no_grad()
@pytest.mark.parametrize("segment", [False, True])
def test_a_stored_model_comes_back(tmp_path, segment):
    model = ProbeModel(tiny_mae(), 3, segment)
    if not segment:
        model.head.mean.fill_(0.3)
    config = {"kind": "spectral probe", "model": model.mae.arguments, "classes": ["a", "b", "c"],
              "task": "segment" if segment else "classify", "wavelengths": list(range(30)),
              "taught": {"classes": {"a": 1, "b": 2, "c": 3}}}  # fmt: skip
    save_model(tmp_path / "best", model, config)
    loaded, found = ProbeModel.from_folder(tmp_path)
    assert found["classes"] == config["classes"]
    assert not loaded.training
    torch.testing.assert_close(loaded(cubes_of(model)), model(cubes_of(model)), atol=0, rtol=0)
    wide, _ = ProbeModel.from_folder(tmp_path, (20, 60))
    assert wide(torch.rand(1, 30, 20, 60)).shape == ((1, 3, 20, 60) if segment else (1, 3))


def test_another_models_folder_is_refused(trained):
    with pytest.raises(UserError, match="holds a model of kind 'masked autoencoder', not 'spectral probe'"):
        ProbeModel.from_folder(trained)


# ------------------------------------------------------------------------------------------------ loss and measure


def random_masks(classes=4, seed=0):
    """(logits (2, K, 5, 6), masks (2, 5, 6)) with a row of the first picture and a pixel of the second unknown."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(classes - 1, size=(2, 5, 6))  # the last class is in no mask
    masks[0, 2], masks[1, 0, 0] = IGNORED, IGNORED
    return torch.from_numpy(rng.normal(size=(2, classes, 5, 6)) * 2).float(), torch.from_numpy(masks)


def test_segmentation_loss_is_the_formula():
    logits, masks = random_masks()
    x, y = logits.double().numpy(), masks.numpy()
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    surprise, overlaps = [], []
    for picture in range(2):
        inside = y[picture] != IGNORED
        surprise += [-np.log(p[picture, y[picture, i, j], i, j]) for i, j in zip(*np.nonzero(inside), strict=True)]
        for k in range(4):
            a, b = p[picture, k][inside], (y[picture][inside] == k).astype(float)
            overlaps.append((2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1))
    expected = np.mean(surprise) + 1 - np.mean(overlaps)
    assert float(segmentation_loss(logits, masks)) == pytest.approx(expected, rel=1e-5)


def test_unknown_pixels_have_no_gradient_and_others_have():
    logits, masks = random_masks()
    logits.requires_grad_()
    segmentation_loss(logits, masks).backward()
    unknown = masks == IGNORED
    moved = logits.grad.abs().sum(dim=1)
    assert (moved[unknown] == 0).all()
    assert (moved[~unknown] > 0).all()


def test_the_right_masks_cost_nothing():
    _, masks = random_masks()
    right = 50.0 * F.one_hot(masks.where(masks != IGNORED, 0), 4).movedim(3, 1).float()
    assert float(segmentation_loss(right, masks)) == pytest.approx(0, abs=1e-5)
    assert float(segmentation_loss(-right, masks)) > 5


def test_dice_is_the_formula():
    logits, masks = random_masks()
    predicted = logits.argmax(dim=1)
    predicted[1][predicted[1] == 3] = 0  # nor in the second prediction
    predicted[0, 1, 1] = 3
    found = dice(predicted, masks, 4)
    assert found.shape == (2, 4)
    for picture in range(2):
        inside = masks[picture].numpy() != IGNORED
        for k in range(4):
            a, b = (x[picture].numpy()[inside] == k for x in (predicted, masks))
            if a.any() or b.any():
                assert float(found[picture, k]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found[0, 3] == 0
    assert found[1, 3].isnan()
    assert found.isnan().sum() == 1


# ------------------------------------------------------------------------------------------------ data


def drawn(folder, size, number=3):
    """Cubes whose first band says the class of the mask: 2^class."""
    rng, cubes = np.random.default_rng(0), []
    for i in range(number):
        mask = rng.integers(5, size=size, dtype=np.uint8)
        values = rng.random((4, *size)) + 0.1
        values[0] = 2.0**mask
        mask[mask == 4] = IGNORED
        write_cube(folder / f"{i}.h5", values)
        Image.fromarray(mask).save(folder / f"{i}.png")
        cubes.append(Cube(f"C{i}", folder / f"{i}.h5", "ab"[i % 2], f"P{i}", "train", mask_file=folder / f"{i}.png"))
    return cubes


QUIET = np.full(4, 1e-3, np.float32)  # so little noise that the classes can be read


@pytest.mark.parametrize(("size", "poses"), [((12, 12), 8), ((8, 12), 4)])
def test_masks_turn_with_their_cubes(tmp_path, size, poses):
    dataset, seen = LabelledDataset(drawn(tmp_path, size, 1), H5_KEY, None, QUIET), set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        item = dataset[0]
        assert item["target"].dtype == torch.int64
        assert item["cube"].shape == (4, *size)
        classes = item["cube"][0].log2().round().long()
        assert torch.equal(item["target"], classes.where(classes < 4, IGNORED))
        seen.add(item["target"].numpy().tobytes())
    assert len(seen) == poses


def test_items_follow_from_seed_epoch_and_index(tmp_path):
    cubes = drawn(tmp_path, (12, 12))

    def items(seed=0, epoch=0, workers=0):
        dataset = LabelledDataset(cubes, H5_KEY, None, QUIET, seed)
        dataset.set_epoch(epoch)
        return list(DataLoader(dataset, batch_size=None, num_workers=workers))

    def same(ours, theirs):
        return all(torch.equal(a[n], b[n]) for a, b in zip(ours, theirs, strict=True) for n in ("cube", "target"))

    first = items()
    assert same(first, items())
    assert same(first, items(workers=2))
    assert not same(first, items(epoch=1))
    assert not same(first, items(seed=1))
    assert [(item["id"], int(item["index"])) for item in first] == [("C0", 0), ("C1", 1), ("C2", 2)]


def test_without_augmentation_items_are_the_files(tmp_path):
    cubes = drawn(tmp_path, (12, 12))
    labelled, masked = LabelledDataset(cubes, H5_KEY, ["a", "b"]), LabelledDataset(cubes)
    labelled.set_epoch(3)
    assert [item["target"] for item in labelled] == [0, 1, 0]
    for cube, one, other in zip(cubes, labelled, masked, strict=True):
        np.testing.assert_array_equal(one["cube"], read_cube(cube.file))
        np.testing.assert_array_equal(other["cube"], one["cube"])
        np.testing.assert_array_equal(other["target"], np.asarray(Image.open(cube.mask_file)))
    augmented = LabelledDataset(cubes, H5_KEY, ["a", "b"], QUIET)
    assert augmented[1]["target"] == 1
    assert not torch.equal(augmented[1]["cube"], labelled[1]["cube"])


def cube(name, label="", split="train", mask=None):
    return Cube(name, Path(f"{name}.h5"), label, name, split, mask_file=mask)


def listed(report):
    return {p.where.split(",")[0]: (p.reason, p.detail, p.action) for p in report.problems}


def test_cubes_without_a_label_of_train_are_listed():
    splits = {
        "train": [cube("t1", "normal"), cube("t2", "lesion"), cube("t3")],
        "valid": [cube("v1", "lesion"), cube("v2", "glaucoma")],
        "test": [cube("s1", "normal"), cube("s2")],
    }
    report = DataReport()
    usable, classes = with_labels(splits, report)
    assert classes == {"lesion": 1, "normal": 1}
    assert {split: [c.id for c in part] for split, part in usable.items()} == {
        "train": ["t1", "t2"], "valid": ["v1"], "test": ["s1"],
    }  # fmt: skip
    assert listed(report) == {
        "t3": ("no label", "", "case skipped"),
        "v2": ("label not in train", "glaucoma; train has lesion, normal", "case skipped"),
        "s2": ("no label", "", "case skipped"),
    }


@pytest.mark.parametrize(("labels", "text"), [(["", ""], "there is none"), (["a", "a", ""], "there is only 'a'")])
def test_a_classification_needs_two_labels(labels, text):
    splits = {"train": [cube(f"C{i}", label) for i, label in enumerate(labels)], "valid": [], "test": [cube("s", "b")]}
    with pytest.raises(UserError) as caught:
        with_labels(splits, DataReport())
    assert text in str(caught.value)
    assert "column label" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def draw(tmp_path):
    """`draw(name, values, mode=…)`: a mask of 6 × 8 px whose first pixels have these values, the others 0."""

    def draw_mask(name, values, mode="L", size=(6, 8)):
        mask = np.zeros(size, np.uint8)
        mask.flat[: len(values)] = values
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
        elif mode == "1":
            image = Image.fromarray(mask > 0)
        elif mode != "L":
            image = image.convert(mode)
        file = tmp_path / f"{name}.png"
        image.save(file)
        return file

    return draw_mask


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_masks_are_class_numbers(draw, mode):
    values = [1, 0, 1, 1] if mode == "1" else [2, 1, 0, 2]
    mask = read_mask(draw("m", values, mode), (6, 8))
    assert mask.dtype == np.uint8
    assert mask.shape == (6, 8)
    assert mask.flat[:4].tolist() == values
    assert mask.sum() == sum(values)


def test_predicted_masks_are_read_as_masks(tmp_path):
    mask = np.random.default_rng(0).integers(11, size=(20, 30))  # more classes than colours
    mask_picture(mask, 11).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (20, 30)), mask)
    with Image.open(tmp_path / "m.png") as image:
        colours = np.asarray(image.convert("RGB"))
    for k in range(11):
        hexadecimal = COLOURS[k % len(COLOURS)].lstrip("#")
        assert (colours[mask == k] == np.frombuffer(bytes.fromhex(hexadecimal), np.uint8)).all()
    assert len(palette(11)) == 33


def test_masks_that_cannot_be_used_say_why(draw, tmp_path):
    for name, mode, text in (
        ("colour", "RGB", "no mask: RGB pixels; store class numbers in one channel"),
        ("alpha", "RGBA", "no mask: RGBA pixels"),
        ("deep", "I;16", "no mask: I;16 pixels"),
    ):
        file = draw(name, [1, 2], mode)
        with pytest.raises(BadCube, match=text) as caught:
            read_mask(file, (6, 8))
        assert str(caught.value).startswith(f"{file}: ")
    with pytest.raises(BadCube, match="mask of another size: 8x6 px, not 6x8"):
        read_mask(draw("turned", [1], size=(8, 6)), (6, 8))
    (tmp_path / "text.png").write_text("class 1")
    with pytest.raises(BadCube, match="no mask that can be read"):
        read_mask(tmp_path / "text.png", (6, 8))
    with pytest.raises(BadCube, match="no mask that can be read"):
        read_mask(tmp_path / "missing.png", (6, 8))


def test_damaged_masks_are_no_accident(tmp_path):
    """Cut off or changed anywhere, a mask is refused or read, and nothing else happens."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(5, size=(6, 8), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole, file, refused = (tmp_path / "whole.png").read_bytes(), tmp_path / "m.png", 0
    changed = [whole[:end] for end in range(len(whole) - 20)]
    changed += [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(len(whole))]
    changed += [whole[:i] + bytes(4) + whole[i + 4 :] for i in range(len(whole))]
    for content in changed:
        file.write_bytes(content)
        try:
            assert read_mask(file, (6, 8)).shape == (6, 8)
        except BadCube:
            refused += 1
    assert refused > 2 * len(whole)


def test_cubes_without_a_usable_mask_are_listed(draw):
    truncated = draw("cut", [1, 2])
    truncated.write_bytes(truncated.read_bytes()[:45])
    splits = {
        "train": [cube("t1", mask=draw("t1", [1, IGNORED])), cube("t2", mask=draw("t2", [2], "P")), cube("t3"),
                  cube("t4", mask=draw("t4", [1, 2], size=(6, 6)))],
        "valid": [cube("v1", mask=draw("v1", [1])), cube("v2", mask=draw("v2", [1], "RGB")),
                  cube("v3", mask=draw("v3", [IGNORED] * 48))],
        "test": [cube("s1", mask=draw("s1", [0])), cube("s2", mask=draw("s2", [3, 1, 4])), cube("s3", mask=truncated)],
    }  # fmt: skip
    report = DataReport()
    classes_of = read_classes(splits, (6, 8))
    usable, classes = with_masks(splits, classes_of, (), report)
    assert classes == {"0": 2, "1": 1, "2": 1}
    assert {split: [c.id for c in part] for split, part in usable.items()} == {
        "train": ["t1", "t2"], "valid": ["v1"], "test": ["s1"],
    }  # fmt: skip
    found = listed(report)
    assert {name: reason for name, (reason, _, _) in found.items()} == {
        "t3": "no mask", "t4": "mask of another size", "v2": "no mask", "v3": "mask without classes",
        "s2": "class not in train", "s3": "no mask that can be read",
    }  # fmt: skip
    assert found["t3"][1] == "fill column mask_file"
    assert found["s2"][1] == "3, 4; train has 0, 1, 2"
    assert all(action == "case skipped" for _, _, action in found.values())
    names = ["out", "in", "vessel", "lesion"]  # the last without a case
    assert with_masks(splits, classes_of, names, DataReport())[1] == {"out": 2, "in": 1, "vessel": 1, "lesion": 0}


@pytest.mark.parametrize(
    ("values", "names", "text"),
    [
        ([[1, 2], [3]], ["a", "b"], "--class_names are 2, but the masks of train have the classes 0 to 3"),
        ([[1], [2]], ["a", "b", "a"], "--class_names a b a: two are alike"),
        ([[0], [0]], (), "those of train have class 0 alone"),
        ([[IGNORED], [0, IGNORED]], (), "255 is no class, but unknown"),
        ([[1] * 48], (), "those of train have class 1 alone"),
        ([], (), "those of train cannot be used: see the column mask_file"),
    ],
)
def test_a_segmentation_needs_two_classes_and_their_names(draw, values, names, text):
    train = [cube(f"t{i}", mask=draw(f"t{i}", row)) for i, row in enumerate(values)]
    splits = {"train": [*train, cube("none")], "valid": [], "test": [cube("s", mask=draw("s", [1, 2]))]}
    with pytest.raises(UserError) as caught:
        with_masks(splits, read_classes(splits, (6, 8)), names, DataReport())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
