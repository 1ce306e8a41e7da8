"""predict.py of the teacher, on random models and pictures of coloured blobs: codes, reconstructions, search."""

import functools
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.numpy import load_file, save_file

from conftest import load_script
from core.checkpoints import save_model
from core.errors import UserError
from ear.crops import EarCrops, read_manifest
from ear.sam_vae import EarVAE
from files import read_csv, read_json, write_csv
from launch import run

PREDICT = "ear_teacher/predict.py"
DATA = {"crop": True, "margin": 0.1, "mirror_left": True}
SIZE, LATENT = 32, 8

stored = functools.cache(EarVAE.from_folder)  # half a second each time: random weights, then those of the file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of random weights and one shape. Not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        model = EarVAE("tiny", sam_image_size=64, latent_dim=LATENT, image_size=SIZE, freeze_layers=0)
        config = {"kind": "ear VAE", "taught": {}, "model": model.arguments, "data": DATA}
        save_model(folder / name, model, config)
    return folder


@pytest.fixture
def predict(models, tmp_path, monkeypatch):
    """`predict(*flags, output="results")` gives the folder of the results, without neighbours.png: what would be drawn
    is in `predict.grids`."""
    script, grids = load_script(PREDICT), []
    monkeypatch.setattr(script.EarVAE, "from_folder", stored)
    monkeypatch.setattr(script.figures, "save", lambda *_: None)
    monkeypatch.setattr(script, "picture_grid", lambda grid, titles: grids.append((grid, titles)))

    def predict_quickly(*flags, output="results"):
        folder = tmp_path / output
        common = ["--checkpoint", models / "one", "--output", folder, "--num_workers", 0]
        try:
            script.main([str(flag) for flag in (*common, *flags)])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return folder

    predict_quickly.grids = grids
    return predict_quickly


@pytest.fixture
def spoilt(pictures, tmp_path):
    """A copy of the pictures that a test may spoil."""
    return shutil.copytree(pictures, tmp_path / "spoilt")


@torch.no_grad()
def expected(models, ears):
    """mu, logvar (N, D) and crops (N, S, S, 3), one ear at a time."""
    data, model = EarCrops(ears, SIZE, **DATA), EarVAE.from_pretrained(models / "one")
    codes = [model.encode(data[i]["image"][None]) for i in range(len(data))]
    mu, logvar = (torch.cat(column).numpy() for column in zip(*codes, strict=True))
    return mu, logvar, np.stack([data.pixels(i) for i in range(len(data))])


# ------------------------------------------------------------------------------------------------ codes


def test_codes_are_those_of_the_model_row_by_row(predict, models, pictures):
    """Boxes are cut out and left ears mirrored as in training."""
    folder = predict("--input", pictures / "train.csv", "--batch_size", 5)
    ears, codes = read_manifest(pictures / "train.csv"), load_file(folder / "codes.safetensors")
    mu, logvar, _ = expected(models, ears)
    assert set(codes) == {"mu", "logvar"}
    assert codes["mu"].dtype == np.float32
    np.testing.assert_allclose(codes["mu"], mu, atol=1e-4)
    np.testing.assert_allclose(codes["logvar"], logvar, atol=1e-4)
    rows = read_csv(folder / "codes.csv")
    assert [row["id"] for row in rows] == [ear.id for ear in ears] == [f"train_{i}" for i in range(12)]
    for row, ear in zip(rows, ears, strict=True):
        assert (row["file"], row["subject"], row["side"]) == (str(ear.image.resolve()), ear.subject, ear.side)
        assert tuple(float(row[name]) for name in ("x0", "y0", "x1", "y1")) == ear.box
    assert read_json(folder / "data_report.json")["cases"] == {"ears": 12}
    assert not (folder / "reconstructions").exists()


def test_pictures_folders_and_manifests_in_one_call(predict, models, pictures, tmp_path):
    """In the order in which they are named; the same picture and box once."""
    (tmp_path / "two").mkdir()
    for name in ("train_1.png", "train_0.png"):
        shutil.copy(pictures / name, tmp_path / "two")
    folder = predict("--input", pictures / "train_2.png", tmp_path / "two", pictures / "val.csv",
                     tmp_path / "two" / ".." / "two" / "train_1.png", pictures / "train_2.png")  # fmt: skip
    rows = read_csv(folder / "codes.csv")
    assert [row["id"] for row in rows] == ["train_2", "train_0", "train_1", *(f"val_{i}" for i in range(5))]
    assert [bool(row["x0"]) for row in rows] == [False] * 3 + [True] * 5
    codes = load_file(folder / "codes.safetensors")["mu"]
    np.testing.assert_allclose(codes[1:3], expected(models, read_manifest(tmp_path / "two"))[0], atol=1e-4)
    np.testing.assert_allclose(codes[3:], expected(models, read_manifest(pictures / "val.csv"))[0], atol=1e-4)


@pytest.mark.parametrize(("name", "side"), [("ear_L", "left"), ("ear-right", "right"), ("earl", "")])
def test_a_picture_has_one_code_alone_and_in_its_folder(predict, pictures, tmp_path, name, side):
    """Left ears are mirrored, and the name says which are."""
    file = tmp_path / "folder" / f"{name}.png"
    file.parent.mkdir()
    shutil.copy(pictures / "train_0.png", file)
    tables = []
    for path in (file, file.parent):
        folder = predict("--input", path, output=f"of_{path.name}")
        (row,) = read_csv(folder / "codes.csv")
        assert (row["id"], row["side"]) == (name, side)
        tables.append(load_file(folder / "codes.safetensors")["mu"])
    np.testing.assert_array_equal(*tables)


@pytest.fixture
def namesakes(pictures, tmp_path):
    """ear.png of two folders, and of a third one in capitals."""
    files = [tmp_path / folder / name for folder, name in (("a", "ear.png"), ("b", "ear.png"), ("c", "EAR.PNG"))]
    for number, file in enumerate(files):
        file.parent.mkdir()
        shutil.copy(pictures / f"train_{number}.png", file)
    return files


def test_namesakes_keep_apart(predict, models, namesakes):
    """In codes.csv, as files, and in the picture of a search."""
    folder = predict("--input", *namesakes, "--reconstruct")
    rows = read_csv(folder / "codes.csv")
    assert [row["id"] for row in rows] == ["ear", "ear_2", "EAR"]
    assert [row["file"] for row in rows] == [str(file) for file in namesakes]
    made = sorted(path.name for path in (folder / "reconstructions").iterdir())
    assert len(made) == 3 == len({name.casefold() for name in made})
    predict("--search", *namesakes, "--index", folder, output="found")
    ((grid, _),) = predict.grids
    assert list(grid) == ["ear", "ear_2", "EAR"]


@torch.no_grad()
def test_reconstructions_are_crop_and_picture_side_by_side(predict, models, pictures):
    folder = predict("--input", pictures / "val.csv", "--reconstruct") / "reconstructions"
    assert {path.name for path in folder.iterdir()} == {f"val_{i}.png" for i in range(5)}
    mu, _, crops = expected(models, read_manifest(pictures / "val.csv"))
    made = EarVAE.from_pretrained(models / "one").decode(torch.from_numpy(mu))
    made = ((made + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    for number in range(5):
        with Image.open(folder / f"val_{number}.png") as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (SIZE, 2 * SIZE, 3)
        np.testing.assert_array_equal(pixels[:, :SIZE], crops[number])
        np.testing.assert_allclose(pixels[:, SIZE:], made[number], atol=0.6)


def test_grey_cmyk_and_turned_pictures(predict, models, pictures, tmp_path):
    """A picture in grey is coded as the colours that it stands for; one turned by EXIF as it is shown."""
    with Image.open(pictures / "train_0.png") as picture:
        grey = picture.convert("L")
        picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
        exif = picture.getexif()
        exif[0x0112] = 6  # shown turned by 90° to the right
        picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    names = [tmp_path / name for name in ("grey.png", "rgb.png", "turned.png", "cmyk.jpg")]
    mu = load_file(predict("--input", *names, pictures / "train_0.png") / "codes.safetensors")["mu"]
    np.testing.assert_allclose(mu[0], mu[1], atol=1e-5)
    np.testing.assert_allclose(mu[2], mu[4], atol=1e-5)
    assert np.isfinite(mu).all()


# ------------------------------------------------------------------------------------------------ search


def test_pictures_and_their_codes_give_the_same_neighbours(predict, models, pictures):
    codes = predict("--input", pictures / "train.csv", output="codes")
    index = expected(models, read_manifest(pictures / "train.csv"))[0].astype(float)
    queries = expected(models, read_manifest(pictures / "val.csv"))[0]
    tables = {}
    for name, place in (("codes", codes), ("manifest", pictures / "train.csv")):
        folder = predict("--search", pictures / "val.csv", "--index", place, "--top", 4, output=f"by_{name}")
        tables[name] = read_csv(folder / "neighbours.csv")
        assert {path.name for path in folder.iterdir()} == {"neighbours.csv", "data_report.json"}  # drawn elsewhere
    for ours, theirs in zip(*tables.values(), strict=True):
        assert {**ours, "distance": ""} == {**theirs, "distance": ""}
        assert float(ours["distance"]) == pytest.approx(float(theirs["distance"]), abs=2e-3)
    distances = np.sqrt(((queries[:, None] - index[None]) ** 2).sum(axis=-1))
    rows = iter(tables["codes"])
    for number, far in enumerate(distances):
        for rank, place in enumerate(np.argsort(far)[:4], 1):
            row = next(rows)
            assert (row["query"], row["rank"], row["id"]) == (f"val_{number}", str(rank), f"train_{place}")
            assert row["subject"] == f"train{place // 2}"
            assert row["file"] == str(pictures / f"train_{place}.png")
            assert float(row["distance"]) == pytest.approx(far[place], abs=2e-3)
    assert next(rows, None) is None
    (by_codes, titles), (by_manifest, _) = predict.grids
    assert titles == ["query", "1", "2", "3", "4"]
    for name, shown in by_codes.items():
        np.testing.assert_array_equal(shown, by_manifest[name])


def test_a_query_that_is_in_the_index_finds_itself_first(predict, models, pictures):
    folder = predict("--search", pictures / "train.csv", "--index", pictures / "train.csv", "--top", 99)
    rows = read_csv(folder / "neighbours.csv")
    assert len(rows) == 12 * 12  # no more than there are
    for row in rows[::12]:
        assert (row["rank"], row["id"], float(row["distance"])) == ("1", row["query"], pytest.approx(0, abs=2e-3))
    assert (np.diff(np.reshape([float(row["distance"]) for row in rows], (12, 12))) >= 0).all()
    ((grid, _),) = predict.grids
    assert len(grid) == 10  # a picture with more rows is none
    crops = expected(models, read_manifest(pictures / "train.csv"))[2]
    for number, shown in enumerate(grid.values()):
        np.testing.assert_array_equal(shown[0], crops[number])
        np.testing.assert_array_equal(shown[1], crops[number])


def test_codes_outlive_their_pictures(predict, spoilt):
    """What is nearest is known without them; the picture of the search leaves their places grey."""
    codes = predict("--input", spoilt / "train.csv", output="codes")
    (spoilt / "train_4.png").unlink()
    folder = predict("--search", spoilt / "val_0.png", spoilt / "val_1.png", "--index", codes, "--top", 12)
    assert len(read_csv(folder / "neighbours.csv")) == 24
    (problem,) = read_json(folder / "data_report.json")["problems"]
    assert problem["where"] == "train_4"
    ((grid, _),) = predict.grids
    grey = [sum((picture == 128).all() for picture in shown) for shown in grid.values()]
    assert grey == [1, 1]


def test_codes_of_another_model_are_refused_though_their_shape_fits(predict, models, pictures):
    codes = predict("--input", pictures / "val.csv", "--checkpoint", models / "other", output="codes")
    with pytest.raises(UserError, match="codes of another model; write it again with --input") as caught:
        predict("--search", pictures / "val_0.png", "--index", codes)
    assert str(codes) in str(caught.value)


def truncate(folder):
    (folder / "codes.safetensors").write_bytes((folder / "codes.safetensors").read_bytes()[:90])


def empty(folder):
    (folder / "codes.safetensors").write_bytes(b"")


def lose_table(folder):
    (folder / "codes.csv").unlink()


def lose_row(folder):
    write_csv(folder / "codes.csv", read_csv(folder / "codes.csv")[1:])


def lose_column(folder):
    write_csv(folder / "codes.csv", [{"id": row["id"], "file": row["file"]} for row in read_csv(folder / "codes.csv")])


def spoil_box(folder):
    write_csv(folder / "codes.csv", [row | {"y1": "low"} for row in read_csv(folder / "codes.csv")])


def lose_owner(folder):
    save_file(load_file(folder / "codes.safetensors"), folder / "codes.safetensors")


def lose_codes(folder):
    save_file({"other": np.zeros((5, LATENT), np.float32)}, folder / "codes.safetensors", {"model": "x"})


@pytest.mark.parametrize(
    "spoil", [truncate, empty, lose_table, lose_row, lose_column, spoil_box, lose_owner, lose_codes]
)
def test_codes_that_are_not_whole_are_one_line(predict, pictures, spoil):
    codes = predict("--input", pictures / "val.csv", output="codes")
    spoil(codes)
    with pytest.raises(UserError, match="write it again with --input") as caught:
        predict("--search", pictures / "val_0.png", "--index", codes)
    assert str(codes) in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ what cannot be used


def test_what_cannot_be_read_is_listed_and_the_rest_is_done(predict, spoilt):
    (spoilt / "val_3.png").write_bytes((spoilt / "val_3.png").read_bytes()[:700])
    (spoilt / "val_1.png").write_text("no picture")
    rows = read_csv(spoilt / "val.csv")
    write_csv(spoilt / "val.csv", [*rows, rows[0] | {"image": "gone.png"}])
    folder = predict("--input", spoilt / "val.csv", spoilt / "missing.png", "--reconstruct")
    assert [row["id"] for row in read_csv(folder / "codes.csv")] == ["val_0", "val_2", "val_4"]
    assert len(list((folder / "reconstructions").iterdir())) == 3
    report = read_json(folder / "data_report.json")
    assert report["cases"] == {"ears": 3}
    listed = " ".join(problem["where"] + problem["detail"] for problem in report["problems"])
    assert all(name in listed for name in ("val_1", "val_3", "gone.png", "missing.png"))
    assert len(report["problems"]) == 4


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--input nowhere.png", "nowhere.png: no such file"),
        ("--input notes.txt", "notes.txt"),
        ("--input nowhere", "nowhere"),
        ("--input text.png", "text.png: not a picture"),
        ("--input EMPTY", "EMPTY holds no picture"),
        ("--search nowhere.png --index EAR", "nowhere.png: no such file"),
        ("--search EAR --index nowhere", "nowhere"),
        ("--search EAR --index EMPTY", "EMPTY holds no picture"),
        ("--search EAR --index text.png", "text.png: not a picture"),
        ("--input EAR --checkpoint EMPTY", "EMPTY is not a model folder"),
        ("--input EAR --checkpoint detector", "not 'ear VAE'"),
    ],
)
def test_mistakes_are_one_line(predict, pictures, tmp_path, monkeypatch, flags, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "text.png").write_text("no picture")
    save_model(tmp_path / "detector", torch.nn.Linear(1, 1), {"kind": "ear detector"})
    with pytest.raises(UserError) as caught:
        predict(*flags.replace("EAR", str(pictures / "val_0.png")).split())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results" / "codes.csv").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("", "--input"),
        ("--input a.png --search b.png --index c", "--search"),
        ("--search a.png", "--index"),
        ("--index b", "--input"),
        ("--input a.png --index b", "--index"),
        ("--search a.png --index b --reconstruct", "--reconstruct"),
        ("--search a.png --index b --top 0", "--top"),
    ],
)
def test_impossible_arguments_are_refused(flags, text, capsys):
    with pytest.raises(SystemExit):
        load_script(PREDICT).parse_args(["--checkpoint", "best", *flags.split()])
    assert text in capsys.readouterr().err


def test_a_search_does_not_write_into_the_codes():
    parse = load_script(PREDICT).parse_args
    names = [
        parse(["--checkpoint", "x", *flags.split()]).output.name for flags in ("--input a", "--search a --index b")
    ]
    assert names == ["codes", "found"]


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_searches_and_draws(models, pictures, tmp_path):
    done = run(PREDICT, "--checkpoint", models / "one", "--input", pictures / "train.csv", "--num_workers", 0,
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "results in codes" in done.stdout
    done = run(PREDICT, "--checkpoint", models / "one", "--search", pictures / "val_0.png", "--index", "codes",
               "--num_workers", 0, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (_, *rows) = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("query", "val_0"))]
    (first, *_) = read_csv(tmp_path / "found" / "neighbours.csv")
    assert rows[0][:2] == ["val_0", first["id"]]
    with Image.open(tmp_path / "found" / "neighbours.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
        assert picture.width > 4 * picture.height


def test_a_mistake_ends_the_command_line_with_one_line(models, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    done = run(PREDICT, "--checkpoint", models / "one", "--input", "notes.txt", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: notes.txt")
    assert {path.name for path in tmp_path.rglob("*")} == {"notes.txt"}
