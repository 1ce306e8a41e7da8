"""probe.py and its parts: the linear classifier, the segmentation head, labelled cubes, results. Data are synthetic."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from conftest import load_script, loads_nothing
from core import figures
from core.args import UserError
from core.checkpoints import load_model_folder, save_model
from core.schedules import parameter_groups
from core.unfreezing import UnfreezingSchedule
from core.validation import DataReport
from cube_files import H5_KEY, BadCube, Cube, read_cube, read_cubes
from launch import run
from mae_spectral import MAESpectral
from probe_report import COLOURS, Picture, auroc, mask_picture, palette, segmentations, write_classification
from spectral_probe import (
    IGNORED,
    STRENGTHS,
    LabelledDataset,
    LinearProbe,
    ProbeModel,
    dice,
    read_mask,
    segmentation_loss,
    with_labels,
    with_masks,
)

PROBE = "hyperspectral/probe.py"
QUICK = ("--num_workers", 0, "--log_with", "none", "--bootstrap", 40, "--batch_size", 4, "--warmup_epochs", 0)


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def read_csv(file):
    with open(file, encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def write_csv(file, table):
    with open(file, "w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def encoder_of(folder):
    """The weights of the encoder, by their names in it, of a probe's best/ or of a training run's."""
    state = load_file(folder / "best" / "model.safetensors")
    return {name.partition("encoder.")[2]: values for name, values in state.items() if "encoder." in name}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


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
    config = {"project": "hyperspectral_probe", "model": model.mae.arguments, "classes": ["a", "b", "c"],
              "task": "segment" if segment else "classify", "wavelengths": list(range(30))}  # fmt: skip
    save_model(tmp_path / "best", model, config)
    loaded, found = ProbeModel.from_folder(tmp_path)
    assert found["classes"] == config["classes"]
    assert not loaded.training
    torch.testing.assert_close(loaded(cubes_of(model)), model(cubes_of(model)), atol=0, rtol=0)
    wide, _ = ProbeModel.from_folder(tmp_path, (20, 60))
    assert wide(torch.rand(1, 30, 20, 60)).shape == ((1, 3, 20, 60) if segment else (1, 3))


def test_another_models_folder_is_refused(trained):
    with pytest.raises(UserError, match="holds a model of hyperspectral, not of hyperspectral_probe"):
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


def write_cube(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as store:
        store.create_dataset(H5_KEY, data=values.astype(np.float32))


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
    assert classes == ["lesion", "normal"]
    assert {split: [c.id for c in part] for split, part in usable.items()} == {
        "train": ["t1", "t2"], "valid": ["v1"], "test": ["s1"],
    }  # fmt: skip
    assert listed(report) == {
        "t3": ("no label", "", "case skipped"),
        "v2": ("label not in train", "glaucoma", "case skipped"),
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
    usable, classes = with_masks(splits, (6, 8), (), report)
    assert classes == ["0", "1", "2"]
    assert {split: [c.id for c in part] for split, part in usable.items()} == {
        "train": ["t1", "t2"], "valid": ["v1"], "test": ["s1"],
    }  # fmt: skip
    found = listed(report)
    assert {name: reason for name, (reason, _, _) in found.items()} == {
        "t3": "no mask", "t4": "mask of another size", "v2": "no mask", "v3": "mask without classes",
        "s2": "class not in train", "s3": "no mask that can be read",
    }  # fmt: skip
    assert found["t3"][1] == "fill column mask_file"
    assert found["s2"][1] == "3, 4"
    assert all(action == "case skipped" for _, _, action in found.values())
    assert with_masks(splits, (6, 8), ["out", "in", "vessel"], DataReport())[1] == ["out", "in", "vessel"]


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
        with_masks(splits, (6, 8), names, DataReport())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ report


def area(scores, positive):
    """The share of pairs of a positive and a negative in which the positive has the higher score; ties count half."""
    pairs = scores[positive][:, None] - scores[~positive][None]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_is_the_share_of_ordered_pairs(classes):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), 40).round(1)  # with ties
    targets = rng.integers(classes, size=40)
    expected = np.mean([area(probabilities[:, k], targets == k) for k in range(classes)])
    assert auroc(probabilities, targets) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(auroc(probabilities[targets != 1], targets[targets != 1]))
    assert auroc(np.full((40, classes), 1 / classes), targets) == pytest.approx(0.5)


@pytest.fixture
def unpainted(monkeypatch):
    """No pictures, which take longer than all else."""
    monkeypatch.setattr("core.figures.save", lambda *_: None)
    monkeypatch.setattr("core.report.Report.figures", lambda *_: None)


def test_a_test_split_of_one_label_has_no_auroc(unpainted, tmp_path):
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "data_report.json").write_text('{"counts": []}')
    args = load_script(PROBE).parse_args(["--csv_file", "a.csv", "--checkpoint", "b", "--bootstrap", "20"])
    cubes = [cube(f"C{i}", "a") for i in range(4)]
    results = {name: np.tile([0.7, 0.3], (4, 1)) for name in ("frozen", "mean spectrum", "frequency alone")}
    write_classification(tmp_path, results, cubes, ["a", "b"], args)
    methods = read_json(tmp_path / "metrics.json")["methods"]
    assert methods["frozen"]["auroc"]["estimate"] is None
    assert methods["frozen"]["accuracy"]["estimate"] == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>–</td><td>1.000 (1.000 to 1.000)</td>" in page
    assert "nan" not in page


def test_unknown_pixels_are_shown_as_such():
    rng = np.random.default_rng(0)
    mask = rng.integers(3, size=(20, 20))
    values = rng.random((3, 20, 20)).astype(np.float32)

    def draw(mask):
        """(legend, mask as it is shown)"""
        fig = segmentations([Picture("C", values, mask, mask % 3)] * 2, ["out", "in", "vessel"], [450, 550, 650])
        assert [ax.get_title(loc="left") for ax in fig.axes[:3]] == ["cube", "mask", "predicted"]
        return [text.get_text() for text in fig.legends[0].get_texts()], fig.axes[1].images[0].get_array()

    names, shown = draw(mask)
    assert names == ["out", "in", "vessel"]
    mask[4, 4] = IGNORED
    names, changed = draw(mask)
    assert names == ["out", "in", "vessel", "unknown"]
    assert bytes(changed[4, 4].tolist()).hex() == figures.GREY.lstrip("#")
    changed[4, 4] = shown[4, 4]
    np.testing.assert_array_equal(changed, shown)


# ------------------------------------------------------------------------------------------------ script


@pytest.fixture(scope="module")
def probe(trained, demo):
    """Runs the script in this process, without pictures: `probe(folder, *flags)` gives the folder."""
    script = load_script(PROBE)

    def probe_quickly(folder, *flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.figures.save", lambda *_: None)
            patch.setattr("core.report.Report.figures", lambda *_: None)
            patch.setattr(script, "PIXELS", 1000)
            common = ("--checkpoint", trained, "--csv_file", demo, "--save_dir", folder, *QUICK)
            try:
                script.main([str(flag) for flag in (*common, *flags)])
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
        return folder

    return probe_quickly


@pytest.fixture(scope="module")
def classified(trained, demo, tmp_path_factory):
    """A frozen classification, as a user would run it. Not to be written to."""
    folder = tmp_path_factory.mktemp("classified") / "run"
    done = run(PROBE, "--checkpoint", trained / "best", "--csv_file", demo, "--save_dir", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def segmented(trained, demo, tmp_path_factory):
    """A segmentation on the frozen encoder, as a user would run it. Not to be written to."""
    folder = tmp_path_factory.mktemp("segmented") / "run"
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", folder, *QUICK, "--task", "segment",
               "--epochs", 2, "--lr", 1e-2, "--class_names", "outside", "retina", "vessel", "disc", "lesion",
               "--nb_to_plot", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


# Six updates with small rates: with large ones, rounding differs visibly after a few.
FINETUNE = ("--finetune", "--epochs", 2, "--lr", 1e-3)


@pytest.fixture(scope="module")
def finetuned(probe, tmp_path_factory):
    """Not to be written to."""
    return probe(tmp_path_factory.mktemp("finetuned") / "run", *FINETUNE)


def test_a_classification_leaves_its_results(classified):
    assert {path.name for path in classified.iterdir()} == {
        "args.json", "environment.json", "metrics.json", "metrics.jsonl", "predictions.csv", "report.html",
        "data_report.json", "best", "figures",
    }  # fmt: skip
    assert read_json(classified / "data_report.json") == {
        "cases": {"train": 15, "valid": 3, "test": 6}, "counts": [], "problems": [],
    }  # fmt: skip
    assert read_json(classified / "args.json")["finetune"] is False
    config = read_json(classified / "best" / "config.json")
    assert (config["project"], config["task"]) == ("hyperspectral_probe", "classify")
    assert config["classes"] == ["lesion", "normal"]
    assert (config["h5_key"], config["unit"], len(config["wavelengths"])) == (H5_KEY, "reflectance", 30)
    assert logged(classified) == [{"penalty": config["penalty"]}]


def test_the_numbers_are_those_of_the_predictions(classified, demo):
    table, metrics = read_csv(classified / "predictions.csv"), read_json(classified / "metrics.json")
    cubes = read_cubes(demo)[0]["test"]
    for name in ("ID", "patient", "label"):
        assert [row[name] for row in table] == [getattr(c, name.lower()) for c in cubes]
    assert metrics["data"] == {"csv_file": str(demo), "split": "test", "cubes": 6, "patients": 4}
    assert list(metrics["methods"]) == ["frozen", "mean spectrum", "frequency alone"]
    lesion = np.array([row["label"] == "lesion" for row in table])
    p = np.array([[float(row[f"p_{name}"]) for name in ("lesion", "normal")] for row in table])
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    guess = p[:, 0] > p[:, 1]
    assert [row["predicted"] for row in table] == ["lesion" if is_lesion else "normal" for is_lesion in guess]
    found = metrics["methods"]["frozen"]
    assert found["auroc"]["estimate"] == pytest.approx(area(p[:, 0], lesion), rel=1e-6)
    assert found["accuracy"]["estimate"] == pytest.approx((guess == lesion).mean())
    assert metrics["confusion"] == [[int((a & b).sum()) for b in (guess, ~guess)] for a in (lesion, ~lesion)]
    assert metrics["methods"]["frequency alone"]["auroc"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    for values in metrics["methods"].values():
        for interval in values.values():
            assert interval["low"] <= interval["estimate"] <= interval["high"]


def pooled_features(mae, cubes):
    """(N, D), from the files on."""
    with torch.no_grad():
        return mae.encode(torch.stack([torch.from_numpy(read_cube(c.file)) for c in cubes])).pooled.numpy()


def fit_to(mae, cubes):
    """The linear probe and its penalty, for the demo's labels: 0 is lesion, 1 normal."""
    labels = np.array([c.label == "normal" for c in cubes], int)
    return LinearProbe.fit(pooled_features(mae, cubes), labels, [c.patient for c in cubes])


def test_a_frozen_classification_is_the_linear_probe_on_the_encoders_features(classified, trained, demo):
    """And the stored encoder is the one that was given."""
    mae, _ = MAESpectral.from_folder(trained)
    splits, _ = read_cubes(demo)
    expected, penalty = fit_to(mae, splits["train"] + splits["valid"])
    table, p = read_csv(classified / "predictions.csv"), predict(expected, pooled_features(mae, splits["test"]))
    np.testing.assert_allclose([float(row["p_normal"]) for row in table], p[:, 1], atol=1e-4)
    assert read_json(classified / "best" / "config.json")["penalty"] == penalty
    model, _ = ProbeModel.from_folder(classified)
    with torch.no_grad():
        loaded = model(torch.from_numpy(read_cube(splits["test"][2].file))[None]).softmax(dim=1)
    assert float(loaded[0, 1]) == pytest.approx(float(table[2]["p_normal"]), abs=1e-5)
    weights = encoder_of(trained)
    assert_same(encoder_of(classified), weights)
    assert len(weights) > 20


def assert_report(folder, pictures, texts):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    assert page.count("data:image/") == len(pictures)
    for text in (*texts, "95 % interval", "Not a medical device"):
        assert text in page
    for name in pictures:
        with Image.open(folder / "figures" / f"{name}.png") as figure:
            assert np.asarray(figure.convert("L")).std() > 10


def test_the_reports_are_one_file_each(classified, segmented):
    texts = ["The encoder was frozen", "mean spectrum", "frequency alone", "6", "4 patients"]
    assert_report(classified, ["roc", "confusion"], texts)
    assert_report(segmented, ["segmentations"], ["mean without outside", "vessel", "spectrum of the pixel"])
    assert (segmented / "figures" / "training.png").exists()


def test_another_run_is_not_overwritten(classified, probe):
    before = (classified / "metrics.json").read_bytes()
    with pytest.raises(UserError) as caught:
        probe(classified)
    assert str(caught.value).startswith(f"{classified} holds a run: ")
    assert "--overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (classified / "metrics.json").read_bytes() == before


def test_two_processes_classify_as_one_does(trained, demo, classified, tmp_path):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", tmp_path / "run", *QUICK, processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_json(folder / "metrics.json") for folder in (tmp_path / "run", classified))
    assert read_json(tmp_path / "run" / "environment.json")["processes"] == 2
    assert ours["methods"].keys() == theirs["methods"].keys()
    for method, values in theirs["methods"].items():
        for name, interval in values.items():
            assert ours["methods"][method][name] == pytest.approx(interval, rel=1e-5), (method, name)
    table, alone = (read_csv(folder / "predictions.csv") for folder in (tmp_path / "run", classified))
    assert [row["ID"] for row in table] == [row["ID"] for row in alone]
    np.testing.assert_allclose(*([float(row["p_normal"]) for row in t] for t in (table, alone)), atol=1e-5)


def test_random_weights_are_drawn_by_the_seed(probe, classified, trained, tmp_path):
    one, same = (probe(tmp_path / name, "--random_init") for name in "ab")
    assert_same(encoder_of(one), encoder_of(same))
    assert read_json(one / "metrics.json")["random_init"] is True
    assert "The encoder has random weights" in (one / "report.html").read_text(encoding="utf-8")
    ours, before = encoder_of(one), encoder_of(trained)
    assert (ours["blocks.0.attn.qkv.weight"] != before["blocks.0.attn.qkv.weight"]).all()
    state, known = (load_file(folder / "best" / "model.safetensors") for folder in (one, classified))
    for name in ("mae.mean", "mae.std"):
        np.testing.assert_array_equal(state[name], known[name])
    guesses = [[row["p_normal"] for row in read_csv(folder / "predictions.csv")] for folder in (one, classified)]
    assert guesses[0] != guesses[1]


def test_fine_tuning_starts_at_the_linear_probe(probe, trained, demo, tmp_path):
    """With a rate of 0 it stays there: fitted on train alone, as valid chooses the epoch."""
    probe(tmp_path / "run", "--finetune", "--epochs", 1, "--lr", 0)
    assert_same(encoder_of(tmp_path / "run"), encoder_of(trained))
    mae, _ = MAESpectral.from_folder(trained)
    splits, _ = read_cubes(demo)
    expected, penalty = fit_to(mae, splits["train"])
    state = load_file(tmp_path / "run" / "best" / "model.safetensors")
    np.testing.assert_allclose(state["head.linear.weight"], expected.linear.weight.detach(), atol=1e-4)
    p = predict(expected, pooled_features(mae, splits["valid"]))
    right = [row[int(c.label == "normal")] for row, c in zip(p, splits["valid"], strict=True)]
    assert logged(tmp_path / "run")[0]["val/loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert read_json(tmp_path / "run" / "best" / "config.json")["penalty"] == penalty


def test_fine_tuning_moves_the_encoder(finetuned, trained):
    before, after = encoder_of(trained), load_file(finetuned / "last" / "model.safetensors")
    for name, values in before.items():
        assert (after[f"mae.encoder.{name}"] != values).any(), name
    assert next(iter(read_json(finetuned / "metrics.json")["methods"])) == "fine-tuned"
    rows = logged(finetuned)
    assert [row["update"] for row in rows] == [3, 6]
    best = min(rows, key=lambda row: row["val/loss"])
    assert read_json(finetuned / "best" / "config.json")["best"] == {"epoch": best["epoch"], "loss": best["val/loss"]}
    assert "was fine-tuned" in (finetuned / "report.html").read_text(encoding="utf-8")


def test_two_processes_fine_tune_as_one_with_large_batches(trained, demo, finetuned, tmp_path):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", tmp_path / "run", *QUICK, *FINETUNE,
               "--batch_size", 2, processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(logged(tmp_path / "run"), logged(finetuned), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    tables = (read_csv(folder / "predictions.csv") for folder in (tmp_path / "run", finetuned))
    np.testing.assert_allclose(*([float(row["p_normal"]) for row in table] for table in tables), atol=1e-4)


def test_resuming_a_finished_run_only_evaluates(probe, finetuned, tmp_path):
    folder = shutil.copytree(finetuned, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.csv", "metrics.jsonl")}
    for name in ("metrics.json", "predictions.csv", "report.html"):
        (folder / name).unlink()
    probe(folder, *FINETUNE, "--resume")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "report.html").exists()
    assert_same(encoder_of(folder), encoder_of(finetuned))


def test_a_segmentation_leaves_its_masks(segmented, demo, trained):
    """And the Dice of predictions.csv and metrics.json are theirs."""
    cubes, table = read_cubes(demo)[0]["test"], read_csv(segmented / "predictions.csv")
    metrics = read_json(segmented / "metrics.json")
    names = ["outside", "retina", "vessel", "disc", "lesion"]
    assert metrics["classes"] == names
    assert {path.name for path in (segmented / "masks").iterdir()} == {f"{c.id}.png" for c in cubes}
    assert [row["ID"] for row in table] == [c.id for c in cubes]
    scores = np.full((6, 5), np.nan)
    for i, (case, row) in enumerate(zip(cubes, table, strict=True)):
        ours = read_mask(segmented / "masks" / f"{case.id}.png", (40, 40))
        truth = read_mask(case.mask_file, (40, 40))
        assert len(np.unique(ours)) > 1
        for k, name in enumerate(names):
            a, b = ours == k, truth == k
            if a.any() or b.any():
                scores[i, k] = 2 * (a & b).sum() / (a.sum() + b.sum())
                assert float(row[f"dice_{name}"]) == pytest.approx(scores[i, k], rel=1e-5)
            else:
                assert row[f"dice_{name}"] == ""
    found = metrics["methods"]["frozen"]
    known = np.isfinite(scores)
    means = [scores[known[:, k], k].mean() for k in range(5)]
    assert [found[name]["estimate"] for name in names] == pytest.approx(means, rel=1e-5)
    assert found["mean"]["estimate"] == pytest.approx(np.mean(means[1:]), rel=1e-5)
    assert found["retina"]["estimate"] > 0.7
    assert metrics["methods"]["spectrum of the pixel"]["disc"]["estimate"] > 0.6
    assert_same(encoder_of(segmented), encoder_of(trained))


def test_two_processes_segment_as_one_does(trained, demo, probe, tmp_path):
    """The encoder is frozen in both; and a cube's ID may hold a slash."""
    table = [row | {"ID": row["ID"].replace("_", "/")} for row in read_csv(demo)]
    for row in table:
        row |= {column: str(demo.parent / row[column]) for column in ("hs_file", "rgb_file", "mask_file")}
    write_csv(tmp_path / "data.csv", table)
    flags = ("--csv_file", tmp_path / "data.csv", "--task", "segment", "--epochs", 1, "--lr", 1e-3)
    alone = probe(tmp_path / "alone", *flags)
    done = run(PROBE, "--checkpoint", trained, "--save_dir", tmp_path / "both", *QUICK, *flags, "--batch_size", 2,
               "--nb_to_plot", 1, processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (ours,), (theirs,) = logged(tmp_path / "both"), logged(alone)
    for name in ("update", "val/loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert_same(encoder_of(tmp_path / "both"), encoder_of(trained))
    masks = {path.relative_to(alone) for path in (alone / "masks").rglob("*.png")}
    assert len(masks) == 6
    for mask in masks:
        assert (read_mask(tmp_path / "both" / mask, (40, 40)) == read_mask(alone / mask, (40, 40))).mean() > 0.99


@pytest.fixture
def spoilt(demo, tmp_path):
    """A copy of the demo data, to be spoilt."""
    return shutil.copytree(demo.parent, tmp_path / "spoilt") / "dataset.csv"


def test_bad_cubes_are_left_out(probe, spoilt, tmp_path):
    """NaN, no label; and a label that only a spoilt cube of train has."""
    splits, _ = read_cubes(spoilt)
    (bad, spare), (rare, missing, *_) = splits["train"][:2], splits["test"]
    values = read_cube(bad.file)
    values[3, 4, 5] = np.nan
    write_cube(bad.file, values)
    labels = {bad.id: "rare", rare.id: "rare", missing.id: ""}
    write_csv(spoilt, [row | {"label": labels.get(row["ID"], row["label"])} for row in read_csv(spoilt)])
    folder = probe(tmp_path / "run", "--csv_file", spoilt)
    report = read_json(folder / "data_report.json")
    assert report["cases"] == {"train": 14, "valid": 3, "test": 4}
    assert {p["where"].split(",")[0]: p["reason"] for p in report["problems"]} == {
        bad.id: "NaN or infinite values", rare.id: "label not in train", missing.id: "no label",
    }  # fmt: skip
    assert all(p["action"] == "case skipped" for p in report["problems"])
    assert read_json(folder / "metrics.json")["classes"] == ["lesion", "normal"]
    assert [row["ID"] for row in read_csv(folder / "predictions.csv")] == [c.id for c in splits["test"][2:]]
    assert spare.id not in json.dumps(report)


def test_splits_are_those_of_the_training(probe, trained, demo, tmp_path):
    """A table without the column is divided by the shares that the encoder's training had: no test cube was seen."""
    mae, _ = MAESpectral.from_folder(trained)
    _, config = load_model_folder(trained)
    save_model(tmp_path / "best", mae, config | {"split_fractions": (0.2, 0.5)})
    rows = [{name: cell for name, cell in row.items() if name != "split"} for row in read_csv(demo)]
    write_csv(tmp_path / "data.csv", [row | {"hs_file": str(demo.parent / row["hs_file"])} for row in rows])
    folder = probe(tmp_path / "run", "--csv_file", tmp_path / "data.csv", "--checkpoint", tmp_path / "best")
    test = [c.id for c in read_cubes(tmp_path / "data.csv", 0.2, 0.5)[0]["test"]]
    assert [row["ID"] for row in read_csv(folder / "predictions.csv")] == test
    assert len(test) > len(read_cubes(tmp_path / "data.csv")[0]["test"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--checkpoint nowhere", ["nowhere is not a model folder"]),
        ("--csv_file nowhere.csv", ["nowhere.csv"]),
        ("--h5_key /Other", ["no data set /Other: it holds /Cube/Images"]),
        ("--img_size 20 20", ["other size: 40x40 px, the model wants 20x20: --img_size 40"]),
        ("--img_size 44 44", ["patches of 10 px do not divide 44×44 px"]),
        ("--wavelengths 500:590:10", ["other number of bands: 30, not 10", "--wavelengths"]),
        ("--finetune --batch_size 16", ["15 training cases do not fill one update of 16", "lower --batch_size"]),
        ("--task segment --class_names a b", ["--class_names are 2, but the masks of train have the classes 0 to 4"]),
    ],
)
def test_mistakes_are_one_line(probe, tmp_path, flags, texts):
    with pytest.raises(UserError) as caught:
        probe(tmp_path / "run", *flags.split())
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in texts), caught.value


def test_missing_labels_and_splits_are_one_line(probe, spoilt, tmp_path):
    good = read_csv(spoilt)
    for change, flags, text in (
        (lambda row: row | {"label": "normal"}, (), "a classification needs two labels"),
        (lambda row: row | {"mask_file": ""}, ("--task", "segment"), "a segmentation needs masks"),
        (lambda row: row | {"label": row["label"] if row["split"] != "test" else ""}, (), "no test cube"),
        (lambda row: row | {"mask_file": row["mask_file"] if row["split"] != "valid" else ""}, ("--task", "segment"),
         "no valid cube"),
    ):  # fmt: skip
        write_csv(spoilt, [change(row) for row in good])
        with pytest.raises(UserError, match=text) as caught:
            probe(tmp_path / "run", "--csv_file", spoilt, *flags)
        assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_script_with_one_line(trained, demo, classified):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", classified, *QUICK)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    assert "--overwrite" in done.stderr
