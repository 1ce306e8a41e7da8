"""train_detector.py and evaluate_detector.py as users run them, on the taught encoder and without."""

import json
import re
import shlex
import signal

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.numpy import load_file

from conftest import ROOT, load_script, loads_nothing
from core import validation
from core.checkpoints import save_model
from core.errors import UserError
from ear.detector import EarDetector
from ear.detector_windows import RandomWindows
from ear.sam_vae import EarVAE
from files import logged, read_csv, read_json, write_csv
from launch import run

SIZE = (72, 60)  # px of the pictures, width and height
TRAIN, EVALUATE = "ear_teacher/train_detector.py", "ear_teacher/evaluate_detector.py"
TINY = "--sam_image_size 128 --image_size 32 --epochs 2 --windows 1 --batch_size 4 --num_workers 0 --log_with none"
HELIX = np.stack([np.cos(np.linspace(0, 5, 17)), np.sin(np.linspace(0, 5, 17))], axis=1)  # 17 landmarks in [-1, 1]


def draw(folder, split, count, seed, modes=("RGB",)):
    """`count` pictures of an ellipse with 17 landmarks on it and their manifest; two of a subject. Synthetic."""
    rng = np.random.default_rng(seed)
    content = {"image_paths": [], "bboxes": [], "landmarks": [], "subjects": [], "sides": []}
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    for number in range(count):
        centre, half = rng.uniform([28, 24], [44, 36]), rng.uniform([9, 12], [14, 18])
        inside = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1
        pixels = np.where(inside[..., None], [210, 160, 140], [40, 60, 50]) + rng.integers(0, 20, (*inside.shape, 3))
        mode = modes[number % len(modes)]
        file = f"{split}_{number}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / file)
        content["image_paths"].append(file)
        content["bboxes"].append([*(centre - half), *(centre + half)])
        content["landmarks"].append((centre + 0.9 * half * HELIX).astype(np.float32))
        content["subjects"].append(f"{split}{number // 2}")
        content["sides"].append(("left", "right")[number % 2])
    return content


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    """A folder with train.npy (12 pictures, some grey or CMYK), val.npy (4) and test.npy (7). Not to be written to."""
    folder = tmp_path_factory.mktemp("ears")
    for seed, (split, count) in enumerate((("train", 12), ("val", 4), ("test", 7))):
        np.save(folder / f"{split}.npy", draw(folder, split, count, seed, ("RGB", "L", "CMYK")), allow_pickle=True)
    return folder


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A VAE's run, of random weights. Not to be written to."""
    torch.manual_seed(0)
    vae = EarVAE("tiny", sam_image_size=128, latent_dim=8, image_size=16, freeze_layers=0)
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder / "best", vae, {"kind": "ear VAE", "taught": {}, "model": vae.arguments})
    return folder


def train(ears, folder, *arguments):
    manifests = ["--train_manifest", ears / "train.npy", "--val_manifest", ears / "val.npy"]
    flags = [*manifests, "--save_dir", folder, *TINY.split(), *arguments]
    try:
        load_script(TRAIN).main([str(flag) for flag in flags])
    finally:  # a test may train twice
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="module")
def runs(ears, vae_folder, tmp_path_factory):
    """Runs by name: taught by the VAE, and from scratch. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    train(ears, folder / "taught", "--teacher", vae_folder)
    train(ears, folder / "scratch", "--sam_config", "tiny")
    return folder


@pytest.fixture(scope="module")
def evaluation(ears, runs, tmp_path_factory):
    """The results of evaluate_detector.py on the test ears. Not to be written to."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate("--checkpoint", runs / "taught" / "best", "--compare", runs / "scratch", "--manifest", ears / "test.npy",
             "--output", folder)  # fmt: skip
    return folder


def evaluate(*arguments):
    try:
        load_script(EVALUATE).main([str(a) for a in (*arguments, "--bootstrap", 50, "--nb_to_plot", 2)])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


# ---------------------------------------------------------------------------------------------------------- training


def test_training_leaves_its_results(runs):
    names = {path.name for path in (runs / "taught").iterdir()}
    assert names == {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "best", "last", "previous",
                     "figures"}  # fmt: skip
    rows = logged(runs / "taught")
    assert [row["update"] for row in rows] == [3, 6]
    assert {f"train/{name}" for name in ("loss", "heatmap", "wing", "guess", "box", "side", "grad_norm")} <= set(
        rows[0]
    )
    assert {f"val/{name}" for name in ("loss", "nme", "iou", "iou_whole", "side_whole")} <= set(rows[0])
    assert rows[1]["train/loss"] < rows[0]["train/loss"]
    assert read_json(runs / "taught" / "data_report.json")["cases"] == {"train": 12, "val": 4}


def test_best_holds_all_that_inference_needs(runs, vae_folder):
    config = read_json(runs / "taught" / "best" / "config.json")
    assert config["kind"] == "ear detector"
    counts = dict.fromkeys(config["schema"]["names"], 12)
    assert config["taught"] == {"landmarks": counts, "boxes": {"box": 12}, "side": {"side": 12}}
    assert config["schema"]["name"] == "ear17"
    assert config["encoder"] == str(vae_folder)
    assert (config["model"]["margin"], config["model"]["image_size"], config["model"]["num_landmarks"]) == (0.3, 32, 17)
    shape = np.array(config["mean_ear"]["shape"])
    assert shape.shape == (17, 2)
    assert ((shape > 0) & (shape < 1)).all()
    assert read_json(runs / "scratch" / "best" / "config.json")["encoder"] == "random weights, tiny"


def test_a_frozen_encoder_stays_as_it_was_taught(ears, vae_folder, tmp_path):
    train(ears, tmp_path, "--teacher", vae_folder, "--freeze_encoder", "--epochs", 1)
    state = load_file(tmp_path / "last" / "model.safetensors")
    taught = load_file(vae_folder / "best" / "model.safetensors")
    encoder = {name: value for name, value in state.items() if name.startswith("encoder.")}
    assert encoder.keys() == {name for name in taught if name.startswith("encoder.")}
    for name, value in encoder.items():
        np.testing.assert_array_equal(value, taught[name])


def test_the_encoder_may_learn_more_slowly(ears, vae_folder, tmp_path):
    train(ears, tmp_path, "--teacher", vae_folder, "--encoder_lr_scale", 0, "--epochs", 1)
    state = load_file(tmp_path / "last" / "model.safetensors")
    taught = load_file(vae_folder / "best" / "model.safetensors")
    np.testing.assert_array_equal(
        state["encoder.sam.vision.patch_embed.projection.weight"],
        taught["encoder.sam.vision.patch_embed.projection.weight"],
    )
    assert (state["encoder.mu.weight"] == taught["encoder.mu.weight"]).all()


def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(ears, runs, tmp_path, monkeypatch):
    read, count = RandomWindows.__getitem__, iter(range(100))

    def terminate_at_the_18th(dataset, index):  # the second epoch's second batch
        if next(count) == 17:
            signal.raise_signal(signal.SIGTERM)
        return read(dataset, index)

    monkeypatch.setattr(RandomWindows, "__getitem__", terminate_at_the_18th)
    with pytest.raises(SystemExit) as stopped:
        train(ears, tmp_path, "--sam_config", "tiny")
    monkeypatch.undo()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert read_json(tmp_path / "last" / "state.json")["epoch"] == 1
    train(ears, tmp_path, "--sam_config", "tiny", "--resume")
    assert logged(tmp_path) == logged(runs / "scratch")
    state, uninterrupted = (load_file(f / "last" / "model.safetensors") for f in (tmp_path, runs / "scratch"))
    for name, value in state.items():
        np.testing.assert_array_equal(value, uninterrupted[name])


def test_one_manifest_is_divided_by_subject_and_the_test_part_kept(ears, tmp_path, capsys):
    content = draw(tmp_path, "all", 40, 7)
    np.save(tmp_path / "all.npy", content, allow_pickle=True)
    run = tmp_path / "run"
    flags = ["--data", tmp_path / "all.npy", "--val_fraction", 0.25, "--test_fraction", 0.3, "--sam_config", "tiny"]
    train(ears, run, *flags, "--epochs", 1)
    cases = read_json(run / "data_report.json")["cases"]
    assert cases["train"] % 2 == cases["val"] % 2 == 0  # both ears of a subject in one split
    evaluate("--checkpoint", run, "--manifest", tmp_path / "all.npy", "--split", "test", "--output", tmp_path / "test")
    tested = read_json(tmp_path / "test" / "metrics.json")["data"]["ears"]
    assert tested > 0
    assert cases["train"] + cases["val"] + tested == 40


def test_an_ibug_folder_keeps_its_test_part(ears, tmp_path):
    """55 points in .pts files; test/ is not read. Nothing is said of the sides, which nobody knows."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 1)):
        (tmp_path / "ibug" / split).mkdir(parents=True)
        for number in range(count):
            stem = tmp_path / "ibug" / split / f"{split}_{number}"
            Image.fromarray(rng.integers(0, 256, (60, 72, 3), dtype=np.uint8)).save(stem.with_suffix(".png"))
            points = rng.uniform(10, 50, (55, 2))
            lines = ["version: 1", "n_points: 55", "{", *(f"{x:.2f} {y:.2f}" for x, y in points), "}"]
            stem.with_suffix(".pts").write_text("\n".join(lines))
    flags = ["--data", tmp_path / "ibug", "--val_fraction", 0.3, "--sam_config", "tiny", "--epochs", 1]
    train(ears, tmp_path / "run", *flags)
    cases = read_json(tmp_path / "run" / "data_report.json")["cases"]
    assert cases["train"] + cases["val"] == 24
    config = read_json(tmp_path / "run" / "best" / "config.json")
    assert config["schema"]["name"] == "ibug55"
    assert config["model"]["flip"] is None  # nobody knows the sides of these
    evaluate("--checkpoint", tmp_path / "run", "--manifest", tmp_path / "ibug" / "test", "--output", tmp_path / "out")
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert (metrics["data"]["ears"], len(metrics["by_landmark"]["run"])) == (1, 55)
    assert config["taught"]["side"] == {"side": 0}
    assert "sides_right" not in metrics
    assert "side_found" not in read_csv(tmp_path / "out" / "predictions.csv")[0]
    assert not {"train/side", "val/side_whole"} & set(logged(tmp_path / "run")[0])


# -------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_compares_detectors_and_the_mean_ear(evaluation):
    metrics = read_json(evaluation / "metrics.json")
    assert metrics["data"] | {"manifest": ""} == {
        "manifest": "", "split": "all", "ears": 7, "subjects": 4, "schema": "ear17",
    }  # fmt: skip
    names = ["taught", "scratch", "mean ear in the mean box", "mean ear in the detected box"]
    assert list(metrics["methods"]) == names
    assert list(metrics["differences"]) == names[1:]
    nme = {name: values["nme"]["estimate"] for name, values in metrics["methods"].items()}
    for name in names[1:]:
        difference = metrics["differences"][name]["nme"]
        assert difference["estimate"] == pytest.approx(nme["taught"] - nme[name])
        assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert metrics["methods"]["taught"]["iou"] == metrics["methods"]["mean ear in the detected box"]["iou"]
    assert set(metrics["by_contour"]["taught"]) == {"outer helix", "antihelix", "inferior crus", "tragus to antitragus"}
    assert len(metrics["by_landmark"]["scratch"]) == 17


def test_predictions_are_those_of_the_detector(evaluation, ears, runs):
    rows = read_csv(evaluation / "predictions.csv")
    assert len(rows) == 14
    row = rows[0]
    model, _ = EarDetector.from_folder(runs / "taught")
    found = model.predict(np.asarray(Image.open(ears / "test_0.png").convert("RGB")))
    assert row["id"] == "test_0"
    np.testing.assert_allclose([float(row[name]) for name in ("x0", "y0", "x1", "y1")], found.box, atol=2e-3)
    assert float(row["tragus_x"]) == pytest.approx(found.landmarks[16, 0], abs=2e-3)
    assert float(row["score"]) == pytest.approx(found.score, abs=2e-3)
    assert row["side_found"] == found.side != ""


def test_two_processes_find_what_one_finds(evaluation, ears, runs, tmp_path):
    """Seven ears: one has four, the other three."""
    done = run(EVALUATE, "--checkpoint", runs / "taught", "--compare", runs / "scratch", "--manifest",
               ears / "test.npy", "--output", tmp_path, "--bootstrap", 50, processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_csv(tmp_path / "predictions.csv") == read_csv(evaluation / "predictions.csv")
    assert done.stdout.count("report:") == 1


def test_the_report_stands_alone(evaluation):
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    for text in ("NME", "mean ear in the detected box", "scratch", "tragus to antitragus", "bootstrap over subjects"):
        assert text in page
    figures = {path.name for path in (evaluation / "figures").iterdir()}
    assert figures == {"cumulative_error.png", "by_landmark.png", "typical.png", "worst.png", "best.png"}


def test_several_ears_in_one_picture_are_told(ears, runs, tmp_path):
    content = draw(tmp_path, "two", 4, 5)
    content["image_paths"][1] = content["image_paths"][0]
    np.save(tmp_path / "two.npy", content, allow_pickle=True)
    evaluate("--checkpoint", runs / "taught", "--manifest", tmp_path / "two.npy", "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "data_report.json")
    assert [(row["reason"], row["count"]) for row in report["counts"]] == [("several ears in one picture", 2)]
    boxes = [(row["x0"], row["y0"]) for row in read_csv(tmp_path / "out" / "predictions.csv")]
    assert boxes[0] == boxes[1] != boxes[2]


def test_the_guides_commands_are_understood():
    text = (ROOT / "ear_teacher" / "DETECTION_GUIDE.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [words[:2] for words in commands] == [["python", TRAIN], ["python", TRAIN], ["python", EVALUATE]]
    for _, script, *arguments in commands:
        assert load_script(script).parse_args(arguments)


# ------------------------------------------------------------------------------------------------ another subject

LEAF = {"name": "leaf", "names": ["stalk", "left edge", "right edge", "hole", "rib"], "flip": [0, 2, 1, 3, 4],
        "strips": {"outline": [1, 0, 2], "inside": [3, 4]}}  # fmt: skip


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """leaf.json and train.csv, val.csv, test.csv whose columns are no scheme of an ear's, and in another order: no
    training picture has the hole, all others have it, one of val nothing else. In train only one edge is known. A
    landmark is misspelt. Synthetic."""
    folder = tmp_path_factory.mktemp("leaves")
    (folder / "leaf.json").write_text(json.dumps(LEAF))
    for seed, (split, count) in enumerate((("train", 8), ("val", 5), ("test", 4))):
        content, rows = draw(folder, split, count, seed), []
        for i in range(count):
            names = "rib", "right edge", "stalk", "left edge", "hole"
            places = dict(zip(names, content["landmarks"][i][:5], strict=True))
            unknown = {"train": ("hole", "right edge"), "val": set(places) - {"hole"} if i == 4 else ()}.get(split, ())
            row = {"image": content["image_paths"][i], "subject": content["subjects"][i]}
            row |= dict(zip(("x0", "y0", "x1", "y1"), content["bboxes"][i], strict=True)) | {"stem_x": 3, "stem_y": 4}
            for name, (x, y) in places.items():
                row |= {f"{name}_x": "" if name in unknown else x, f"{name}_y": "" if name in unknown else y}
            rows.append(row)
        write_csv(folder / f"{split}.csv", rows)
    return folder


@pytest.fixture(scope="module")
def leaf_run(leaves, ears, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaf") / "run"
    manifests = ["--train_manifest", leaves / "train.csv", "--val_manifest", leaves / "val.csv"]
    train(ears, folder, *manifests, "--sam_config", "tiny", "--epochs", 1, "--landmark_schema", leaves / "leaf.json")
    return folder


def test_what_was_not_taught_is_no_output(leaf_run):
    """An edge that is known on one side only is taught as its mirror image, too."""
    config = read_json(leaf_run / "best" / "config.json")
    assert config["taught"]["landmarks"] == {"stalk": 8, "left edge": 8, "right edge": 8, "hole": 0, "rib": 8}
    assert config["schema"]["names"] == ["stalk", "left edge", "right edge", "rib"]
    assert config["schema"]["strips"] == {"outline": [1, 0, 2]}
    assert config["schema"]["flip"] == [0, 2, 1, 3]
    assert config["model"]["num_landmarks"] == 4
    report = read_json(leaf_run / "data_report.json")
    assert report["cases"] == {"train": 8, "val": 4}
    problems = {problem["reason"]: problem for problem in report["problems"]}
    assert problems["landmark of no training ear"]["where"] == "hole"
    assert (
        problems["landmark of another name"]["where"].endswith("train.csv, columns stem_x, stem_y")
        or "val.csv" in (problems["landmark of another name"]["where"])
    )
    assert problems["landmark of another name"]["detail"] == "leaf has stalk, left edge, right edge, hole, rib"
    assert problems["no landmark known"]["where"] == "val_4"


@pytest.mark.parametrize("form", ["csv", "npy"])
def test_an_evaluation_follows_the_scheme_of_the_checkpoint(leaves, leaf_run, tmp_path, form):
    """By name in a table, in the order of the training files in a .npy."""
    manifest = leaves / "test.csv"
    if form == "npy":
        rows = read_csv(manifest)
        points = [[[row[f"{name}_{axis}"] for axis in "xy"] for name in LEAF["names"]] for row in rows]
        boxes = [[float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row in rows]
        content = {"image_paths": [row["image"] for row in rows], "bboxes": boxes, "landmarks": points}
        manifest = leaves / "test.npy"
        np.save(manifest, content | {"subjects": [row["subject"] for row in rows]}, allow_pickle=True)
    evaluate("--checkpoint", leaf_run, "--manifest", manifest, "--output", tmp_path)
    rows = read_csv(tmp_path / "predictions.csv")
    assert [name for name in rows[0] if name.endswith("_x")] == ["stalk_x", "left_edge_x", "right_edge_x", "rib_x"]
    truth, boxes = read_csv(leaves / "test.csv"), ("x0", "y0", "x1", "y1")
    for row, true in zip(rows, truth, strict=True):
        found, places = (
            np.array([[float(r[f"{name}_{axis}".replace(" ", c)]) for axis in "xy"] for name in ("stalk", "left edge",
                      "right edge", "rib")]) for r, c in ((row, "_"), (true, " "))
        )  # fmt: skip
        box = np.array([float(true[name]) for name in boxes])
        nme = 100 * np.linalg.norm(found - places, axis=1).mean() / np.linalg.norm(box[2:] - box[:2])
        assert float(row["nme_percent"]) == pytest.approx(nme, abs=0.01)
    metrics = read_json(tmp_path / "metrics.json")
    assert list(metrics["by_landmark"]["run"]) == ["stalk", "left edge", "right edge", "rib"]
    assert "<td>hole" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_table_without_a_landmark_of_the_scheme_is_refused(ears, runs, leaves, tmp_path):
    with pytest.raises(UserError, match=r"none of its landmarks \(stem, .*\) is of the scheme: ear17 has otobasion"):
        evaluate("--checkpoint", runs / "taught", "--manifest", leaves / "test.csv", "--output", tmp_path)


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_a_refusal_leaves_the_data_report(ears, runs, tmp_path, script):
    content = draw(tmp_path, "far", 4, 3)
    content["bboxes"] = [[500, 500, 520, 520]] * 4
    np.save(tmp_path / "far.npy", content, allow_pickle=True)
    far, out = tmp_path / "far.npy", tmp_path / "out"
    call = {
        "train": lambda: train(ears, out, "--train_manifest", far, "--sam_config", "tiny"),
        "evaluate": lambda: evaluate("--checkpoint", runs / "taught", "--manifest", far, "--output", out),
    }  # fmt: skip
    with pytest.raises(UserError, match="4 × box outside the picture"):
        call[script]()
    (count,) = read_json(tmp_path / "out" / "data_report.json")["counts"]
    assert count == {"reason": "box outside the picture", "action": "left out", "count": 4}


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sam_config tiny --landmark_schema ibug55", "have 17 landmarks, ibug55 has 55"),
        ("--sam_config tiny --landmark_schema nothing.json", "nothing.json"),
        ("--teacher nowhere", "nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(ears, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        train(ears, tmp_path, *flags.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", ["", "--teacher a --sam_config tiny", "--sam_model a --sam_config tiny"])
def test_an_encoder_is_named_once(flags, capsys):
    with pytest.raises(SystemExit):
        load_script(TRAIN).parse_args(flags.split())
    assert re.search("--teacher|not allowed with", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "name", "flags"),
    [("train.py", "ear_teacher", ["--perceptual_weight", "0"]), ("train_detector.py", "ear_teacher_detector", [])],
)
def test_a_run_is_called_as_its_project(tmp_path, monkeypatch, script, name, flags):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.npy"):
        load_script(f"ear_teacher/{script}").main(["--sam_config", "tiny", "--train_manifest", "nowhere.npy", *flags])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]


def test_all_processes_share_the_first_look_at_the_pictures(ears, vae_folder, tmp_path, monkeypatch):
    shared, given = validation.shared, []
    monkeypatch.setattr(validation, "shared", lambda *job: given.append(len(job[2])) or shared(*job))
    train(ears, tmp_path, "--sam_config", "tiny", "--epochs", 1)
    evaluate("--checkpoint", tmp_path, "--manifest", ears / "test.npy", "--output", tmp_path / "out")
    assert given == [12, 4, 7]


def test_the_code_is_as_long_as_the_teachers(ears, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load_script(TRAIN).parse_args(["--teacher", "a", "--latent_dim", "16"])
    assert "--latent_dim is the teacher's" in capsys.readouterr().err
    train(ears, tmp_path, "--sam_config", "tiny", "--latent_dim", 8, "--epochs", 1)
    assert read_json(tmp_path / "best" / "config.json")["model"]["latent_dim"] == 8


def test_a_detector_is_no_teacher_and_a_teacher_no_detector(ears, runs, vae_folder, tmp_path):
    with pytest.raises(UserError, match="'ear detector', not 'ear VAE'"):
        train(ears, tmp_path, "--teacher", runs / "taught")
    with pytest.raises(UserError, match="'ear VAE', not 'ear detector'"):
        evaluate("--checkpoint", vae_folder, "--manifest", ears / "test.npy", "--output", tmp_path)


def test_ears_without_landmarks_are_counted_or_refused(ears, tmp_path):
    content = draw(tmp_path, "few", 12, 3)
    content["landmarks"][2] = content["landmarks"][2][:16]
    content["landmarks"][5] = np.full((17, 2), np.nan)
    np.save(tmp_path / "few.npy", content, allow_pickle=True)
    train(ears, tmp_path / "run", "--train_manifest", tmp_path / "few.npy", "--sam_config", "tiny", "--epochs", 1)
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["cases"]["train"] == 10
    assert {problem["action"] for problem in report["problems"]} == {"left out"}
    del content["landmarks"]
    np.save(tmp_path / "none.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match="no landmarks"):
        train(ears, tmp_path / "run2", "--train_manifest", tmp_path / "none.npy", "--sam_config", "tiny")


def test_detectors_of_other_landmarks_are_not_compared(ears, runs, tmp_path):
    model, config = EarDetector.from_folder(runs / "scratch")
    names = [f"{name} of another scheme" for name in config["schema"]["names"]]
    other = {
        "schema": config["schema"] | {"name": "x", "names": names},
        "taught": {"landmarks": dict.fromkeys(names, 1)},
    }
    save_model(tmp_path / "other" / "best", model, config | other)
    with pytest.raises(UserError, match=r"find different landmarks \(x, 17 landmarks; ear17, 17\)"):
        evaluate("--checkpoint", runs / "taught", "--compare", tmp_path / "other", "--manifest", ears / "test.npy")


def test_metrics_are_json_without_nan(evaluation):
    text = (evaluation / "metrics.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
