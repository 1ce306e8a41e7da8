"""evaluate.py of the teacher, on random models and pictures of coloured blobs: every number against one made by other
means, what the report says, and what is refused."""

import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from torchmetrics.image import StructuralSimilarityIndexMeasure

from conftest import load_script, loads_nothing
from core.checkpoints import save_model
from core.errors import UserError
from core.uncertainty import Interval
from ear.crops import EarCrops, read_manifest, to_tensor
from ear.latent_space import active_units, kl_by_dimension
from ear.sam_vae import EarVAE
from files import read_csv, read_json, write_csv
from launch import run

EVALUATE = "ear_teacher/evaluate.py"
METHODS = ("model", "pixel PCA", "mean ear")
DATA = {"crop": True, "margin": 0.1, "mirror_left": True}
SIZE, LATENT = 32, 8


stored = functools.cache(EarVAE.from_folder)  # half a second each time: random weights, then those of the file


def save_run(folder, pictures, latent_dim=LATENT):
    """What train.py would leave of a model of random weights: best/, best_2/ and args.json."""
    for seed, name in enumerate(("best", "best_2")):
        torch.manual_seed(seed)
        model = EarVAE("tiny", sam_image_size=64, latent_dim=latent_dim, image_size=SIZE, freeze_layers=0)
        config = {"kind": "ear VAE", "taught": {}, "model": model.arguments, "data": DATA}
        save_model(folder / name, model, config)
    before = {"train_manifest": str(pictures / "train.csv"), "data_root": None, "box_format": "xyxy"}
    (folder / "args.json").write_text(json.dumps(before))
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, pictures):
    """Not to be written to."""
    return save_run(tmp_path_factory.mktemp("trained") / "run", pictures)


@pytest.fixture(scope="module")
def evaluated(run_folder, pictures, tmp_path_factory):
    """The validation's five ears, by the first model, with all pictures."""
    folder = tmp_path_factory.mktemp("evaluated") / "results"
    done = run(EVALUATE, "--checkpoint", run_folder / "best", "--manifest", pictures / "val.csv", "--output", folder,
               "--bootstrap", 200, "--nb_to_plot", 2, "--num_workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def evaluate(run_folder, pictures, tmp_path, monkeypatch):
    """Evaluates in this process, without pictures: `evaluate(*flags)` gives the folder of the results."""
    script = load_script(EVALUATE)
    monkeypatch.setattr(script, "draw", lambda *_: [])
    monkeypatch.setattr(script.EarVAE, "from_folder", stored)

    def evaluate_quickly(*flags):
        folder = tmp_path / "results"
        common = ["--checkpoint", run_folder, "--manifest", pictures / "val.csv", "--output", folder, "--bootstrap", 20,
                  "--num_workers", 0]  # fmt: skip
        try:
            script.main([str(flag) for flag in (*common, *flags)])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return folder

    evaluate_quickly.script = script
    return evaluate_quickly


@pytest.fixture
def spoilt(pictures, tmp_path):
    """A copy of the pictures that a test may spoil."""
    return shutil.copytree(pictures, tmp_path / "spoilt")


def crops(manifest):
    """The crops (N, S, S, 3) uint8 of a manifest."""
    data = EarCrops(read_manifest(manifest), SIZE, **DATA)
    return np.stack([data.pixels(i) for i in range(len(data))])


def psnr(made, truth):
    """Of two pictures uint8, in dB, by its definition."""
    return 10 * np.log10(255**2 / np.mean((made.astype(float) - truth) ** 2))


def ssim(made, truth):
    metric = StructuralSimilarityIndexMeasure(data_range=1.0)
    return metric(*(torch.from_numpy(x / 255.0).permute(2, 0, 1)[None] for x in (made, truth))).item()


# ------------------------------------------------------------------------------------------------ numbers


def test_every_number_of_an_ear_has_been_made_twice(evaluated, run_folder, pictures):
    """The model's, the PCA's by NumPy's SVD, and the mean ear's, from the pictures on."""
    train, truth = crops(pictures / "train.csv"), crops(pictures / "val.csv")
    model = EarVAE.from_pretrained(run_folder / "best")
    with torch.no_grad():
        images = torch.stack([to_tensor(picture) for picture in truth])
        ours = ((model.decode(model.encode(images)[0]) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    rows = train.reshape(len(train), -1).astype(float)
    mean = rows.mean(axis=0)
    directions = np.linalg.svd(rows - mean, full_matrices=False)[2][:LATENT]
    flat = truth.reshape(len(truth), -1)
    linear = (mean + (flat - mean) @ directions.T @ directions).reshape(truth.shape)
    made = {"model": ours, "pixel_PCA": linear, "mean_ear": np.broadcast_to(mean.reshape(truth[0].shape), truth.shape)}
    table = read_csv(evaluated / "predictions.csv")
    assert [row["id"] for row in table] == [f"val_{number}" for number in range(5)]
    assert [row["side"] for row in table] == ["left", "right", "", "left", "right"]
    assert [row["subject"] for row in table] == [f"val{number // 2}" for number in range(5)]
    for method, pixels in made.items():
        whole = np.clip(pixels, 0, 255).round().astype(np.uint8)
        for row, picture, true in zip(table, whole, truth, strict=True):
            assert float(row[f"{method}_psnr"]) == pytest.approx(psnr(picture, true), abs=0.02), method
            assert float(row[f"{method}_ssim"]) == pytest.approx(ssim(picture, true), abs=0.003), method


def test_the_means_are_those_of_the_table_and_lie_in_their_intervals(evaluated):
    metrics, table = read_json(evaluated / "metrics.json"), read_csv(evaluated / "predictions.csv")
    assert tuple(metrics["methods"]) == METHODS
    columns = {name: np.array([float(row[name]) for row in table]) for name in list(table[0])[3:]}
    intervals = {f"{m.replace(' ', '_')}_{n}": i for m, v in metrics["methods"].items() for n, i in v.items()}
    assert intervals.keys() == columns.keys()
    for name, interval in intervals.items():
        assert interval["estimate"] == pytest.approx(columns[name].mean(), abs=1e-4)
        assert columns[name].min() - 1e-4 <= interval["low"] < interval["estimate"] < interval["high"]
        assert interval["high"] <= columns[name].max() + 1e-4


def test_the_difference_is_paired(evaluated):
    """Its interval is that of the differences: narrower than two intervals side by side would make it."""
    metrics, table = read_json(evaluated / "metrics.json"), read_csv(evaluated / "predictions.csv")
    gain, (model, pca) = metrics["psnr_above_pca"], (metrics["methods"][name]["psnr"] for name in METHODS[:2])
    differences = np.array([float(row["model_psnr"]) - float(row["pixel_PCA_psnr"]) for row in table])
    assert gain["estimate"] == pytest.approx(differences.mean(), abs=1e-3)
    assert gain["low"] < gain["estimate"] < gain["high"]
    persons = [differences[i : i + 2] for i in (0, 2, 4)]  # both ears of a person are drawn together
    draws = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
    means = [np.concatenate([persons[i] for i in draw]).mean() for draw in draws]
    assert gain["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.3 * np.ptp(means))
    assert min(means) - 1e-3 <= gain["low"] <= gain["high"] <= max(means) + 1e-3
    assert gain["high"] - gain["low"] < (model["high"] - model["low"]) + (pca["high"] - pca["low"])


def test_what_else_metrics_json_says(evaluated, run_folder, pictures):
    metrics = read_json(evaluated / "metrics.json")
    assert metrics["data"] == {
        "manifest": str(pictures / "val.csv"), "ears": 5, "subjects": 3, "subjects_known": True,
        "train_manifest": str(pictures / "train.csv"), "pca_ears": 12,
    }  # fmt: skip
    assert (metrics["latent_dim"], metrics["pca_components"]) == (LATENT, LATENT)
    assert metrics["checkpoint"] == str(run_folder / "best")
    assert metrics["environment"]["processes"] == 1
    with torch.no_grad():
        images = torch.stack([to_tensor(picture) for picture in crops(pictures / "val.csv")])
        mu, logvar = (x.numpy() for x in EarVAE.from_pretrained(run_folder).encode(images))
    np.testing.assert_allclose(metrics["kl_by_dimension"], kl_by_dimension(mu, logvar), rtol=1e-3)
    assert metrics["kl"] == pytest.approx(sum(metrics["kl_by_dimension"]))
    assert metrics["active_units"] == active_units(mu)
    assert read_json(evaluated / "data_report.json") == {
        "cases": {"train": 12, "evaluated": 5}, "counts": [], "problems": []
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the report


def test_the_report_is_one_file_with_all_pictures(evaluated):
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    names = {"typical", "best", "worst", "interpolation", "neighbours", "kl_by_dimension"}
    assert {path.name for path in (evaluated / "figures").iterdir()} == {f"{name}.png" for name in names}
    assert loads_nothing(page)
    assert page.count("data:image/png") == len(names)
    metrics = read_json(evaluated / "metrics.json")
    for method in METHODS:
        assert method in page
        for name, form in (("psnr", "{:.2f}"), ("ssim", "{:.3f}")):
            parts = [form.format(metrics["methods"][method][name][part]) for part in ("estimate", "low", "high")]
            assert "{} <span>({} to {})</span>".format(*parts) in page
    assert "5 ears of 3 persons" in page
    assert "guessed" not in page
    assert "Not a medical device" in page
    for name in names:
        with Image.open(evaluated / "figures" / f"{name}.png") as figure:
            assert np.asarray(figure.convert("L")).std() > 10


def test_a_random_model_is_said_not_to_beat_the_pca(evaluated):
    assert read_json(evaluated / "metrics.json")["psnr_above_pca"]["high"] < 0
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert "is behind the pixel PCA" in page
    assert "is ahead of the pixel PCA" not in page


@pytest.mark.parametrize(("share", "says"), [(0.5, "by at least 1 dB"), (0.95, "perhaps by less than 1 dB")])
def test_a_model_that_beats_the_pca_is_said_to(evaluate, monkeypatch, share, says):
    """Its errors are put in, a share of the PCA's: 6.0 and 0.4 dB."""
    reconstructions = evaluate.script.reconstructions

    def better(evaluated, pca):
        made, truth = reconstructions(evaluated, pca), evaluated["original"].astype(float)
        model = truth + share * (made["pixel PCA"] - truth)
        return made | {"model": model.round().astype(np.uint8)}

    monkeypatch.setattr(evaluate.script, "reconstructions", better)
    folder = evaluate()
    gain = read_json(folder / "metrics.json")["psnr_above_pca"]
    assert gain["estimate"] == pytest.approx(-20 * np.log10(share), abs=0.15)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert says in page
    assert "is behind" not in page


@pytest.mark.parametrize(
    ("psnr_gain", "ssim_gain", "says"),
    [
        ((-2, -1), (-0.2, -0.1), "is behind the pixel PCA with codes of the same length. Possible"),
        ((-2, -1), (0.1, 0.2), "is behind the pixel PCA with codes of the same length; in SSIM it is ahead. Possible"),
        ((-1, 1), (-0.1, 0.1), "does not differ significantly from the pixel PCA with codes of the same length. P"),
        (
            (-1, 1),
            (0.1, 0.2),
            "does not differ significantly from the pixel PCA with codes of the same length; in SSIM",
        ),
        ((0.1, 3), (-0.2, -0.1), "is ahead of the pixel PCA with codes of the same length, perhaps by less than 1 dB."),
        ((1, 3), (-0.2, -0.1), "is ahead of the pixel PCA with codes of the same length, by at least 1 dB."),
    ],
)
def test_what_the_difference_means(psnr_gain, ssim_gain, says):
    gains = {"psnr_above_pca": Interval(np.mean(psnr_gain), *psnr_gain)}
    gains["ssim_above_pca"] = Interval(np.mean(ssim_gain), *ssim_gain)
    assert load_script(EVALUATE).compare(gains).startswith(f"In PSNR the model {says}")


def test_no_picture_is_infinitely_good(evaluate, pictures, tmp_path):
    """Copies of ears that the PCA was made of, whose subjects nobody knows: it draws them to the last bit."""
    for name in ("train", "evaluated"):
        shutil.copytree(pictures, tmp_path / name, ignore=shutil.ignore_patterns("*.csv", "train_?.png"))
    folder = evaluate("--manifest", tmp_path / "evaluated", "--train_manifest", tmp_path / "train")
    metrics = read_json(folder / "metrics.json")
    pca = metrics["methods"]["pixel PCA"]["psnr"]
    assert 45 < pca["low"] <= pca["estimate"] <= pca["high"] < 60
    assert metrics["psnr_above_pca"]["estimate"] < 0
    assert not metrics["data"]["subjects_known"]
    assert "7 ears of 7 persons, guessed from names of files" in (folder / "report.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ what it runs on


def test_the_second_best_and_where_its_results_go(run_folder, pictures, tmp_path, monkeypatch):
    """best_2/ leaves its own folder beside it, and finds the ears of the training from there, too."""
    copy = shutil.copytree(run_folder, tmp_path / "run")
    script = load_script(EVALUATE)
    monkeypatch.setattr(script, "draw", lambda *_: [])
    script.main(["--checkpoint", str(copy / "best_2"), "--manifest", str(pictures / "val.csv"), "--bootstrap", "5",
                 "--num_workers", "0"])  # fmt: skip
    assert {path.name for path in (copy / "evaluation_2").iterdir()} == {
        "metrics.json", "predictions.csv", "data_report.json", "report.html"
    }  # fmt: skip
    assert not (copy / "evaluation").exists()
    with torch.no_grad():
        images = torch.stack([to_tensor(picture) for picture in crops(pictures / "val.csv")])
        result = EarVAE.from_pretrained(copy / "best_2")(images)["reconstruction"]
    made = ((result[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    (row, *_) = read_csv(copy / "evaluation_2" / "predictions.csv")
    assert float(row["model_psnr"]) == pytest.approx(psnr(made, crops(pictures / "val.csv")[0]), abs=0.02)


def test_training_ears_are_read_as_the_run_read_them(run_folder, pictures):
    take = load_script(EVALUATE).take_data_of_training
    names = {"checkpoint": run_folder / "best_2", "manifest": "val.csv", "data_root": None, "box_format": None}
    args = SimpleNamespace(**names, train_manifest=None)
    take(args, "train_manifest")
    assert (args.train_manifest, args.manifest) == (pictures / "train.csv", "val.csv")
    assert (args.data_root, args.box_format) == (None, "xyxy")
    args = SimpleNamespace(**names, train_manifest="other.csv")
    take(args, "train_manifest")
    assert (args.train_manifest, args.box_format) == ("other.csv", None)


def test_a_best_folder_alone_wants_the_training_ears(evaluate, run_folder, tmp_path):
    best = shutil.copytree(run_folder / "best", tmp_path / "alone" / "best")
    with pytest.raises(UserError, match=r"no args\.json .* --train_manifest"):
        evaluate("--checkpoint", best)
    (best.parent / "args.json").write_text(json.dumps({"train_manifest": "gone.npy"}))
    with pytest.raises(UserError, match=r"gone\.npy: no such file or folder; give --train_manifest"):
        evaluate("--checkpoint", best)


def test_more_dimensions_than_training_ears(evaluate, pictures, tmp_path):
    """12 ears have 11 components."""
    folder = evaluate("--checkpoint", save_run(tmp_path / "wide", pictures, latent_dim=64))
    metrics = read_json(folder / "metrics.json")
    assert (metrics["latent_dim"], metrics["pca_components"]) == (64, 11)
    assert "with 11 components and mean ear: from 12" in (folder / "report.html").read_text(encoding="utf-8")
    folder = evaluate("--checkpoint", tmp_path / "wide", "--pca_images", 4)
    assert read_json(folder / "metrics.json")["pca_components"] == 3


def test_equal_training_ears_have_no_components(evaluate, pictures, tmp_path):
    for name in ("1", "2"):
        (tmp_path / "same").mkdir(exist_ok=True)
        shutil.copy(pictures / "train_0.png", tmp_path / "same" / f"{name}.png")
    folder = evaluate("--train_manifest", tmp_path / "same")
    metrics = read_json(folder / "metrics.json")
    assert metrics["pca_components"] == 0
    assert metrics["methods"]["pixel PCA"] == metrics["methods"]["mean ear"]


def test_a_single_ear_and_a_wish_for_more_pictures_than_ears(run_folder, pictures, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(pictures / "val_0.png", tmp_path / "one")
    load_script(EVALUATE).main(["--checkpoint", str(run_folder), "--manifest", str(tmp_path / "one"), "--nb_to_plot",
                                "40", "--output", str(tmp_path / "out"), "--num_workers", "0"])  # fmt: skip
    metrics = read_json(tmp_path / "out" / "metrics.json")
    for interval in metrics["methods"]["model"].values():
        assert interval["low"] == interval["estimate"] == interval["high"]
    assert metrics["active_units"] == 0
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {"typical", "best", "worst", "neighbours", "kl_by_dimension"}  # there is no other ear to go to


@pytest.mark.parametrize(("ears", "strips"), [(2, 1), (5, 2), (7, 3), (30, 3)])
def test_the_ways_from_ear_to_ear(ears, strips):
    """Each between two ears that no other way touches, the most different first; also where all codes are the same."""
    script = load_script(EVALUATE)
    rng = np.random.default_rng(0)
    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]), decode=lambda z: z[:, :3, None, None].tanh())
    count = min(script.STRIPS, ears // 2)
    mu, ids = rng.normal(size=(ears, 4)).astype(np.float32), [f"ear {i}" for i in range(ears)]
    for codes in (mu, np.zeros_like(mu)):
        found = script.interpolations(model, codes, ids, count)
        assert len(found) == strips
        ends = [name for key in found for name in key.split("\nto ")]
        assert len(set(ends)) == 2 * strips
        for key, pictures in found.items():
            assert pictures.shape == (script.STEPS, 1, 1, 3)
            for picture, name in zip(pictures[[0, -1]], key.split("\nto "), strict=True):
                expected = (np.tanh(codes[ids.index(name), :3]) + 1) * 127.5
                np.testing.assert_allclose(picture[0, 0], expected, atol=0.51)


def test_grey_and_cmyk_pictures_are_evaluated_and_a_damaged_one_is_listed(evaluate, spoilt):
    with Image.open(spoilt / "val_0.png") as picture:
        picture.convert("L").save(spoilt / "grey.png")
        picture.convert("CMYK").save(spoilt / "cmyk.jpg", quality=95)
    rows = read_csv(spoilt / "val.csv")
    rows += [rows[0] | {"image": name} for name in ("grey.png", "cmyk.jpg")]
    write_csv(spoilt / "val.csv", rows)
    (spoilt / "val_3.png").write_bytes((spoilt / "val_3.png").read_bytes()[:700])
    (spoilt / "train_3.png").write_bytes((spoilt / "train_3.png").read_bytes()[:700])
    folder = evaluate("--manifest", spoilt / "val.csv", "--train_manifest", spoilt / "train.csv")
    table = {row["id"]: row for row in read_csv(folder / "predictions.csv")}
    assert list(table) == ["val_0", "val_1", "val_2", "val_4", "grey", "cmyk"]
    assert float(table["cmyk"]["model_psnr"]) == pytest.approx(float(table["val_0"]["model_psnr"]), abs=1)
    report = read_json(folder / "data_report.json")
    assert report["cases"] == {"train": 11, "evaluated": 5 + 1}
    assert {problem["where"] for problem in report["problems"]} == {"train_3", "val_3"}
    assert "picture unreadable" in (folder / "report.html").read_text(encoding="utf-8")
    assert read_json(folder / "metrics.json")["data"]["pca_ears"] == 11


# ------------------------------------------------------------------------------------------------ what is refused


def test_an_ear_or_person_among_training_and_evaluated_ears(evaluate, pictures, spoilt, tmp_path):
    rows = read_csv(spoilt / "val.csv")
    write_csv(spoilt / "val.csv", [row | {"subject": "train2"} for row in rows])
    for flags, text in (
        (["--manifest", spoilt / "val.csv"], "train2"),
        (["--train_manifest", pictures / "val.csv"], "val_0"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            evaluate(*flags)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "results").exists()
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):  # a.png here need not be who a.png there is
        (tmp_path / split).mkdir(exist_ok=True)
        number = "ab".index(name)
        shutil.copy(spoilt / f"{split}_{number}.png", tmp_path / split / f"{name}.png")
    folder = evaluate("--manifest", tmp_path / "val", "--train_manifest", tmp_path / "train")
    assert read_json(folder / "data_report.json")["problems"] == []


def test_what_cannot_be_evaluated_is_one_line(evaluate, pictures, tmp_path):
    detector, other = tmp_path / "detector", tmp_path / "other"
    save_model(detector, torch.nn.Linear(1, 1), {"kind": "ear detector"})
    save_model(other, torch.nn.Linear(1, 1), {"kind": "landmarks"})
    (tmp_path / "one").mkdir()
    shutil.copy(pictures / "train_0.png", tmp_path / "one")
    for flags, text in (
        (["--checkpoint", detector], "kind 'ear detector', not 'ear VAE'"),
        (["--checkpoint", other], "kind 'landmarks', not 'ear VAE'"),
        (["--checkpoint", tmp_path], "is not a model folder"),
        (["--manifest", tmp_path / "nowhere.csv"], "nowhere.csv"),
        (["--train_manifest", tmp_path / "one"], "at least two training ears"),
        (["--pca_images", 1], "at least two training ears"),
        (["--data_root", tmp_path / "nowhere"], "--data_root"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate(*flags)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "results" / "metrics.json").exists()


def test_a_mistake_ends_the_script_with_one_line(run_folder, tmp_path):
    done = run(EVALUATE, "--checkpoint", run_folder, "--manifest", "nowhere.npy", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "nowhere.npy" in done.stderr
