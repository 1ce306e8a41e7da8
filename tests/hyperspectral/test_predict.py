"""predict.py as users run it: features and reconstructions of files, folders and tables, whatever is among them."""

import csv

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from conftest import load_script
from core.checkpoints import load_model_folder, save_model
from core.errors import UserError
from files import read_csv, read_json, write_cube
from hsi.files import H5_KEY, foreground, read_cube, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.probe import KIND, ProbeModel, read_mask
from launch import run

PREDICT = "hyperspectral/predict.py"
RECONSTRUCTION = "_reconstruction.h5"


def read_reconstruction(folder, name, key=H5_KEY):
    """(cube, hidden) of a reconstruction."""
    file = folder / (name + RECONSTRUCTION)
    with h5py.File(file, "r") as store:
        hidden = store["hidden"][...]
    return read_cube(file, key), hidden


@torch.no_grad()
def encode(trained, cube, wavelengths=None):
    """(pooled (D,), grid (S, h, w, D)), by a model made for this cube alone."""
    model, _ = MAESpectral.from_folder(trained, cube.shape[1:], wavelengths)
    features = model.encode(torch.from_numpy(cube)[None])
    return features.pooled[0].numpy(), features.grid[0].numpy()


def assert_features(folder, row, trained, cube, wavelengths=None, name=None):
    """The row of features.csv and ID.safetensors are what the encoder makes of the cube."""
    pooled, grid = encode(trained, cube, wavelengths)
    stored = load_file(folder / f"{name or row['ID']}.safetensors")
    np.testing.assert_allclose(stored["pooled"], pooled, atol=1e-5)
    np.testing.assert_allclose(stored["grid"], grid, atol=1e-5)
    columns = [float(row[f"f{i}"]) for i in range(len(pooled))]
    np.testing.assert_array_equal(np.float32(columns), stored["pooled"])
    assert list(row) == ["ID", "file", "label", *(f"f{i}" for i in range(len(pooled)))]


@pytest.fixture
def predict(trained, tmp_path, monkeypatch):
    """Predicts in this process, without pictures: `predict(*flags, output=…)` gives the folder of results."""
    script = load_script(PREDICT)
    monkeypatch.setattr(script, "write_figures", lambda *_: [])

    def predict_quickly(*flags, output="results"):
        folder = tmp_path / output
        common = ["--checkpoint", trained] if "--checkpoint" not in flags else []
        script.main([str(flag) for flag in (*common, "--output", folder, *flags)])
        return folder

    return predict_quickly


@pytest.fixture(scope="module")
def cubes(demo):
    """Some cubes (30, 40, 40) with their files."""
    return [(cube.file, read_cube(cube.file)) for cube in read_cubes(demo)["test"]]


@pytest.fixture
def odd_table(demo, tmp_path):
    """A table whose IDs no file can have as its name, and whose labels need quotes."""
    files = [cube.file for cube in read_cubes(demo)["test"]]
    names = ["../P1/left", '.._P1"left', "Grün 3", "[4]"]
    labels = ["healthy, or nearly", 'a "soft" drusen', "Äderhaut – 脉络膜", "two\nlines"]
    with open(tmp_path / "odd.csv", "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerows([["ID", "hs_file", "label"], *zip(names, files, labels, strict=False)])
    return tmp_path / "odd.csv", dict(zip(names, labels, strict=True))


# ------------------------------------------------------------------------------------------------ features


def test_features_of_a_table_are_those_of_the_encoder(predict, trained, demo):
    folder = predict("--csv_file", demo)
    table, cubes = read_csv(folder / "features.csv"), [cube for part in read_cubes(demo).values() for cube in part]
    assert len(table) == 24
    for row, cube in zip(table, cubes, strict=True):
        assert (row["ID"], row["file"], row["label"]) == (cube.id, str(cube.file), cube.label)
        assert_features(folder, row, trained, read_cube(cube.file))
    grid = load_file(folder / f"{cubes[0].id}.safetensors")["grid"]
    assert grid.shape == (6, 4, 4, 32)
    assert read_json(folder / "data_report.json") == {"cases": {"cubes": 24}, "counts": [], "problems": []}
    assert len(list(folder.iterdir())) == 24 + 2  # and features.csv, data_report.json


def test_files_and_folders_give_what_the_table_gives(predict, demo, cubes):
    """In the order in which they are named, folders sorted."""
    table = {row["ID"]: row for row in read_csv(predict("--csv_file", demo, output="table") / "features.csv")}
    found = read_csv(predict("--input", cubes[3][0], demo.parent, cubes[0][0]) / "features.csv")
    assert len(found) == 24  # the files are in the folder, too
    assert [row["ID"] for row in found][:2] == [cubes[3][0].stem, min(table)]
    for row in found:
        assert row == table[row["ID"]] | {"label": ""}


def test_files_of_one_name_get_ids_of_their_own(predict, trained, cubes, tmp_path):
    places = ("P1/left.h5", "P1/left_2.h5", "P2/left.h5", "P3/LEFT.hdf5")
    values = {write_cube(tmp_path / "in" / place, cube): cube for place, (_, cube) in zip(places, cubes, strict=False)}
    folder = predict("--input", tmp_path / "in")
    table = read_csv(folder / "features.csv")
    assert [row["ID"] for row in table] == ["left", "left_2", "left_3", "LEFT_4"]
    assert [row["file"] for row in table] == list(map(str, values))
    for row, cube in zip(table, values.values(), strict=True):
        assert_features(folder, row, trained, cube)
    assert len(list(folder.glob("*.safetensors"))) == 4


def test_results_are_not_taken_for_cubes(predict, cubes, tmp_path):
    """--output within --input, for a second time."""
    write_cube(tmp_path / "cube.h5", cubes[0][1])
    for _ in range(2):
        folder = predict("--input", tmp_path, "--reconstruct")
        assert [row["ID"] for row in read_csv(folder / "features.csv")] == ["cube"]
        assert (folder / f"cube{RECONSTRUCTION}").is_file()
    named = predict("--input", folder / f"cube{RECONSTRUCTION}", output="named")  # unless a user asks for it
    assert [row["ID"] for row in read_csv(named / "features.csv")] == ["cube_reconstruction"]


def test_cubes_may_differ_in_size(predict, trained, cubes, tmp_path):
    sizes = {"a": np.s_[:], "b": np.s_[:, :20, :20], "c": np.s_[:, 5:35], "d": np.s_[:, :, 10:20], "e": np.s_[:]}
    values = {name: cubes[i][1][place] for i, (name, place) in enumerate(sizes.items())}
    for name, cube in values.items():
        write_cube(tmp_path / "in" / f"{name}.h5", cube)
    folder = predict("--input", tmp_path / "in", "--reconstruct")
    table = read_csv(folder / "features.csv")
    assert [row["ID"] for row in table] == list(sizes)
    for row, cube in zip(table, values.values(), strict=True):
        assert_features(folder, row, trained, cube)
        result, hidden = read_reconstruction(folder, row["ID"])
        assert result.shape == hidden.shape == cube.shape
        assert np.isfinite(result).all()
    assert load_file(folder / "c.safetensors")["grid"].shape == (6, 3, 4, 32)


def test_other_bands(predict, trained, cubes, tmp_path):
    """Positions and statistics are those of the wavelengths."""
    wavelengths, cube = [float(nm) for nm in range(500, 600, 10)], cubes[0][1][5:15]
    file = write_cube(tmp_path / "ten.h5", cube)
    folder = predict("--input", file, "--wavelengths", "500:590:10", "--reconstruct")
    (row,) = read_csv(folder / "features.csv")
    assert_features(folder, row, trained, cube, wavelengths)
    assert load_file(folder / "ten.safetensors")["grid"].shape == (2, 4, 4, 32)
    assert read_reconstruction(folder, "ten")[0].shape == (10, 40, 40)


def test_compressed_files_other_types_and_keys(predict, trained, cubes, tmp_path):
    cube = cubes[0][1]
    write_cube(tmp_path / "in" / "a.h5", cube, "/Other", compression="gzip", chunks=(5, 20, 20))
    write_cube(tmp_path / "in" / "b.mat", cube.astype(np.float64), "/Other")
    folder = predict("--input", tmp_path / "in", "--h5_key", "/Other", "--reconstruct")
    for row in read_csv(folder / "features.csv"):
        assert_features(folder, row, trained, cube)
        assert read_reconstruction(folder, row["ID"], "/Other")[0].shape == cube.shape
    assert read_json(folder / "data_report.json")["problems"] == []


def test_ids_and_labels_are_those_of_the_table(predict, trained, odd_table, tmp_path):
    """Also where no file can have the ID as its name, and where a label needs quotes."""
    table, labels = odd_table
    folder = predict("--csv_file", table, "--reconstruct", output="deep/results")
    rows = read_csv(folder / "features.csv")
    assert {row["ID"]: row["label"] for row in rows} == labels
    files = {"../P1/left": ".._P1_left", '.._P1"left': ".._P1_left_2"}
    for row in rows:
        assert_features(folder, row, trained, read_cube(row["file"]), name=files.get(row["ID"]))
    assert len(list(folder.iterdir())) == 2 * 4 + 2
    assert list(folder.parent.iterdir()) == [folder]  # nothing escapes


# ------------------------------------------------------------------------------------------------ what cannot be used


def test_what_cannot_be_used_is_listed_and_the_rest_is_done(predict, trained, cubes, tmp_path):
    folder, cube = tmp_path / "in", cubes[0][1]
    nan, spotless = cube.copy(), np.full_like(cube, 0.5)
    nan[3, 4, 5] = np.nan
    write_cube(folder / "a_good.h5", cube)
    write_cube(folder / "b_nan.h5", nan)
    write_cube(folder / "c_constant.h5", spotless)
    write_cube(folder / "d_bands.h5", cube[:25])
    write_cube(folder / "e_last.h5", cube.transpose(1, 2, 0))
    write_cube(folder / "f_key.h5", cube, "/Other")
    write_cube(folder / "g_size.h5", cube[:, :35])
    write_cube(folder / "h_flat.h5", cube[0])
    write_cube(folder / "i_black.h5", cube - 5)
    write_cube(folder / "j_huge.h5", cube * 1e37)
    write_cube(folder / "k_truncated.h5", cube)
    (folder / "k_truncated.h5").write_bytes((folder / "a_good.h5").read_bytes()[:50_000])
    (folder / "l_text.h5").write_text("no HDF5")
    write_cube(folder / "z_good.h5", cubes[1][1])
    results = predict("--input", folder, "--reconstruct")
    table, report = read_csv(results / "features.csv"), read_json(results / "data_report.json")
    assert [row["ID"] for row in table] == ["a_good", "z_good"]
    for row, (_, values) in zip(table, cubes, strict=False):
        assert_features(results, row, trained, values)
    assert {path.stem.partition("_rec")[0] for path in results.glob("?_*")} == {"a_good", "z_good"}
    assert report["cases"] == {"cubes": 2}
    skipped = {p["where"].split(",")[0]: p for p in report["problems"] if p["action"] == "case skipped"}
    damaged = "no HDF5 file, or a damaged one"
    assert {name: problem["reason"] for name, problem in skipped.items()} == {
        "b_nan": "NaN or infinite values",
        "c_constant": "constant",
        "d_bands": "other number of bands",
        "e_last": "bands last",
        "f_key": f"no data set {H5_KEY}",
        "g_size": "size does not fit",
        "h_flat": "no cube of bands, rows and columns",
        "i_black": "no foreground",
        "j_huge": "features are not finite",
        "k_truncated": damaged,
        "l_text": damaged,
    }
    assert "patches of 10 px do not divide 35x40 px; cut or pad" in skipped["g_size"]["detail"]
    assert "/Other (30, 40, 40)" in skipped["f_key"]["detail"]
    assert str(folder / "b_nan.h5") in skipped["b_nan"]["where"]


def test_values_of_another_unit_are_told(predict, cubes, tmp_path):
    """Percent for reflectance: features are made, but nobody should take them for good unseen."""
    for name, factor in {"dim": 0.5, "percent": 100, "thousandths": 0.001}.items():
        write_cube(tmp_path / "in" / f"{name}.h5", np.float32(factor) * cubes[0][1])
    folder = predict("--input", tmp_path / "in")
    problems = read_json(folder / "data_report.json")["problems"]
    assert [problem["where"].split(",")[0] for problem in problems] == ["percent", "thousandths"]
    for problem in problems:
        assert (problem["reason"], problem["action"]) == ("values of another size than in training", "kept")
        assert "reflectance; is it the same unit?" in problem["detail"]
    assert len(read_csv(folder / "features.csv")) == 3


def test_a_call_without_a_usable_cube_is_one_line(predict, cubes, tmp_path):
    write_cube(tmp_path / "in" / "a.h5", cubes[0][1][:, :35])
    write_cube(tmp_path / "in" / "b.h5", cubes[0][1][:25])
    with pytest.raises(UserError) as caught:
        predict("--input", tmp_path / "in")
    assert str(caught.value).startswith(f"none of 2 cubes could be used: {tmp_path / 'in' / 'a.h5'}: size does not fit")
    assert "\n" not in str(caught.value)
    assert read_json(tmp_path / "results" / "data_report.json")["cases"] == {"cubes": 0}
    assert not (tmp_path / "results" / "features.csv").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--input nowhere.h5", "--input nowhere.h5: no such file or folder"),
        ("--input EMPTY", "no HDF5 file (.h5, .hdf5, .hdf, .he5, .mat) in EMPTY"),
        ("--csv_file nowhere.csv", "nowhere.csv: no such file"),
        ("--input CUBE --checkpoint EMPTY", "EMPTY is not a model folder"),
        ("--input CUBE --mask_ratio 1", "--mask_ratio must be in [0, 1)"),
        ("--input CUBE --mask_ratio 0 --reconstruct", "--mask_ratio 0 hides nothing"),
        ("--input CUBE --wavelengths 500:530:10", "patches of 5 bands do not divide 4"),
        ("--input CUBE --h5_key /Other", f"no data set /Other: it holds {H5_KEY} (30, 40, 40)"),
    ],
)
def test_mistakes_are_one_line(predict, cubes, tmp_path, monkeypatch, flags, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "EMPTY" / "notes.txt").touch()
    with pytest.raises(UserError) as caught:
        predict(*flags.replace("CUBE", str(cubes[0][0])).split())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", ["", "--input a.h5 --csv_file b.csv"])
def test_cubes_are_named_in_one_way(predict, flags, capsys):
    with pytest.raises(SystemExit):
        predict(*flags.split())
    assert "--input" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ reconstructions


def test_reconstructions_are_those_of_the_model(predict, trained, demo):
    """Visible voxels are the cube's own; hidden ones are closer to it than zero is."""
    folder = predict("--csv_file", demo, "--reconstruct")
    model, _ = MAESpectral.from_folder(trained)
    masks = []
    for row in read_csv(folder / "features.csv"):
        cube, (result, hidden) = read_cube(row["file"]), read_reconstruction(folder, row["ID"])
        assert (result.dtype, hidden.dtype, hidden.shape) == (np.float32, bool, cube.shape)
        np.testing.assert_array_equal(result[~hidden], cube[~hidden])
        tokens = model.patchify(torch.from_numpy(hidden)[None])[0]
        assert torch.equal(tokens.any(dim=1), tokens.all(dim=1))  # whole tokens
        assert tokens[:, 0].sum() == 96 - round(0.2 * 96)
        counted = hidden & foreground(cube)
        assert ((result - cube)[counted] ** 2).mean() < 0.3 * (cube[counted] ** 2).mean()
        masks.append(hidden)
    assert len({mask.tobytes() for mask in masks}) == 24


def test_a_reconstruction_does_not_depend_on_the_rest_of_the_call(predict, odd_table, cubes):
    """Nor on the ID, but on the file's name and --seed."""
    first, third = cubes[0][0], cubes[2][0]
    expected = read_reconstruction(predict("--csv_file", odd_table[0], "--reconstruct"), "Grün 3")
    for files in ([third], [first, third]):
        again = read_reconstruction(predict("--input", *files, "--reconstruct", output="again"), third.stem)
        for ours, theirs in zip(again, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other = predict("--input", third, "--reconstruct", "--seed", 1, output="seed")
    assert (read_reconstruction(other, third.stem)[1] != expected[1]).any()


def test_another_mask_ratio_changes_no_features(predict, trained, cubes):
    folder = predict("--input", cubes[0][0], "--reconstruct", "--mask_ratio", 0.5)
    assert read_reconstruction(folder, cubes[0][0].stem)[1].mean() == 0.5
    assert_features(folder, read_csv(folder / "features.csv")[0], trained, cubes[0][1])


def test_norm_pix_loss_is_told(predict, trained, cubes, tmp_path, capsys):
    """Such a model was given the mean and standard deviation of what it had to find."""
    state, config = load_model_folder(trained)
    model = MAESpectral(**config["model"])
    model.load_state_dict(state)
    save_model(tmp_path / "model", model, config | {"model": config["model"] | {"norm_pix_loss": True}})
    predict("--input", cubes[0][0], "--reconstruct", "--checkpoint", tmp_path / "model")
    told = "norm_pix_loss: mean and SD of hidden tokens are the true ones"
    assert told in capsys.readouterr().out
    predict("--input", cubes[0][0], "--reconstruct")
    assert told not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ probes


@pytest.fixture
def probe(trained, tmp_path):
    """Stores a head of random weights on the trained encoder: `probe(task)` gives its folder."""

    def store(task, **taught):
        taught = taught or {"a": 5, "b": 5, "c": 5}
        torch.manual_seed(1)
        mae, config = MAESpectral.from_folder(trained)
        model = ProbeModel(mae, 3, task == "segment")
        torch.nn.init.normal_((model.head.mix[-1] if task == "segment" else model.head.linear).weight)
        config |= {"kind": KIND, "task": task, "classes": list(taught), "taught": {"classes": taught}}
        save_model(tmp_path / task, model, config)
        return tmp_path / task

    return store


def test_probabilities_are_those_of_the_probe(predict, probe, cubes):
    folder = predict("--input", *(file for file, _ in cubes), "--probe", probe("classify"))
    model, _ = ProbeModel.from_folder(probe("classify"))
    rows = read_csv(folder / "predictions.csv")
    assert [row["ID"] for row in rows] == [file.stem for file, _ in cubes]
    assert len({row["p_a"] for row in rows}) == len(rows)
    for row, (_, cube) in zip(rows, cubes, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(cube)[None])[0].softmax(dim=0).numpy()
        found = [float(row[f"p_{name}"]) for name in "abc"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert row["predicted"] == "abc"[int(expected.argmax())]


def test_what_no_cube_has_taught_is_not_said(predict, probe, cubes):
    """The answer of all three classes may be the one without a training case; it is neither given nor listed."""
    files, every = [file for file, _ in cubes], predict("--input", *(f for f, _ in cubes), "--probe", probe("classify"))
    said = {row["predicted"] for row in read_csv(every / "predictions.csv")}
    taught = {name: 0 if name == min(said) else 5 for name in "abc"}
    folder = predict("--input", *files, "--probe", probe("classify", **taught), output="fewer")
    rest = [name for name in "abc" if taught[name]]
    for row in read_csv(folder / "predictions.csv"):
        assert list(row) == ["ID", "file", "predicted", *(f"p_{name}" for name in rest)]
        assert row["predicted"] in rest
        assert sum(float(row[f"p_{name}"]) for name in rest) == pytest.approx(1)
    predict("--input", files[0], "--probe", probe("segment"), output="all")
    common = int(np.bincount(read_mask(every.parent / "all" / f"{files[0].stem}_mask.png", (40, 40)).ravel()).argmax())
    taught = {name: 5 * (k != common) for k, name in enumerate("abc")}
    predict("--input", files[0], "--probe", probe("segment", **taught), output="two")
    mask = read_mask(every.parent / "two" / f"{files[0].stem}_mask.png", (40, 40))
    assert common not in mask


def test_masks_are_those_of_the_probe_for_any_size(predict, probe, cubes, tmp_path):
    wide = write_cube(tmp_path / "wide.h5", np.concatenate([cubes[0][1]] * 2, axis=2)[:, :30])
    folder = predict("--input", cubes[0][0], wide, "--probe", probe("segment"))
    assert not (folder / "predictions.csv").exists()
    for file, cube in ((cubes[0][0], cubes[0][1]), (wide, read_cube(wide))):
        model, _ = ProbeModel.from_folder(probe("segment"), cube.shape[1:])
        with torch.no_grad():
            expected = model(torch.from_numpy(cube)[None])[0].argmax(dim=0).numpy()
        mask = read_mask(folder / f"{file.stem}_mask.png", cube.shape[1:])
        np.testing.assert_array_equal(mask, expected)
        assert len(np.unique(mask)) > 1


def test_a_probe_of_other_bands_or_another_model_is_refused(predict, probe, trained, cubes):
    with pytest.raises(UserError, match="other wavelengths"):
        predict("--input", cubes[0][0], "--probe", probe("classify"), "--wavelengths", "500:645:5")
    with pytest.raises(UserError, match="holds a model of kind 'masked autoencoder', not 'spectral probe'"):
        predict("--input", cubes[0][0], "--probe", trained / "best")


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_leaves_features_reconstructions_and_pictures(trained, demo, tmp_path):
    cube = read_cubes(demo)["test"][0]
    (tmp_path / "broken.h5").touch()
    done = run(PREDICT, "--checkpoint", trained / "best", "--input", cube.file, tmp_path / "broken.h5",
               "--reconstruct", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 2 cubes done, results in features" in done.stdout
    assert "1 problems, all listed in features/data_report.json" in done.stdout
    folder = tmp_path / "features"
    figures, written = folder / f"{cube.id}_figures", {"features.csv", "data_report.json"}
    assert {path.name for path in folder.iterdir()} == written | {
        f"{cube.id}.safetensors", f"{cube.id}{RECONSTRUCTION}", figures.name,
    }  # fmt: skip
    names = {picture.name for picture in figures.iterdir()}
    assert names == {"reconstructions.png", "error_by_wavelength.png", f"spectra_{cube.id}.png"}
    for name in names:
        with Image.open(figures / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_a_mistake_ends_the_command_line_with_one_line(trained, tmp_path):
    done = run(PREDICT, "--checkpoint", trained, "--input", "nowhere.h5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --input nowhere.h5: no such file or folder\n")
    assert list(tmp_path.iterdir()) == []
