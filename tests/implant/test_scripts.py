"""train_classifier.py, train.py, evaluate.py and predict.py as users run them."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.numpy import load_file

from conftest import ROOT, load_script, loads_nothing
from core.errors import UserError
from files import dicom, logged, read_csv, read_json
from implants.crops import ImplantCrops
from launch import run

TINY = "--model_size tiny --image_size 32 --no-pretrained --batch_size 8 --num_workers 0 --log_with none"
CLASSIFIER, REGRESSOR = "implant/train_classifier.py", "implant/train.py"


def call(script, *arguments):
    try:
        load_script(script).main([str(argument) for argument in arguments])
    finally:  # a test may train twice
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def records(implants):
    return ["--train_json", implants / "train.json", "--val_json", implants / "val.json"]


@pytest.fixture(scope="module")
def classifiers(implants, tmp_path_factory):
    """Runs of train_classifier.py by target. Not to be written to."""
    folder = tmp_path_factory.mktemp("classifiers")
    for target in ("company", "model"):
        call(CLASSIFIER, "--target", target, *records(implants), *TINY.split(), "--epochs", 2, "--embedding_dim", 32,
             "--save_dir", folder / target)  # fmt: skip
    return folder


def train(implants, classifiers, folder, *arguments):
    checkpoints = [
        "--company_checkpoint",
        classifiers / "company",
        "--model_checkpoint",
        classifiers / "model" / "best",
    ]
    call(REGRESSOR, *records(implants), *checkpoints, *TINY.split(), "--embedding_dim", 32, "--save_dir", folder,
         *arguments)  # fmt: skip


@pytest.fixture(scope="module")
def runs(implants, classifiers, tmp_path_factory):
    """Runs of train.py by name. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    stages = ["--epochs", 4, "--unfreeze_schedule", 1, 2]
    train(implants, classifiers, folder / "triple", *stages, "--uncertainty", "--auxiliary", "thread_type")
    train(implants, classifiers, folder / "cross", "--epochs", 1, "--attention_type", "cross")
    train(implants, classifiers, folder / "none", "--epochs", 1, "--embeddings", "none")
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_classifier_leaves_its_results(classifiers):
    names = {path.name for path in (classifiers / "company").iterdir()}
    assert names == {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "best", "last", "previous",
                     "figures"}  # fmt: skip
    config = read_json(classifiers / "company" / "best" / "config.json")
    assert (config["kind"], config["target"]) == ("implant classifier", "company")
    assert config["classes"] == ["Alpha", "Beta", "Gamma"]
    assert config["taught"] == {"company": {"Alpha": 8, "Beta": 8, "Gamma": 8}}
    assert {"val/loss", "val/accuracy", "val/macro_f1"} <= set(logged(classifiers / "company")[0])
    assert (classifiers / "company" / "figures" / "confusion_matrix.png").is_file()


def changed(implants, folder, change):
    """A copy of the records in `folder` with `change(split, number, row)` applied to each."""
    shutil.copytree(implants, folder)
    for split in ("train", "val", "test"):
        rows = [change(split, i, row) for i, row in enumerate(read_json(implants / f"{split}.json"))]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize(
    ("change", "message", "reason"),
    [
        (lambda split, i, row: row | {"company": "Alpha"}, "every record is of company 'Alpha'", "one company only"),
        (lambda split, i, row: row | {"company": ""}, "none of its 24 records", "company is missing or empty"),
        (lambda split, i, row: row | {"patient_id": i}, "patients stand in two splits, 0", "in two splits"),
        (lambda split, i, row: row | {"image": "broken.png"}, "no readable picture in train", "picture unreadable"),
    ],
)
def test_a_refusal_leaves_its_reason_in_the_data_report(implants, tmp_path, change, message, reason):
    copy = changed(implants, tmp_path / "copy", change)
    if reason == "picture unreadable":
        shutil.copy(implants / "val.json", copy)
    (copy / "broken.png").write_bytes((implants / "train_0.png").read_bytes()[:200])
    with pytest.raises(UserError, match=message):
        call(CLASSIFIER, "--target", "company", *records(copy), *TINY.split(), "--save_dir", tmp_path / "r")
    assert reason in [count["reason"] for count in read_json(tmp_path / "r" / "data_report.json")["counts"]]
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_labels_that_training_has_not_seen_are_named(implants, tmp_path):
    copy = changed(implants, tmp_path / "copy", lambda split, i, row: row | {"company": "New"} if i < 2 else row)
    shutil.copy(implants / "train.json", copy)
    call(CLASSIFIER, "--target", "company", *records(copy), *TINY.split(), "--epochs", 1, "--save_dir", tmp_path / "r")
    problems = read_json(tmp_path / "r" / "data_report.json")["problems"]
    (unseen,) = [problem for problem in problems if problem["reason"] == "company unseen in training"]
    assert unseen["detail"] == "New (2); training has Alpha, Beta, Gamma"


def test_what_has_no_truth_in_training_is_left_out_everywhere(implants, tmp_path, capsys):
    """No diameter, no models, and an auxiliary field that no record has."""
    gone = {"diameter": None, "model": ""}
    copy = changed(implants, tmp_path / "copy", lambda split, i, row: row | gone)
    call(REGRESSOR, *records(copy), *TINY.split(), "--epochs", 1, "--embeddings", "none", "--embedding_dim", 16,
         "--auxiliary", "thread_type", "surface", "--save_dir", tmp_path / "run")  # fmt: skip
    config, (row,) = read_json(tmp_path / "run" / "best" / "config.json"), logged(tmp_path / "run")
    assert config["taught"] == {"targets": {"length": 24}, "thread_type": {"r": 12, "v": 12}}
    assert row["val/avg_mae"] == row["val/length_mae"]
    call("implant/evaluate.py", "--checkpoint", tmp_path / "run", "--test_json", copy / "test.json", "--level", 0.5,
         "--calibration_json", copy / "val.json", "--output", tmp_path / "e", "--bootstrap", 10,
         "--num_workers", 0)  # fmt: skip
    call("implant/predict.py", "--checkpoint", tmp_path / "run", tmp_path / "run" / "best", "--input",
         copy / "test.json", "--output", tmp_path / "p")  # fmt: skip
    metrics = read_json(tmp_path / "e" / "metrics.json")
    assert list(metrics["methods"]) == ["run", "median of the training split"]
    assert list(metrics["methods"]["run"]) == ["length"]
    assert set(metrics["groups"]) == {"company", "modality", "combination", "spacing"}
    assert list(read_csv(tmp_path / "p" / "predictions.csv")[0]) == [
        "id", "image", *(f"length{part}_mm" for part in ("", "_sigma", "_low", "_high", "_nearest")), "thread_type"
    ]  # fmt: skip
    told = [p["reason"] for p in read_json(tmp_path / "run" / "data_report.json")["problems"]]
    assert told == ["no usable diameter in any record", "no surface in any training record"]
    texts = [capsys.readouterr().out.split("avg_mae")[-1]]
    texts += [(tmp_path / file).read_text() for file in ("e/metrics.json", "e/predictions.csv", "p/predictions.csv")]
    assert not [text for text in texts if "diameter" in text or "surface" in text]
    assert "diameter" not in (tmp_path / "e" / "report.html").read_text(encoding="utf-8").lower()


def test_limits_travel_with_the_model(implants, tmp_path):
    copy = changed(implants, tmp_path / "copy", lambda split, i, row: row | {"length": 5 * row["length"]})
    call(REGRESSOR, *records(copy), *TINY.split(), "--epochs", 1, "--embeddings", "none", "--embedding_dim", 16,
         "--length_limits", 40, 60, "--save_dir", tmp_path / "run")  # fmt: skip
    call("implant/evaluate.py", "--checkpoint", tmp_path / "run", "--test_json", copy / "test.json", "--output",
         tmp_path / "e", "--bootstrap", 10, "--num_workers", 0)  # fmt: skip
    assert read_json(tmp_path / "e" / "metrics.json")["data"]["cases"] == 10


def test_training_leaves_its_results(runs):
    rows = logged(runs / "triple")
    assert [row["update"] for row in rows] == [3, 6, 9, 12]
    assert {f"train/{name}" for name in ("loss", "length", "diameter", "auxiliary", "grad_norm")} <= set(rows[0])
    assert {f"val/{name}" for name in ("loss", "avg_mae", "length_mae", "diameter_mae")} <= set(rows[0])
    assert rows[0]["val/avg_mae"] == pytest.approx((rows[0]["val/length_mae"] + rows[0]["val/diameter_mae"]) / 2)
    config = read_json(runs / "triple" / "best" / "config.json")
    assert config["model"]["attention_type"] == "triple"
    assert config["modalities"] == ["periapical"]
    assert config["model"]["scale_features"] == 5  # on where a spacing is known
    assert sum(row[-1] for row in config["train_sizes"]) == 24
    counts = {"Alpha": 8, "Beta": 8, "Gamma": 8}, {"Straight": 12, "Tapered": 12}
    assert config["taught"] == {"targets": {"length": 24, "diameter": 24}, "company": counts[0], "model": counts[1],
                                "thread_type": {"r": 12, "v": 12}}  # fmt: skip


def test_networks_stand_still_until_their_epoch_and_learn_at_a_tenth(implants, classifiers, runs, tmp_path):
    taught = weights(classifiers / "company" / "best")
    train(implants, classifiers, tmp_path / "frozen", "--epochs", 2, "--unfreeze_schedule", 5, 6)
    state = weights(tmp_path / "frozen" / "last")
    for name, value in taught.items():
        np.testing.assert_array_equal(state[f"encoders.company.{name}"], value)
    state, half = weights(runs / "triple" / "last"), weights(runs / "triple" / "previous")
    upper, lower = ("backbone.vit.blocks.11.attn.qkv.weight", "backbone.vit.blocks.0.attn.qkv.weight")
    assert (state[f"encoders.company.{upper}"] != taught[upper]).any()
    assert (state[f"encoders.company.{lower}"] != taught[lower]).any()
    np.testing.assert_array_equal(state["encoders.company.head.weight"], taught["head.weight"])
    assert (half["encoders.company." + upper] != taught[upper]).any()
    optimizer = torch.load(runs / "triple" / "last" / "optimizer.bin", weights_only=True)
    rates = sorted({group["lr"] for group in optimizer["param_groups"]})
    assert rates[1] == pytest.approx(10 * rates[0])


@pytest.mark.parametrize("augment", [False, True])
def test_cached_features_change_no_loss(implants, classifiers, tmp_path, augment, monkeypatch):
    """With augmentation, compared with a run that shows as many views; in its first epoch, as later ones amplify the
    rounding of other batches."""
    flags = ["--epochs", 3, "--unfreeze_schedule", 2, 3, "--augment" if augment else "--no-augment"]
    train(implants, classifiers, tmp_path / "cached", *flags, "--cache_features", "--cache_views", 2)
    if augment:
        create = ImplantCrops.__init__

        def with_views(self, *arguments, **named):
            create(self, *arguments, **named)
            self.views = 2 if self.augmentation else None

        monkeypatch.setattr(ImplantCrops, "__init__", with_views)
    train(implants, classifiers, tmp_path / "plain", *flags)
    cached, plain = logged(tmp_path / "cached"), logged(tmp_path / "plain")
    for epoch in range(1 if augment else 2):
        for name in ("train/loss", "val/loss", "val/avg_mae"):
            assert cached[epoch][name] == pytest.approx(plain[epoch][name], rel=1e-5), (epoch, name)


def test_the_cache_reads_no_picture_twice(implants, classifiers, tmp_path, monkeypatch):
    read, count = ImplantCrops.__getitem__, []

    def counted(self, index):
        count.append(index)
        return read(self, index)

    monkeypatch.setattr(ImplantCrops, "__getitem__", counted)
    train(implants, classifiers, tmp_path, "--epochs", 4, "--cache_features", "--cache_views", 1)
    assert len(count) == 24 + 8


def test_the_references_command_runs_as_written(implants, classifiers, tmp_path, monkeypatch):
    """With .pth files; on small records, and one epoch in place of 50."""
    text = (ROOT / "implant" / "train_dual_embeddings_regression.py").read_text(encoding="utf-8")
    command = text.split('"""')[1].split("\n\n")[1].replace("\\\n", " ")
    python, script, *flags = shlex.split(command)
    assert (python, flags[-2:]) == ("python", ["--epochs", "50"])
    for split in ("train", "val"):
        rows = json.loads((implants / f"{split}.json").read_text())
        rows = [row | {"image": str(implants / row["image"])} for row in rows]
        (tmp_path / f"augmented_{split}.json").write_text(json.dumps(rows))
    for target in ("company", "model"):
        state = {name: torch.from_numpy(value) for name, value in weights(classifiers / target / "best").items()}
        torch.save(state, tmp_path / f"vit_{target}.pth")
    done = run(f"implant/{script}", *flags[:-1], 1, *TINY.split(), "--embedding_dim", 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "implant" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--embeddings company", "needs --company_checkpoint"),
        ("--embeddings none --unfreeze_schedule 40 20", "smaller one first"),
        ("--embeddings none --unfreeze_schedule 20", "two epochs"),
        ("", "needs --company_checkpoint"),
    ],
)
def test_what_cannot_work_is_said(flags, message, capsys):
    with pytest.raises(SystemExit):
        load_script(REGRESSOR).parse_args(["--train_json", "a", "--val_json", "b", *flags.split()])
    assert message in capsys.readouterr().err


def test_records_must_be_named(capsys):
    with pytest.raises(SystemExit):
        load_script(CLASSIFIER).parse_args(["--target", "company"])
    assert "--train_json and --val_json" in capsys.readouterr().err


def test_a_schedule_may_be_one_word():
    parse = load_script(REGRESSOR).parse_args
    base = ["--train_json", "a", "--val_json", "b", "--embeddings", "none", "--unfreeze_schedule"]
    assert parse([*base, "20 40"]).unfreeze_schedule == parse([*base, "20", "40"]).unfreeze_schedule == [20, 40]


def test_in_a_sagemaker_container(implants, classifiers, tmp_path, monkeypatch, capsys):
    """The layout and the words that the containers give, offline."""
    for name in ("MODEL_DIR", "OUTPUT_DATA_DIR", "CHANNEL_TRAIN", "CHANNEL_VAL"):
        place = {"CHANNEL_TRAIN": implants, "CHANNEL_VAL": tmp_path / "val"}.get(name, tmp_path / name.lower())
        monkeypatch.setenv(f"SM_{name}", str(place))
        place.mkdir(exist_ok=True)
    for target in ("company", "model"):
        monkeypatch.setenv(f"SM_CHANNEL_{target.upper()}", str(classifiers / target))
    monkeypatch.setenv("SM_NUM_GPUS", "0")
    rows = [row | {"image": str(implants / row["image"])} for row in json.loads((implants / "val.json").read_text())]
    (tmp_path / "val" / "val.json").write_text(json.dumps(rows))
    words = [*TINY.split(), "--embedding_dim", "32", "--epochs", "1", "--unfreeze_schedule", "20 40"]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    try:
        load_script(REGRESSOR).main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("avg_mae=")]
    assert len(printed) == 2
    assert printed[0] == printed[1]
    assert (tmp_path / "model_dir" / "model.safetensors").is_file()
    assert (tmp_path / "output_data_dir" / "metrics.jsonl").is_file()


# ---------------------------------------------------------------------------------------------- evaluation, prediction


@pytest.fixture(scope="module")
def evaluation(implants, runs, tmp_path_factory):
    """The results of evaluate.py on the test records. Not to be written to."""
    folder = tmp_path_factory.mktemp("evaluation")
    call("implant/evaluate.py", "--checkpoint", runs / "triple" / "best", "--compare", runs / "cross", runs / "none",
         "--test_json", implants / "test.json", "--calibration_json", implants / "val.json", "--level", 0.7,
         "--output", folder, "--bootstrap", 30, "--num_workers", 0)  # fmt: skip
    return folder


def test_evaluation_writes_what_it_measured(evaluation):
    metrics = read_json(evaluation / "metrics.json")
    assert metrics["data"] | {"records": ""} == {"records": "", "cases": 10, "patients": 5}
    names = ["triple", "cross", "none", "median of the training split", "median of the predicted model"]
    assert list(metrics["methods"]) == names
    rows = read_csv(evaluation / "predictions.csv")
    for target in ("length", "diameter"):
        errors = [abs(float(row[f"{target}_mm"]) - float(row[f"{target}_predicted_mm"])) for row in rows]
        assert metrics["methods"]["triple"][target]["mae"]["estimate"] == pytest.approx(np.mean(errors), abs=1e-3)
        parts = ("", "_low", "_high")
        truth, low, high = np.array([[float(row[f"{target}{part}_mm"]) for row in rows] for part in parts])
        fewest, most = (((low - x <= truth) & (truth <= high + x)).mean() for x in (-2e-3, 2e-3))  # cells are rounded
        assert fewest <= metrics["methods"]["triple"][target]["coverage"]["estimate"] <= most
    weights_by_company = metrics["attention"]["visual, company, model"]
    assert set(weights_by_company) == {"all", "Alpha", "Beta", "Gamma"}
    assert sum(weights_by_company["all"].values()) == pytest.approx(1, abs=1e-5)
    figures = {path.name for path in (evaluation / "figures").iterdir()}
    assert figures == {"scatter.png", "residuals.png", "intervals.png", "comparison.png",
                       "attention_visual_company_model.png"}  # fmt: skip
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    assert "median of the training split" in page


def test_patch_attention_is_drawn(implants, runs, tmp_path):
    call("implant/evaluate.py", "--checkpoint", runs / "cross", "--test_json", implants / "test.json", "--output",
         tmp_path, "--bootstrap", 10, "--num_workers", 0)  # fmt: skip
    assert (tmp_path / "figures" / "attention_patches.png").is_file()
    assert read_json(tmp_path / "metrics.json")["interval_level"] is None


def test_an_ensemble_is_the_mean_of_its_members(implants, runs, tmp_path):
    found = []
    for folders in (["triple"], ["cross"], ["triple", "cross"]):
        output = tmp_path / "_".join(folders)
        call("implant/predict.py", "--checkpoint", *(runs / name for name in folders), "--input",
             implants / "test.json", "--output", output)  # fmt: skip
        found.append(np.array([float(row["length_mm"]) for row in read_csv(output / "predictions.csv")]))
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=2e-3)


def test_dropout_passes_spread(implants, runs, tmp_path):
    for passes in (0, 8):
        call("implant/predict.py", "--checkpoint", runs / "none", "--input", implants / "test.json", "--output",
             tmp_path / str(passes), "--mc_dropout", passes)  # fmt: skip
    assert {row["length_sigma_mm"] for row in read_csv(tmp_path / "0" / "predictions.csv")} == {""}
    assert min(float(row["length_sigma_mm"]) for row in read_csv(tmp_path / "8" / "predictions.csv")) > 0


def test_pictures_alone_are_enough(implants, runs, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    shutil.copy(implants / "test_0.png", pictures)
    shutil.copy(implants / "test_1.png", pictures / "more")
    (pictures / "broken.png").write_bytes((implants / "test_2.png").read_bytes()[:200])
    call("implant/predict.py", "--checkpoint", runs / "triple", "--input", pictures, pictures / "test_0.png",
         "--pixel_size", 0.12, "--calibration_json", implants / "val.json", "--level", 0.6,
         "--output", tmp_path / "out")  # fmt: skip
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["id"] for row in rows] == ["more/test_1", "test_0"]
    assert {row["company"] for row in rows} <= {"Alpha", "Beta", "Gamma"}
    assert {row["thread_type"] for row in rows} <= {"v", "r"}
    for row in rows:
        assert float(row["length_low_mm"]) < float(row["length_mm"]) < float(row["length_high_mm"])
        assert float(row["length_nearest_mm"]) in (8, 10, 12)
    (problem,) = read_json(tmp_path / "out" / "data_report.json")["problems"]
    assert (problem["reason"], problem["where"]) == ("picture unreadable", "broken")
    assert (tmp_path / "out" / "overview.png").is_file()


def test_dicom_files_bring_their_spacing_and_need_no_suffix(runs, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4095, (60, 40)).astype(np.uint16)
    spacing = {"PixelSpacing": [0.1, 0.1]}
    (tmp_path / "in").mkdir()
    dicom(tmp_path / "in" / "1.2.840.7", pixels, **spacing)
    dicom(tmp_path / "in" / "1.2.840.8", pixels)
    (tmp_path / "in" / "notes").write_text("no picture")
    call("implant/predict.py", "--checkpoint", runs / "triple", "--input", tmp_path / "in", "--output", tmp_path)
    rows = read_csv(tmp_path / "predictions.csv")
    assert [row["id"] for row in rows] == ["1.2.840.7", "1.2.840.8"]
    assert rows[0]["length_mm"] != rows[1]["length_mm"]  # one knows its scale


@pytest.mark.parametrize("given", ["nowhere.png", "text.txt", "empty"])
def test_what_is_no_input_is_said_in_one_line(runs, tmp_path, given):
    (tmp_path / "text.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--input .*{given}") as caught:
        call("implant/predict.py", "--checkpoint", runs / "none", "--input", tmp_path / given, "--output",
             tmp_path / "out")  # fmt: skip
    assert "\n" not in str(caught.value)


def test_runs_on_other_records_are_no_ensemble(implants, runs, tmp_path):
    shutil.copytree(runs / "none" / "best", tmp_path / "other" / "best")
    config = read_json(tmp_path / "other" / "best" / "config.json")
    config["train_sizes"][0][-1] += 1
    (tmp_path / "other" / "best" / "config.json").write_text(json.dumps(config))
    from core.checkpoints import seal

    seal(tmp_path / "other" / "best")
    with pytest.raises(UserError, match="trained on other records"):
        call("implant/predict.py", "--checkpoint", runs / "none", tmp_path / "other", "--input",
             implants / "test.json", "--output", tmp_path / "out")  # fmt: skip
