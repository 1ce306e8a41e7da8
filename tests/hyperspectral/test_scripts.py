"""train.py and evaluate.py as users run them: results, arguments, bad data."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.numpy import load_file

from conftest import load_script, loads_nothing
from core.checkpoints import save_model
from core.errors import UserError
from files import logged, read_csv, read_json, write_csv, write_cube
from hsi.dataset import CubeDataset
from hsi.files import H5_KEY, foreground, read_cube, read_cubes
from hsi.mae_spectral import VARIANTS, MAESpectral
from hsi.statistics import Statistics
from hsi.wavelengths import DEFAULT_WAVELENGTHS
from launch import run

EVALUATE = "hyperspectral/evaluate.py"
METHODS = ["model", "interpolation", "mean spectrum"]
METRICS = ["mse", "psnr", "sam", "ssim", "band_mean"]


def problems(folder):
    """ID -> reason, of data_report.json."""
    return {p["where"].split(",")[0]: p["reason"] for p in read_json(folder / "data_report.json")["problems"]}


# ------------------------------------------------------------------------------------------------ results


def test_training_leaves_its_results(trained, demo):
    names = {path.name for path in trained.iterdir()}
    assert names == {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "best", "last", "previous",
                     "figures"}  # fmt: skip
    rows = logged(trained)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert ["val/loss" in row for row in rows] == [False, True, True]  # --valid_interval 2, and the last
    assert {f"train/{name}" for name in ("loss", "mse", "sam", "variance", "range", "grad_norm")} <= set(rows[0])
    assert {f"val/{name}" for name in ("loss", "mse", "psnr", "sam", "ssim")} <= set(rows[1])
    assert rows[2]["train/loss"] < rows[0]["train/loss"]
    assert read_json(trained / "data_report.json") == {
        "cases": {"train": 15, "valid": 3, "test": 6}, "counts": [], "problems": [],
    }  # fmt: skip


def test_best_holds_all_that_inference_needs(trained, demo):
    config, statistics = (
        read_json(trained / "best" / "config.json"),
        Statistics.load(demo.parent / "dataset_stats.json"),
    )
    assert config["kind"] == "masked autoencoder"
    assert config["taught"] == {"bands": {f"{nm:g} nm": 15 for nm in DEFAULT_WAVELENGTHS}}
    assert config["model"]["img_size"] == [40, 40]
    assert config["model"]["patch_size"] == [10, 5]
    assert config["wavelengths"] == list(DEFAULT_WAVELENGTHS)
    assert (config["h5_key"], config["unit"]) == (H5_KEY, "reflectance")
    assert config["statistics"]["mean"] == pytest.approx(statistics.mean)
    assert (config["statistics"]["low"], config["statistics"]["high"]) == (statistics.low, statistics.high)
    best = min((row for row in logged(trained) if "val/loss" in row), key=lambda row: row["val/loss"])
    assert config["best"] == {"epoch": best["epoch"], "loss": best["val/loss"]}
    state = load_file(trained / "best" / "model.safetensors")
    np.testing.assert_allclose(state["mean"], statistics.mean, rtol=1e-6)
    np.testing.assert_allclose(state["std"], statistics.std, rtol=1e-6)


def test_every_validation_leaves_pictures(trained):
    figures = trained / "figures"
    assert {path.name for path in figures.iterdir()} == {"epoch_0002", "epoch_0003", "training.png"}
    for folder in ("epoch_0002", "epoch_0003"):
        pictures = list((figures / folder).iterdir())
        names = {picture.name for picture in pictures}
        assert {"reconstructions.png", "error_by_wavelength.png"} < names
        assert sum(name.startswith("spectra_") for name in names) == 2  # --nb_to_plot 2
        for picture in pictures:
            with Image.open(picture) as pixels:
                assert np.asarray(pixels.convert("L")).std() > 10


def test_pictures_of_another_format_and_without_rgb(demo, tmp_path, monkeypatch):
    script, drawn, tracked = load_script("hyperspectral/train.py"), [], []
    monkeypatch.setattr(script, "write_figures", lambda *arguments: drawn.append(arguments) or [("a.jpg", "caption")])
    monkeypatch.setattr(script.Run, "show", lambda run, picture: tracked.append(picture))
    monkeypatch.setattr("core.figures.save", lambda *_: None)
    flags = "--img_size 40 --patch_size 20 10 --embed_dim 8 --encoder_depth 1 --encoder_num_heads 1 --lr 1e-3"
    flags += " --decoder_embed_dim 8 --decoder_depth 1 --decoder_num_heads 1 --batch_size 2 --num_workers 0 --epochs 1"
    flags += " --log_with none --nb_to_plot 3 --save_format jpg --dpi 70 --no-load_rgb"
    script.main(["--csv_file", str(demo), "--save_dir", str(tmp_path), *flags.split()])
    ((folder, shown, curves, wavelengths, unit, suffix, dpi),) = drawn
    assert (folder.name, unit, suffix, dpi) == ("epoch_0001", "reflectance", "jpg", 70)
    assert [case.photo for case in shown] == [None] * 3
    valid = read_cubes(demo)["valid"]
    for case, cube in zip(shown, valid, strict=True):
        assert case.name == cube.id
        values = read_cube(cube.file)
        np.testing.assert_array_equal(case.cube, values)
        np.testing.assert_array_equal(case.foreground, foreground(values))
        np.testing.assert_array_equal(case.result[~case.hidden], values[~case.hidden])
        assert case.hidden.mean() == pytest.approx(10 / 12)  # 0.8 of 12 tokens, rounded
    assert curves["model"].shape == (30,)
    assert tuple(wavelengths) == DEFAULT_WAVELENGTHS
    assert tracked == ["a.jpg"]


# ------------------------------------------------------------------------------------------------ arguments


def parse(*flags):
    return load_script("hyperspectral/train.py").parse_args(["--csv_file", "data.csv", *flags])


# An override of the reference's Hydra configuration, the flag for it, and what it must lead to.
OVERRIDES = [
    ("model=mae_tiny", "--model mae_tiny", {"embed_dim": 192, "encoder_num_heads": 3}),
    ("model=mae_base", "--model mae_base", {"embed_dim": 768, "decoder_num_heads": 12}),
    ("model=mae_large", "--model mae_large", {"embed_dim": 1024, "encoder_depth": 24}),
    ("hparams.batch_size=4", "--batch_size 4", {"batch_size": 4}),
    ("hparams.epochs=100", "--epochs 100", {"epochs": 100}),
    ("hparams.valid_interval=2", "--valid_interval 2", {"valid_interval": 2}),
    ("hparams.accumulate_grad_batches=4", "--accumulate_grad_batches 4", {"accumulate_grad_batches": 4}),
    ("hparams.overfit_batches=1", "--overfit_batches 1", {"overfit_batches": 1}),
    ("general.num_workers=16", "--num_workers 16", {"num_workers": 16}),
    ("general.use_amp=true", "--mixed_precision", {"mixed_precision": "fp16"}),
    ("general.experiment_name=trial", "--experiment_name trial", {"experiment_name": "trial"}),
    ("general.debug=true", "--debug", {"debug": True, "num_workers": 0}),
    ("mlflow.tags.version=v1.0", "--log_with mlflow --tags version=v1.0", {"tags": [("version", "v1.0")]}),
    ("loss.mse_weight=2", "--mse_weight 2", {"mse_weight": 2.0}),
    ("loss.sam_weight=0.2", "--sam_weight 0.2", {"sam_weight": 0.2}),
    ("loss.variance_weight=0.02", "--variance_weight 0.02", {"variance_weight": 0.02}),
    ("loss.range_penalty_weight=0", "--range_penalty_weight 0", {"range_penalty_weight": 0.0}),
    ("dataset.csv_file=other.csv", "--csv_file other.csv", {"csv_file": "other.csv"}),
    ("dataset.transform_type=none", "--transform_type none", {"transform_type": "none"}),
    ("dataset.normalize=false", "--no-normalize", {"normalize": False}),
    ("dataset.load_rgb=false", "--no-load_rgb", {"load_rgb": False}),
    ("show_prediction.nb_to_plot=2", "--nb_to_plot 2", {"nb_to_plot": 2}),
    ("show_prediction.save_format=jpg", "--save_format jpg", {"save_format": "jpg"}),
    ("show_prediction.dpi=300", "--dpi 300", {"dpi": 300}),
    ("model.img_size=250", "--img_size 250", {"img_size": [250, 250]}),
    ("model.patch_size=[50,10]", "--patch_size 50 10", {"patch_size": [50, 10]}),
    ("model.in_chans=10", "--wavelengths 500:590:10", {"wavelengths": tuple(range(500, 600, 10))}),
    ("model.embed_dim=256", "--embed_dim 256", {"embed_dim": 256, "encoder_depth": 16}),
    ("model.encoder_depth=4", "--encoder_depth 4", {"encoder_depth": 4, "embed_dim": 512}),
    ("model.encoder_num_heads=8", "--encoder_num_heads 8", {"encoder_num_heads": 8}),
    ("model.decoder_embed_dim=128", "--decoder_embed_dim 128", {"decoder_embed_dim": 128}),
    ("model.decoder_depth=1", "--decoder_depth 1", {"decoder_depth": 1}),
    ("model.decoder_num_heads=4", "--decoder_num_heads 4", {"decoder_num_heads": 4}),
    ("model.mask_ratio=0.75", "--mask_ratio 0.75", {"mask_ratio": 0.75}),
    ("--cfg job", "--print_config", {"print_config": True}),
]


@pytest.mark.parametrize(("override", "flags", "expected"), OVERRIDES, ids=[row[0] for row in OVERRIDES])
def test_every_override_of_the_reference_has_its_flag(override, flags, expected):
    args, default = vars(parse(*flags.split())), vars(parse())
    found = {name: str(args[name]) if name == "csv_file" else args[name] for name in expected}
    assert found == expected
    assert any(str(default[name]) != str(args[name]) for name in expected)
    dashes = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in flags.split()]
    assert vars(parse(*dashes)) == args


def test_defaults_are_those_of_the_reference():
    args = parse()
    names = ("epochs", "batch_size", "valid_interval", "accumulate_grad_batches", "num_workers", "nb_to_plot", "dpi")
    assert [getattr(args, name) for name in names] == [200, 6, 5, 1, 8, 4, 150]
    assert {name: getattr(args, name) for name in VARIANTS["mae_medium"]} == VARIANTS["mae_medium"]
    weights = [getattr(args, f"{name}_weight") for name in ("mse", "sam", "variance", "range_penalty")]
    assert weights == [1.0, 0.1, 0.01, 0.001]
    assert (args.img_size, tuple(args.patch_size), args.mask_ratio) == ([500, 500], (25, 5), 0.8)
    assert (args.wavelengths, args.transform_type, args.normalize) == (DEFAULT_WAVELENGTHS, "augment_basic", True)


@pytest.mark.parametrize(
    ("flags", "processes", "rate"),
    [
        ("", 1, 1.5e-4 * 6 / 256),
        ("--batch_size 4 --accumulate_grad_batches 8", 2, 1.5e-4 * 4 * 2 * 8 / 256),
        ("--batch_size 16 --base_lr 1e-3", 3, 1e-3 * 16 * 3 / 256),
        ("--batch_size 16 --lr 0.01", 3, 0.01),
    ],
)
def test_print_config_prints_what_a_run_would_use(tmp_path, monkeypatch, capsys, flags, processes, rate):
    """And nothing else: one JSON object; no folder, no data read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    script = load_script("hyperspectral/train.py")
    script.main(["--csv_file", "nowhere.csv", "--model", "mae_small", "--print_config", *flags.split()])
    config = json.loads(capsys.readouterr().out)
    assert config["lr"] == pytest.approx(rate)
    assert {name: config[name] for name in VARIANTS["mae_small"]} == VARIANTS["mae_small"]
    assert config["wavelengths"] == list(DEFAULT_WAVELENGTHS)
    assert config["csv_file"] == "nowhere.csv"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    ["--batch_size 0", "--model mae_giant", "--decoder half", "--mask 0.8", "--img_size 40 40 40", "--patch_size 25",
     "--overfit_batches -1", "--loss_on visible"],
)  # fmt: skip
def test_impossible_arguments_are_refused(flags, capsys):
    with pytest.raises((SystemExit, UserError)) as caught:
        parse(*flags.split())
    message = str(caught.value) if caught.type is UserError else capsys.readouterr().err
    assert flags.split()[0] in message


# ------------------------------------------------------------------------------------------------ training


def test_one_batch_can_be_learnt_by_heart(train, tmp_path):
    flags = "--overfit_batches 1 --batch_size 1 --epochs 110 --valid_interval 110 --lr 1e-2 --warmup_epochs 5"
    flags += " --weight_decay 0 --embed_dim 64 --decoder_embed_dim 64"
    train(tmp_path, *flags.split())
    rows = logged(tmp_path)
    assert [row["update"] for row in rows] == list(range(1, 111))
    assert rows[-1]["train/loss"] < 0.1 * rows[0]["train/loss"]
    assert rows[-1]["val/loss"] < 0.1 * rows[0]["train/loss"]  # of the same batch, with the same tokens hidden
    assert set(read_json(tmp_path / "best" / "config.json")["taught"]["bands"].values()) == {1}


def without_key_biases(state):
    """Softmax takes a bias of the keys out again: their gradients are rounding errors, which AdamW makes large."""
    state = dict(state)
    for name, tensor in state.items():
        if name.endswith("qkv.bias"):
            state[name] = np.delete(tensor, np.s_[len(tensor) // 3 : 2 * len(tensor) // 3])
        elif name.endswith("key_value.bias"):
            state[name] = tensor[len(tensor) // 2 :]
    return state


def assert_equal_runs(folder, other):
    """All numbers that were logged, and the weights, up to rounding."""
    for ours, theirs in zip(logged(folder), logged(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    ours, theirs = (without_key_biases(load_file(f / "last" / "model.safetensors")) for f in (folder, other))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, err_msg=name)


# Twelve updates, three an epoch, by each of the decoders.
SHORT = ["--epochs", "4", "--valid_interval", "4", "--lr", "5e-4", "--warmup_epochs", "0"]
DECODERS = {"full": [*SHORT, "--decoder", "full"], "cross": [*SHORT, "--decoder", "cross", "--decode_ratio", "0.5"]}


@pytest.fixture(scope="module")
def large_batches(train, tmp_path_factory):
    """Decoder -> folder of a run with batches of 4."""
    folders = {decoder: tmp_path_factory.mktemp(decoder) for decoder in DECODERS}
    for decoder, folder in folders.items():
        train(folder, *DECODERS[decoder])
        assert [row["update"] for row in logged(folder)] == [3, 6, 9, 12]
    return folders


@pytest.mark.parametrize("decoder", DECODERS)
def test_two_accumulated_batches_equal_a_large_one(train, large_batches, tmp_path, decoder):
    train(tmp_path, *DECODERS[decoder], "--batch_size", 2, "--accumulate_grad_batches", 2)
    assert_equal_runs(tmp_path, large_batches[decoder])


def test_init_from_moves_weights_to_other_cubes(trained, tmp_path):
    """From 40×40 px and 30 bands to 20×20 px and 10; a learning rate of next to nothing leaves them as they came."""
    demo = tmp_path / "demo"
    load_script("hyperspectral/make_demo_data.py").main(
        ["--output", str(demo), "--cases", "6", "--size", "20", "--wavelengths", "500:590:10", "--workers", "1"]
    )
    flags = "--img_size 20 --wavelengths 500:590:10 --batch_size 2 --epochs 1 --lr 1e-12 --num_workers 0"
    flags += " --log_with none --dpi 40 --nb_to_plot 1"
    script, table = load_script("hyperspectral/train.py"), demo / "dataset.csv"
    script.write_figures = lambda *_: []
    script.main([*f"--csv_file {table} --save_dir {tmp_path / 'run'} --init_from {trained}".split(), *flags.split()])
    config, source = (read_json(f / "best" / "config.json") for f in (tmp_path / "run", trained))
    changed = {"img_size": [20, 20], "in_chans": 10, "mask_ratio": 0.8, "decode_ratio": 0.25}
    assert config["model"] == source["model"] | changed
    assert config["wavelengths"] == [float(nm) for nm in range(500, 600, 10)]
    ours = load_file(tmp_path / "run" / "best" / "model.safetensors")
    theirs = load_file(trained / "best" / "model.safetensors")
    for name, tensor in theirs.items():
        if "positions" not in name and name not in ("mean", "std"):
            np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)
    moved, _ = MAESpectral.from_folder(trained, 20, config["wavelengths"])
    for name in ("encoder.positions.plane", "encoder.positions.spectrum"):
        np.testing.assert_allclose(ours[name], moved.state_dict()[name], atol=1e-6)
    statistics = Statistics.load(demo / "dataset_stats.json")  # of the new data, not of the old
    np.testing.assert_allclose(ours["mean"], statistics.mean, rtol=1e-6)
    np.testing.assert_allclose(ours["std"], statistics.std, rtol=1e-6)


def test_without_normalisation_the_model_sees_raw_values(train, tmp_path):
    train(tmp_path, "--no-normalize", "--epochs", 1)
    state = load_file(tmp_path / "best" / "model.safetensors")
    assert (state["mean"] == 0).all()
    assert (state["std"] == 1).all()


def test_debug_shows_every_batch(train, tmp_path, capsys):
    try:
        train(tmp_path, "--debug", "--epochs", 1)
    finally:
        torch.autograd.set_detect_anomaly(False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("['P0")]
    assert len(lines) == 3
    assert all(f"{name} " in line for line in lines for name in ("mse", "sam", "variance", "range"))


# ------------------------------------------------------------------------------------------------ bad data


@pytest.fixture
def spoilt(demo, tmp_path):
    """A copy of the demo data without its statistics, to be spoilt: (CSV, ID -> file of train)."""
    folder = shutil.copytree(demo.parent, tmp_path / "spoilt")
    (folder / "dataset_stats.json").unlink()
    table = folder / "dataset.csv"
    return table, {cube.id: cube.file for cube in read_cubes(table)["train"]}


def test_bad_cubes_are_skipped_and_listed(train, spoilt, tmp_path):
    table, files = spoilt
    names, cubes = list(files), {name: read_cube(file) for name, file in files.items()}
    nan = cubes[names[0]]
    nan[3, 4, 5] = np.nan
    write_cube(files[names[0]], nan)
    write_cube(files[names[1]], np.full((30, 40, 40), 0.5, np.float32))
    files[names[2]].write_bytes(files[names[2]].read_bytes()[:50_000])
    write_cube(files[names[3]], cubes[names[3]], key="/Other/Data")
    write_cube(files[names[4]], cubes[names[4]][:, :20, :20])
    write_cube(files[names[5]], cubes[names[5]][:25])
    write_cube(files[names[6]], cubes[names[6]][0])
    files[names[7]].unlink()
    write_cube(files[names[8]], cubes[names[8]], compression="gzip")
    train(tmp_path / "run", "--csv_file", table, "--epochs", 1)
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["cases"]["train"] == 7
    found = {}
    for problem in report["problems"]:
        name = next(name for name in names if name in problem["where"])
        found[name] = (problem["reason"], problem["action"], problem["detail"])
    kinds = ["NaN or infinite values", "constant", "no HDF5 file, or a damaged one", f"no data set {H5_KEY}",
             "other size", "other number of bands", "no cube of bands, rows and columns", "no such file"]  # fmt: skip
    assert [found[name][:2] for name in names[:8]] == [(kind, "case skipped") for kind in kinds]
    assert found[names[8]][:2] == ("slow to read", "kept")
    assert "cubes.py repack" in found[names[8]][2]
    assert "/Other/Data" in found[names[3]][2]
    assert "1 of 48000" in found[names[0]][2]
    assert len(found) == len(report["problems"]) == 9
    assert np.isfinite(logged(tmp_path / "run")[0]["train/loss"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--h5_key /Other", ["is of the data set /Cube/Images, not /Other"]),
        ("--wavelengths 500:590:10", ["other number of bands: 30, not 10", "--wavelengths"]),
        ("--img_size 20", ["other size: 40x40 px, the model wants 20x20: --img_size 40"]),
        ("--img_size 44", ["patches of 10 px do not divide 44×44 px"]),
        ("--encoder_num_heads 5", ["5 heads"]),
        ("--mask_ratio 1", ["--mask_ratio"]),
        ("--batch_size 16", ["15 training cases do not fill one update of 16", "lower --batch_size"]),
        ("--csv_file nowhere.csv", ["nowhere.csv"]),
        ("--stats_file nowhere.json", ["nowhere.json: no such file", "cubes.py stats"]),
        ("--init_from nowhere", ["nowhere is not a model folder"]),
        ("--valid_fraction 0.9", ["--valid_fraction 0.9 and --test_fraction 0.2 leave nothing to train on"]),
    ],
)
def test_mistakes_are_one_line(train, tmp_path, flags, texts):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", *flags.split())
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in texts), caught.value


def test_a_wrong_key_tells_what_the_file_holds(train, spoilt, tmp_path):
    table, _ = spoilt
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", "--csv_file", table, "--h5_key", "/Other")
    assert "no data set /Other: it holds /Cube/Images (30, 40, 40); name the cube with --h5_key" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(problems(tmp_path / "run").values()) == {"no data set /Other"}


def test_a_refusal_leaves_the_report_that_explains_it(train, evaluate, spoilt, tmp_path):
    table, files = spoilt
    test = read_cubes(table)["test"]
    for file in (*files.values(), *(cube.file for cube in test)):
        write_cube(file, np.where(read_cube(file) > 0.2, np.inf, 0))
    with pytest.raises(UserError, match="none of 15 train cubes can be used"):
        train(tmp_path / "run", "--csv_file", table)
    assert problems(tmp_path / "run") == dict.fromkeys(files, "NaN or infinite values")
    with pytest.raises(UserError, match="no test cube that can be used"):
        evaluate("--csv_file", table)
    assert problems(tmp_path / "results") == {cube.id: "NaN or infinite values" for cube in test}


@pytest.mark.parametrize(("name", "folder"), [("train.py", "leaves"), ("probe.py", "leaves_probe")])
def test_a_copys_runs_have_the_copys_name(monkeypatch, name, folder):
    script, named = load_script(f"hyperspectral/{name}"), []

    def stop(args, project):
        named.append(project)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "__file__", f"/elsewhere/leaves/{name}")
    monkeypatch.setattr(script, "Run", stop)
    with pytest.raises(KeyboardInterrupt):
        script.main(["--csv_file", "a.csv", *(["--checkpoint", "best"] if name == "probe.py" else [])])
    assert named == [folder]


def test_statistics_of_other_data_are_refused(train, demo, spoilt, tmp_path):
    table, files = spoilt
    file = next(iter(files.values()))
    write_cube(file, read_cube(file) * 1.01)
    statistics = demo.parent / "dataset_stats.json"
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", "--csv_file", table, "--stats_file", statistics)
    assert str(caught.value).startswith(f"{statistics} is of other data: 1 of 24 cubes differ; make it by: python ")
    assert "\n" not in str(caught.value)


def test_tables_that_cannot_be_meant_are_one_line(train, spoilt, tmp_path):
    table, _ = spoilt
    good = read_csv(table)
    for change, text in (
        (lambda row: {name: cell for name, cell in row.items() if name != "hs_file"}, "hs_file"),
        (lambda row: row | {"patient": "P1", "split": row["split"]}, "P1 for example"),
        (lambda row: row | {"split": "train"}, "no valid cube that can be used"),
        (lambda row: row | {"hs_file": "elsewhere/" + row["hs_file"]}, "names no file that exists"),
    ):
        write_csv(table, [change(row) for row in good])
        with pytest.raises(UserError) as caught:
            train(tmp_path / "run", "--csv_file", table)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def evaluated(trained, demo, tmp_path_factory):
    """The test split, evaluated as a user would."""
    folder = tmp_path_factory.mktemp("evaluated") / "results"
    done = run(EVALUATE, "--checkpoint", trained / "best", "--csv_file", demo, "--output", folder, "--bootstrap", 100,
               "--mask_seeds", 2, "--nb_to_plot", 2, "--num_workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def evaluate(trained, demo, tmp_path, monkeypatch):
    """Evaluates in this process, without pictures: `evaluate(*flags)` gives (folder, the cubes to be shown)."""
    script, drawn = load_script(EVALUATE), []
    monkeypatch.setattr(script, "write_figures", lambda folder, shown, *_: drawn.append(shown) or [])

    def evaluate_quickly(*flags):
        folder = tmp_path / "results"
        common = [
            "--checkpoint",
            trained,
            "--csv_file",
            demo,
            "--output",
            folder,
            "--bootstrap",
            20,
            "--num_workers",
            0,
        ]
        try:
            script.main([str(flag) for flag in (*common, *flags)])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return folder, drawn[-1]

    return evaluate_quickly


def test_evaluation_names_data_methods_and_intervals(evaluated, demo):
    metrics = read_json(evaluated / "metrics.json")
    assert metrics["data"] == {
        "csv_file": str(demo), "split": "test", "cubes": 6, "patients": 4, "masks_a_cube": 2, "mask_ratio": 0.8,
    }  # fmt: skip
    assert list(metrics["methods"]) == METHODS
    for method, values in metrics["methods"].items():
        assert set(values) == {f"{scope}_{name}" for scope in ("masked", "all") for name in METRICS}
        for name, interval in values.items():
            assert interval["low"] <= interval["estimate"] <= interval["high"], (method, name)
            assert interval["low"] < interval["high"]
        curve = metrics["masked_mse_by_wavelength"][method]
        assert np.mean(curve) == pytest.approx(values["masked_mse"]["estimate"], rel=0.2)
    assert metrics["wavelengths"] == list(DEFAULT_WAVELENGTHS)
    assert metrics["unit"] == "reflectance"
    assert metrics["environment"]["processes"] == 1
    assert read_json(evaluated / "data_report.json")["cases"] == {"test": 6}


def test_predictions_have_a_row_for_every_cube(evaluated, demo):
    table, cubes = read_csv(evaluated / "predictions.csv"), read_cubes(demo)["test"]
    for name in ("ID", "patient", "label"):
        assert [row[name] for row in table] == [getattr(cube, name.lower()) for cube in cubes]
    metrics = read_json(evaluated / "metrics.json")
    for method in METHODS:
        for name, interval in metrics["methods"][method].items():
            column = [float(row[f"{method.replace(' ', '_')}/{name}"]) for row in table]
            assert np.mean(column) == pytest.approx(interval["estimate"], rel=1e-4)


@torch.no_grad()
def test_the_errors_are_those_of_the_stored_model(evaluated, trained, demo):
    """Of one cube, from its file on: both masks, hidden foreground voxels."""
    model, config = MAESpectral.from_folder(trained)
    cube = read_cubes(demo)["test"][3]
    values, errors = torch.from_numpy(read_cube(cube.file)), []
    inside = torch.from_numpy(foreground(values.numpy()))
    for seed in (0, 1):
        item = CubeDataset(read_cubes(demo)["test"], H5_KEY, model.n_noise, mask_seed=seed)[3]
        result, hidden = model.assemble(model(values[None], item["noise"][None]), values[None])
        counted = hidden[0] & inside
        mean = torch.tensor(config["statistics"]["mean"]).view(-1, 1, 1).expand_as(values)
        errors.append([float((x - values)[counted].square().mean()) for x in (result[0], mean)])
    row = read_csv(evaluated / "predictions.csv")[3]
    expected = np.mean(errors, axis=0)
    found = [float(row[f"{method}/masked_mse"]) for method in ("model", "mean_spectrum")]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_report_is_one_file(evaluated):
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    names = {path.name for path in (evaluated / "figures").iterdir()}
    assert {"reconstructions.png", "error_by_wavelength.png"} < names
    assert len(names) == 4
    assert page.count("data:image/") == 4
    for text in ("95 % interval", "80 % of the tokens are hidden", "interpolation", "mean spectrum", "Worst cubes"):
        assert text in page
    assert "Not a medical device" in page
    assert "norm_pix_loss" not in page
    for name in names:
        with Image.open(evaluated / "figures" / name) as figure:
            assert np.asarray(figure.convert("L")).std() > 10


def test_another_mask_ratio(evaluate, evaluated):
    folder, shown = evaluate("--mask_ratio", 0.5, "--mask_seeds", 1)
    metrics = read_json(folder / "metrics.json")
    assert metrics["data"]["mask_ratio"] == 0.5
    assert [case.hidden.mean() for case in shown] == [0.5] * 4
    errors = metrics["methods"]["mean spectrum"]
    assert errors["all_mse"]["estimate"] == pytest.approx(0.5 * errors["masked_mse"]["estimate"], rel=0.2)
    harder = read_json(evaluated / "metrics.json")["methods"]["interpolation"]
    assert metrics["methods"]["interpolation"]["masked_mse"]["estimate"] < harder["masked_mse"]["estimate"]
    assert "50 % of the tokens are hidden" in (folder / "report.html").read_text(encoding="utf-8")


def test_every_cube_is_shown_once_under_its_first_mask(evaluate, trained, demo):
    """Also where the split has fewer cubes than --nb_to_plot."""
    _, shown = evaluate("--split", "valid", "--mask_seeds", 2, "--nb_to_plot", 4)
    cubes = read_cubes(demo)["valid"]
    assert [case.name for case in shown] == [cube.id for cube in cubes]


def test_bad_cubes_are_left_out_of_the_evaluation(evaluate, spoilt):
    table, _ = spoilt
    cubes = read_cubes(table)["test"]
    values = read_cube(cubes[2].file)
    write_cube(cubes[2].file, np.where(values > 0.2, np.inf, values))
    write_cube(cubes[4].file, values[:, :20, :20])
    folder, _ = evaluate("--csv_file", table, "--mask_seeds", 1)
    assert read_json(folder / "metrics.json")["data"]["cubes"] == 4
    assert [row["ID"] for row in read_csv(folder / "predictions.csv")] == [cubes[i].id for i in (0, 1, 3, 5)]
    assert problems(folder) == {cubes[2].id: "NaN or infinite values", cubes[4].id: "other size"}


def test_evaluation_refuses_what_does_not_fit(evaluate, spoilt, tmp_path):
    save_model(tmp_path / "other", torch.nn.Linear(1, 1), {"kind": "other"})
    table, _ = spoilt
    write_csv(table, [row for row in read_csv(table) if row["split"] != "test"])
    for flags, text in (
        (["--checkpoint", tmp_path / "other"], "holds a model of kind 'other', not 'masked autoencoder'"),
        (["--checkpoint", tmp_path], f"{tmp_path} is not a model folder"),
        (["--csv_file", table], "no test cube that can be used"),
        (["--mask_ratio", 1], "--mask_ratio"),
        (["--h5_key", "/Other"], "no data set /Other"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate(*flags)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_scripts_with_one_line(launch, tmp_path, trained):
    done = launch(tmp_path / "run", "--h5_key", "/Other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    done = run(EVALUATE, "--checkpoint", trained, "--csv_file", "nowhere.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere.csv" in done.stderr
