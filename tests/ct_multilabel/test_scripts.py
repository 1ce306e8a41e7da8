"""The scripts as users run them: trained, on two processes, evaluated, on volumes of one's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from conftest import loads_nothing
from core.checkpoints import save_model
from core.losses.classification import AsymmetricLoss, FocalLoss, MaskedBCE
from ct.labels import LABELS
from ct.slice_classifier import SliceClassifier
from ct.slices import VolumeDataset, divide
from ct.store import StoredVolume, label_table, read_manifest, write_manifest, write_settings, write_slices
from ct.vlm3d import official_metrics
from files import read_csv, read_json
from launch import run

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "ct"
TRAIN, EVALUATE, PREDICT = (f"ct_multilabel/{name}.py" for name in ("train", "evaluate", "predict"))
LOSSES = (FocalLoss, AsymmetricLoss, MaskedBCE)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_results(file):
    """Names and probabilities (N, 18) of a results.json."""
    predictions = read_json(file)["predictions"]
    scores = [[prediction["probabilities"][label] for label in LABELS] for prediction in predictions]
    return [prediction["input_image_name"] for prediction in predictions], np.array(scores)


def assert_one_line(done, *texts):
    """A user's mistake: one line that begins with "error: " and holds the texts, and exit code 2."""
    assert done.returncode == 2, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert all(text in errors[0] for text in texts), errors[0]


# ------------------------------------------------------------------------------------------------ training


def test_training_leaves_its_results(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "last", "best", "figures"} <= names
    logged = rows(trained)
    assert [row["epoch"] for row in logged] == [1, 2, 3]
    assert {"train/loss", "val/auroc", "val/f1", "val/crg", "val/loss"} <= set(logged[0])
    config = read_json(trained / "best" / "config.json")
    assert config["labels"] == list(LABELS)
    assert config["slices"] == {"slices": 8, "size": 48, "field_mm": 360.0, "channels": "windows"}
    assert list(config["prevalence"]) == list(LABELS)
    assert 0.1 < np.mean(list(config["prevalence"].values())) < 0.3
    assert list(config["calibration"]["thresholds"]) == list(LABELS)
    assert all(0 < threshold < 1 for threshold in config["calibration"]["thresholds"].values())
    with Image.open(trained / "figures" / "training.png") as figure:
        assert figure.width > 500


def test_the_backbone_rests_until_it_is_its_turn(trained):
    """--unfreeze-epoch 1: after three epochs the last parts have learnt, and in the first only the head did."""
    state = load_file(trained / "last" / "model.safetensors")
    torch.manual_seed(0)
    fresh = SliceClassifier(18, **read_json(trained / "best" / "config.json")["model"])
    counted = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    updates = rows(trained)[-1]["update"]
    assert max(counted) == updates * 2 // 3  # BatchNorm of a frozen part counts nothing
    assert 0 in counted
    assert set(state) == set(fresh.state_dict())


def test_no_patient_stands_in_two_splits(store):
    volumes = read_manifest(store)[1]
    parts = divide(volumes, 0.25)
    patients = {part: {volume.patient for volume in found} for part, found in parts.items()}
    assert sum(map(len, patients.values())) == len({volume.patient for volume in volumes}) == 20
    assert not set.intersection(*patients.values())
    assert {len(found) > 0 for found in patients.values()} == {True}
    scans = [{volume.scan for volume in found} for found in parts.values()]
    assert sum(map(len, scans)) == len(set.union(*scans))


@torch.no_grad()
def test_two_processes_have_one_model_and_count_every_volume_once(trained_by_two, store, tmp_path):
    """What two processes logged together is what one gets from the state of the first.

    The loss is the sharp test: were the weights of the second others, or a volume counted twice, it would differ.
    """
    logged = rows(trained_by_two)[-1]
    model, config = SliceClassifier.from_folder(trained_by_two)
    state = {name: torch.from_numpy(x) for name, x in load_file(trained_by_two / "last" / "model.safetensors").items()}
    model.load_state_dict(state)
    tuning = VolumeDataset(divide(read_manifest(store)[1], 0.25)["tune"])
    assert len(tuning) % 2 == 0
    logits = torch.cat([model(tuning[i]["slices"][None])["volume"] for i in range(len(tuning))])
    labels = label_table(tuning.volumes)
    assert logged["val/loss"] == pytest.approx(float(FocalLoss()(logits, torch.from_numpy(labels).float())), rel=1e-5)

    done = run(
        EVALUATE, "--checkpoint", trained_by_two, "--slices_path", store, "--split", "tune", "--output", tmp_path,
        "--bootstrap", 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    macro = read_json(tmp_path / "metrics.json")["official"]
    best = rows(trained_by_two)[config["best"]["epoch"] - 1]
    assert macro["macro"]["auroc"] == pytest.approx(best["val/auroc"], abs=1e-5)
    assert macro["macro"]["f1"] == pytest.approx(best["val/f1"], abs=1e-5)
    assert macro["crg"] == pytest.approx(best["val/crg"], abs=1e-5)
    assert "too good" in (tmp_path / "report.html").read_text()


# ------------------------------------------------------------------------------------------------ the reference


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory):
    """Two slices of 32×32 px of noise from each of 12 patients: enough to start any model."""
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    volumes = []
    for i in range(12):
        split = "valid" if i % 4 == 3 else "train"
        name, file = f"{split}_{i}_a_1", folder / split / f"{i}.h5"
        write_slices(file, rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8), {})
        labels = rng.integers(0, 2, 18).astype(np.int8)
        volumes.append(StoredVolume(file, name, f"{split}_{i}", f"{split}_{i}_a", split, 2, labels))
    write_manifest(folder, LABELS, volumes)
    write_settings(folder, {"slices": 2, "size": 32, "field_mm": 360.0, "channels": "windows"})
    return folder


# Appended to the reference's commands; where a flag stands there already, the last one counts.
TINY = ["--no-pretrained", "--epochs", "1", "--batch-size", "4", "--slices_per_volume", "2", "--tune_fraction", "0.5"]
TINY += ["--num_workers", "0", "--log_with", "none"]


def trained_as_written(command, folder, tiny_store):
    """Whether the training that the reference writes as `command` ends well; its arguments."""
    done = run(TRAIN, *command.split(), "--slices_path", tiny_store, "--save_dir", folder, *TINY)
    assert done.returncode == 0, done.stderr
    return read_json(folder / "args.json")


def test_strategy_1_fast_training(tiny_store, tmp_path):
    command = """--model efficientnet_b0 --freeze-backbone --use-attention se --loss-type asl --batch-size 64
        --learning-rate 2e-4"""
    args = trained_as_written(command, tmp_path, tiny_store)
    assert (args["use_attention"], args["loss_type"], args["lr"]) == ("se", "asl", 2e-4)
    state = load_file(tmp_path / "last" / "model.safetensors")
    assert {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")} == {0}  # frozen all the time


def test_strategy_2_maximum_performance(tiny_store, tmp_path):
    command = """--model efficientnet_b0 --use-attention cbam --loss-type asl --use-advanced-aug --progressive-unfreeze
        --unfreeze-epoch 8 --batch-size 32 --learning-rate 1e-4"""
    args = trained_as_written(command, tmp_path, tiny_store)
    assert (args["use_attention"], args["unfreeze_epoch"], args["lr"]) == ("cbam", 8, 1e-4)


def test_strategy_3_an_ensemble_of_three(tiny_store, tmp_path):
    commands = {
        "efficientnet": "--model efficientnet_b0 --use-attention cbam --loss-type asl",
        "resnet50": "--model resnet50 --use-attention se --loss-type focal",
        "resnet101": "--model resnet101 --use-attention cbam --loss-type asl",
    }
    for name, command in commands.items():
        trained_as_written(command, tmp_path / name, tiny_store)
        shutil.rmtree(tmp_path / name / "last")  # half a gigabyte
    done = run(
        EVALUATE, "--checkpoint", *(tmp_path / name / "best" for name in commands), "--slices_path", tiny_store,
        "--output", tmp_path / "evaluation", "--bootstrap", 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = read_json(tmp_path / "evaluation" / "metrics.json")
    assert [member["name"] for member in metrics["members"]] == list(commands)
    assert [m["model"]["backbone"] for m in metrics["members"]] == ["efficientnet_b0", "resnet50", "resnet101"]
    assert "ensemble of 3" in done.stdout
    for name in commands:
        shutil.rmtree(tmp_path / name)


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def evaluated(trained, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    done = run(EVALUATE, "--checkpoint", trained / "best", "--slices_path", store, "--output", folder,
               "--bootstrap", 100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_evaluation_names_data_baselines_and_intervals(evaluated):
    metrics = read_json(evaluated / "metrics.json")
    data = metrics["data"]
    assert (data["split"], data["volumes"], data["patients"], data["unknown_labels"]) == ("valid", 16, 5, 0)
    for name, interval in metrics["intervals"].items():
        assert interval["low"] <= interval["estimate"] <= interval["high"], name
        official = metrics["official"]["crg"] if name == "crg" else metrics["official"]["macro"][name]
        assert interval["estimate"] == pytest.approx(official)
    assert [row["label"] for row in metrics["by_label"]] == list(LABELS)
    assert all(row["cases"] == 16 for row in metrics["by_label"])
    baselines = metrics["baselines"]
    assert baselines["training prevalence"]["auroc"] == 0.5
    assert baselines["always positive"]["recall"] == 1
    assert baselines["always positive"]["crg"] == pytest.approx(1 / 3)
    assert set(metrics["calibration_error"]) == {"before", "after"}
    assert all(0 <= error <= 1 for error in metrics["calibration_error"].values())
    assert metrics["error_by_spread"] is None
    assert metrics["environment"]["processes"] == 1


def test_the_submission_holds_what_was_measured(evaluated, store):
    """results.json, predictions.csv and the labels of the store give the metrics again."""
    names, scores = read_results(evaluated / "results.json")
    volumes = {volume.name: volume for volume in read_manifest(store)[1] if volume.split == "valid"}
    assert sorted(names) == sorted(volumes)
    labels = np.stack([volumes[name].labels for name in names])
    metrics = read_json(evaluated / "metrics.json")
    official = official_metrics(labels, scores)
    assert official["crg"] == pytest.approx(metrics["official"]["crg"])
    for name, value in official["macro"].items():
        assert value == pytest.approx(metrics["official"]["macro"][name])
    table = read_csv(evaluated / "predictions.csv")
    assert [row["volume"] for row in table] == names
    assert [row["patient"] for row in table] == [volumes[name].patient for name in names]
    for k, label in enumerate(LABELS):
        assert np.allclose([float(row[f"{label} score"]) for row in table], scores[:, k], rtol=1e-5)
        assert [int(float(row[f"{label} label"])) for row in table] == labels[:, k].tolist()
        assert all(0 <= float(row[f"{label} probability"]) <= 1 for row in table)


def test_the_report_is_one_file(evaluated):
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    assert page.count("data:image/") >= 4
    assert "95 % interval" in page
    assert "always positive" in page
    assert "too good" not in page
    assert "Not a medical device" in page
    for name in ("auroc", "roc", "precision_recall", "reliability"):
        with Image.open(evaluated / "figures" / f"{name}.png") as figure:
            assert np.asarray(figure.convert("L")).std() > 5


def test_an_ensemble_lists_its_members_and_their_spread(trained, trained_by_two, store, evaluated, tmp_path):
    done = run(EVALUATE, "--checkpoint", trained, trained_by_two, "--slices_path", store, "--output", tmp_path,
               "--bootstrap", 20)  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = read_json(tmp_path / "metrics.json")
    assert [member["name"] for member in metrics["members"]] == ["staged", "gated"]
    assert [member["model"]["gated_attention"] for member in metrics["members"]] == [False, True]
    alone = read_json(evaluated / "metrics.json")["official"]
    assert metrics["members"][0]["macro"] == pytest.approx(alone["macro"] | {"crg": alone["crg"]}, abs=1e-5)
    spread = metrics["error_by_spread"]
    assert sum(row["cells"] for row in spread) == 16 * 18
    assert 0 < spread[0]["spread"] < spread[2]["spread"]
    table = read_csv(tmp_path / "predictions.csv")
    assert min(float(row[f"{label} sd"]) for row in table for label in LABELS) >= 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Members of the ensemble" in page
    assert "between members" in page


def test_dropout_samples_tell_how_sure_one_model_is(trained, store, tmp_path):
    done = run(EVALUATE, "--checkpoint", trained, "--slices_path", store, "--output", tmp_path, "--bootstrap", 20,
               "--mc-dropout", 4)  # fmt: skip
    assert done.returncode == 0, done.stderr
    spread = read_json(tmp_path / "metrics.json")["error_by_spread"]
    assert 0 < spread[0]["spread"] < spread[2]["spread"]
    assert "4 dropout masks" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_evaluation_refuses_what_does_not_fit(trained, store, tiny_store, tmp_path):
    settings = run(EVALUATE, "--checkpoint", trained, "--slices_path", tiny_store)
    assert_one_line(settings, str(tiny_store), "size 32", "size 48")
    missing = run(EVALUATE, "--checkpoint", tmp_path, "--slices_path", store)
    assert_one_line(missing, f"{tmp_path} is not a model folder")
    save_model(tmp_path / "best", torch.nn.Linear(1, 1), {"kind": "ear VAE"})
    other = run(EVALUATE, "--checkpoint", tmp_path, "--slices_path", store)
    assert_one_line(other, "a model of kind 'ear VAE', not 'slice classifier'")


# ------------------------------------------------------------------------------------------------ one's own volumes


def test_prediction_equals_evaluation_on_the_same_volumes(demo_tree, trained, evaluated, tmp_path):
    """A file and a folder, from NIfTI to results.json: what evaluate.py found on their stored slices."""
    folder = demo_tree / "dataset" / "valid_fixed"
    single = folder / "valid_1/valid_1_a/valid_1_a_1.nii.gz"
    done = run(PREDICT, "--input", single, folder / "valid_2", "--checkpoint", trained, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    names, scores = read_results(tmp_path / "results.json")
    expected = dict(zip(*read_results(evaluated / "results.json"), strict=True))
    assert names[0] == "valid_1_a_1"
    assert {"valid_2_a_1", "valid_2_a_2"} <= set(names)
    assert np.allclose(scores, [expected[name] for name in names], atol=1e-5)
    content = read_json(tmp_path / "results.json")
    assert (content["type"], content["version"]) == ("Abnormality Classification", {"major": 1, "minor": 0})
    table = read_csv(tmp_path / "predictions.csv")
    assert [(row["volume"], row["label"]) for row in table] == [(name, label) for name in names for label in LABELS]
    assert [int(row["found"]) for row in table] == (scores >= 0.5).astype(int).ravel().tolist()
    assert {row["sd"] for row in table} == {""}
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 400
            assert np.asarray(picture.convert("L")).std() > 20
    assert f"{len(names)} of {len(names)} volumes done" in done.stdout


def test_prediction_by_an_ensemble_gives_spread(demo_tree, trained, trained_by_two, tmp_path):
    volume = demo_tree / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz"
    done = run(PREDICT, "--input", volume, "--checkpoint", trained, trained_by_two, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(float(row["sd"]) >= 0 for row in read_csv(tmp_path / "predictions.csv"))


def test_volumes_that_are_not_hu_need_the_metadata(demo_tree, trained, tmp_path):
    volume = next((demo_tree / "dataset" / "train").rglob("*.nii.gz"))
    arguments = ("--checkpoint", trained, "--output", tmp_path)
    alone = run(PREDICT, "--input", volume, *arguments)
    assert_one_line(alone, "none of 1 volumes could be used")
    assert f"left out: {volume}: not HU" in alone.stdout
    table = demo_tree / "dataset/metadata/train_metadata.csv"
    done = run(PREDICT, "--input", volume, "--metadata", table, *arguments)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "results.json")[0] == [volume.name.removesuffix(".nii.gz")]


def test_a_bad_volume_among_good_ones_is_left_out_by_name(demo_tree, trained, tmp_path):
    source = demo_tree / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz"
    shutil.copy(source, tmp_path / "good.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes(source.read_bytes()[:50_000])
    arguments = ("--checkpoint", trained, "--output", tmp_path / "out")
    done = run(PREDICT, "--input", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 volumes done" in done.stdout
    assert f"left out: {tmp_path / 'cut.nii.gz'}: cut off" in done.stdout
    assert read_results(tmp_path / "out" / "results.json")[0] == ["good"]
    assert_one_line(run(PREDICT, "--input", tmp_path / "cut.nii.gz", *arguments), "none of 1 volumes could be used")
    (tmp_path / "empty").mkdir()
    assert_one_line(run(PREDICT, "--input", tmp_path / "empty", *arguments), "no volume", str(tmp_path / "empty"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the two real volumes are not on this machine")
def test_real_volumes_that_are_no_whole_chest_come_with_a_warning(trained, tmp_path):
    done = run(PREDICT, "--input", REAL, "--checkpoint", trained, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 volumes done" in done.stdout
    warnings = {row["volume"]: row["warnings"] for row in read_csv(tmp_path / "predictions.csv")}
    assert "hardly any lung" in warnings["abdomen_3mm"]
    assert "no whole chest" in warnings["chest_crop_1.5mm"]
    assert "warning: " in done.stdout


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.fixture
def spoilt(store, tmp_path):
    """A copy of the store, to be spoilt."""
    return Path(shutil.copytree(store, tmp_path / "spoilt"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--slices_path", "nowhere"], "nowhere is no store of slices"),
        (["--aggregate", "attention", "--batch_size", "2"], "hold no bag of --slices_per_volume 4"),
        (["--batch_size", "2000"], "lower --batch_size"),
        (["--tune_fraction", "0"], "no tune volume"),
        (["--tune_fraction", "1"], "no train volume"),
        (["--model", "resnet51"], "resnet51 is not a model of timm"),
        (["--pretrained"], "--no-pretrained"),
        (["--resume", "nowhere"], "no training state there"),
    ],
)
def test_mistakes_end_in_one_line(train, tmp_path, arguments, text):
    assert_one_line(train(tmp_path / "run", *arguments, cwd=tmp_path), text)


@pytest.mark.parametrize("arguments", [["--loss-type", "dice"], ["--batch_size", "0"], ["--unfreeze", "3"]])
def test_unknown_flags_and_values_are_refused(train, tmp_path, arguments):
    done = train(tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_manifest_that_cannot_be_used_ends_in_one_line(train, spoilt, tmp_path):
    manifest = spoilt / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text(lines[0])
    assert_one_line(train(tmp_path / "run", "--slices_path", spoilt), str(manifest), "lists no volume")
    manifest.write_text("".join(lines).replace(",train_2,", ",valid_2,"))
    assert_one_line(train(tmp_path / "run", "--slices_path", spoilt), "two splits, valid_2", "keep each in one")
    manifest.unlink()
    assert_one_line(train(tmp_path / "run", "--slices_path", spoilt), str(manifest), "extract_slices.py")


@pytest.mark.parametrize(
    ("where", "message", "reason"),
    [
        (
            "train",
            "no label is both positive and negative in training; check the labels",
            "label with one class in training",
        ),
        ("tune", "among the tuning patients: enlarge --tune_fraction", "no label with both classes"),
    ],
)
def test_labels_without_any_contrast_end_the_training(train, spoilt, tmp_path, where, message, reason):
    """No AUROC, no best model: to be known before the first step."""
    labels, volumes = read_manifest(spoilt)
    for volume in volumes if where == "train" else divide(volumes, 0.4)["tune"]:
        volume.labels[:] = 0
    write_manifest(spoilt, labels, volumes)
    assert_one_line(train(tmp_path / "run", "--slices_path", spoilt, "--tune_fraction", 0.4), message)
    told = read_json(tmp_path / "run" / "data_report.json")["counts"]
    assert reason in [row["reason"] for row in told]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_of_slices_ends_the_training_with_its_name(train, spoilt, tmp_path, workers):
    """Also where a worker process of the loader reads it."""
    volume = divide(read_manifest(spoilt)[1], 0.25)["train"][3]
    volume.file.write_bytes(volume.file.read_bytes()[:700])
    done = train(tmp_path / "run", "--slices_path", spoilt, "--num_workers", workers)
    assert_one_line(done, f"{volume.file}: missing or damaged", "run extract_slices.py again")
    (problem,) = read_json(tmp_path / "run" / "data_report.json")["problems"]
    assert (problem["reason"], problem["where"]) == ("slices missing or damaged", str(volume.file))


# ------------------------------------------------------------------------------------------------ labels and numbers


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_labels_count_nowhere(loss):
    """Loss, gradients and official metrics are those of the known cells alone."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 18, generator=generator)
    labels = torch.randint(0, 2, (12, 18), generator=generator).float()
    unknown = torch.rand(12, 18, generator=generator) < 0.3
    masked, alone = logits.clone().requires_grad_(), logits[~unknown][None].clone().requires_grad_()
    value = loss()(masked, labels.masked_fill(unknown, -1))
    expected = loss()(alone, labels[~unknown][None])
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(masked.grad[~unknown], alone.grad[0])
    assert (masked.grad[unknown] == 0).all()

    table, cells = labels.masked_fill(unknown, -1).numpy(), unknown.numpy()
    scores = logits.double().sigmoid().numpy()
    result = official_metrics(table, scores)
    assert str(official_metrics(table, np.where(cells, 1 - scores, scores))) == str(result)  # NaN is not NaN
    known = ~cells[:, 4]
    column = official_metrics(np.tile(table[known, 4:5], 18), np.tile(scores[known, 4:5], 18))
    assert column["per_label"][LABELS[4]] == pytest.approx(result["per_label"][LABELS[4]], nan_ok=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [30.0, 60_000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_of_half_precision_stay_finite(loss, size, dtype):
    """60,000 is near the largest number that float16 holds. Right and wrong, hard and mixed by CutMix."""
    logits = torch.tensor([[size, -size] * 3], dtype=torch.float16).to(dtype).requires_grad_()
    labels = torch.tensor([[1, 0, 0, 1, 0.3, 0.3]], dtype=dtype)
    value = loss()(logits, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()
