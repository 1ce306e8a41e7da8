"""create_eigenears.py on random models and on pictures of coloured noise: what it writes, and what it refuses."""

import json
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, load_script, loads_nothing
from core.checkpoints import save_model
from core.errors import UserError
from ear.latent_space import principal_components
from ear.sam_vae import EarVAE
from files import read_csv, read_json
from launch import run

SCRIPT = "ear_teacher/eigenears/create_eigenears.py"
EARS, LATENT = 12, 6
DATA = {"crop": True, "margin": 0.25, "mirror_left": False}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 12 pictures of 40×48 px, each of one colour with coarse noise. Not to be written to."""
    folder, rng = tmp_path_factory.mktemp("ears"), np.random.default_rng(0)
    for number in range(EARS):
        noise = rng.uniform(60, 200, 3) + 25 * np.kron(rng.standard_normal((5, 6)), np.ones((8, 8)))[..., None]
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"ear_{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, pictures):
    """What train.py would leave: best/ with random weights, and args.json. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.manual_seed(0)
    model = EarVAE("tiny", sam_image_size=128, latent_dim=LATENT, image_size=16, freeze_layers=0)
    config = {"kind": "ear VAE", "taught": {}, "model": model.arguments, "data": DATA}
    save_model(folder / "best", model, config)
    before = {"train_manifest": str(pictures), "data_root": None, "box_format": "xywh"}
    (folder / "args.json").write_text(json.dumps(before))
    return folder


def create(*arguments):
    script = load_script(SCRIPT)
    script.main([str(argument) for argument in (*arguments, "--num_workers", 0, "--batch_size", 5)])
    return script


@pytest.fixture(scope="module")
def results(run_folder, tmp_path_factory):
    """Of the ears of the training, with four components."""
    output = tmp_path_factory.mktemp("results") / "eigenears"
    create("--checkpoint", run_folder, "--components", 4, "--steps", 3, "--samples", 2, "--output", output)
    return output


def test_what_is_written(results):
    names = {"eigenears_grid.png", "explained_variance.png", "explained_variance.csv", "samples.png", "eigenears.json"}
    names |= {"report.html", "data_report.json", *(f"pc_{number}.png" for number in range(1, 5))}
    assert {file.name for file in results.iterdir()} == names
    assert all(Image.open(file).width > 200 for file in results.glob("*.png"))


def test_the_numbers(results, pictures):
    content, rows = read_json(results / "eigenears.json"), read_csv(results / "explained_variance.csv")
    assert list(rows[0])[:6] == ["component", "deviation", "share", "cumulative", "brightness_share", "verdict"]
    assert [row["component"] for row in rows] == ["1", "2", "3", "4"]
    shares = np.array([float(row["share"]) for row in rows])
    assert (np.diff(shares) <= 0).all()
    np.testing.assert_allclose([float(row["cumulative"]) for row in rows], shares.cumsum(), rtol=1e-4)
    structural = sum(row["verdict"] == "structure" for row in rows)
    assert content["first"] == {
        "components": 4,
        "share": pytest.approx(shares.sum(), rel=1e-4),
        "structure": structural,
    }
    assert (content["ears"], content["latent_dim"], content["gaussians"]) == (EARS, LATENT, 1)
    assert content["manifest"] == str(pictures)
    assert 1 <= content["components_for_90_percent"] <= LATENT
    assert read_json(results / "data_report.json")["cases"] == {"ears": EARS}


def test_the_shares_are_those_of_the_codes(results, run_folder, pictures):
    model = EarVAE.from_pretrained(run_folder)
    crops = load_script(SCRIPT).EarCrops(load_script(SCRIPT).read_manifest(pictures), model.image_size, **DATA)
    with torch.no_grad():
        mu = model.encode(torch.stack([crops[i]["image"] for i in range(EARS)]))[0].numpy()
    pca, rows = principal_components(mu), read_json(results / "eigenears.json")["components"]
    np.testing.assert_allclose([row["share"] for row in rows], pca.explained[:4], rtol=1e-3)
    np.testing.assert_allclose([row["deviation"] for row in rows], pca.deviations[:4], rtol=1e-3)


def test_the_report_says_it_in_words(results):
    page, first = (results / "report.html").read_text(encoding="utf-8"), read_json(results / "eigenears.json")["first"]
    assert f"{first['structure']} of 4" in page
    assert f"{100 * first['share']:.1f} %" in page
    assert page.count("data:image/png") == 3 + 4
    assert loads_nothing(page)


def test_the_headline_and_fewer_ears_than_components(run_folder, pictures, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("ear_00.png", "ear_01.png", "ear_02.png"):
        shutil.copy(pictures / name, few)
    create("--checkpoint", run_folder / "best", "--manifest", few, "--output", tmp_path / "out", "--steps", 3)
    said = capsys.readouterr().out
    assert "3 ears have 2 components, fewer than --components 16" in said
    assert "first 2 components explain 100.0 % of the variance" in said
    assert len(list((tmp_path / "out").glob("pc_*.png"))) == 2


def test_one_ear_has_no_components(run_folder, pictures, tmp_path):
    shutil.copy(pictures / "ear_00.png", tmp_path)
    with pytest.raises(UserError, match="give two ears at least"):
        create("--checkpoint", run_folder, "--manifest", tmp_path, "--output", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data_report.json"]


def test_the_ears_of_the_training_and_how_they_were_cut(run_folder, pictures):
    script = load_script(SCRIPT)
    for checkpoint in (run_folder, run_folder / "best", run_folder / "best" / ".." / "best"):
        args = SimpleNamespace(checkpoint=checkpoint, manifest=None, data_root=None, box_format=None)
        script.take_data_of_training(args)
        assert (args.manifest, args.data_root, args.box_format) == (pictures, None, "xywh")
    args = SimpleNamespace(checkpoint=run_folder, manifest=pictures, data_root=None, box_format=None)
    script.take_data_of_training(args)
    assert args.box_format is None  # other ears need not be stored as those of the training were


def test_a_best_folder_alone_wants_a_manifest(run_folder, tmp_path):
    best = shutil.copytree(run_folder / "best", tmp_path / "best")
    with pytest.raises(UserError, match=r"no args\.json .* --manifest"):
        create("--checkpoint", best)
    (tmp_path / "args.json").write_text(json.dumps({"train_manifest": "gone.npy"}))
    with pytest.raises(UserError, match=r"gone\.npy: no such file or folder; give --manifest"):
        create("--checkpoint", best)


def test_a_detector_is_refused_in_one_line(tmp_path, pictures):
    save_model(tmp_path / "best", torch.nn.Linear(1, 1), {"kind": "ear detector"})
    done = run(SCRIPT, "--checkpoint", tmp_path, "--manifest", pictures)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "kind 'ear detector', not 'ear VAE'" in done.stderr


@pytest.mark.parametrize("flags", [("--steps", "4"), ("--steps", "1"), ("--sigma", "0"), ("--sigma", "nan")])
def test_flags_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit):
        load_script(SCRIPT).parse_args(["--checkpoint", "x", *flags])
    assert flags[0] in capsys.readouterr().err


def test_the_commands_of_the_readme_are_accepted():
    text = (ROOT / SCRIPT).with_name("README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("python ")]
    assert len(commands) == 2
    for _, script, *flags in commands:
        assert script == SCRIPT
        assert load_script(SCRIPT).parse_args(flags).checkpoint


class Drawing(torch.nn.Module):
    """A decoder: the first number of a code makes the picture brighter, the second one moves a bar."""

    def __init__(self):
        super().__init__()
        self.unit = torch.nn.Parameter(torch.ones(()))

    def decode(self, z):
        x = torch.linspace(-1, 1, 32)
        bar = 0.8 * torch.exp(-(((x - 0.05 * z[:, 1:2]) / 0.2) ** 2)) - 0.5
        return (bar + 0.05 * z[:, :1])[:, None, None].expand(-1, 3, 32, 32) * self.unit


def test_what_a_component_changes():
    rng = np.random.default_rng(0)
    pca = principal_components(rng.standard_normal((500, 2)) * (3, 1))
    args = SimpleNamespace(sigma=2.0, steps=5)
    brightness, shift = (load_script(SCRIPT).decode_component(Drawing(), pca, number, args) for number in (0, 1))
    assert (brightness.name, brightness.verdict) == ("PC 1", "brightness or colour")
    assert (shift.name, shift.verdict) == ("PC 2", "structure")
    assert brightness.brightness_share > 0.9
    assert shift.brightness_share < 0.1
    np.testing.assert_allclose(brightness.sigmas, [-2, -1, 0, 1, 2])
    # From -2σ to 2σ is 4 deviations; the pictures' unit is 127.5 levels, and the direction's first entry is positive.
    expected = 4 * pca.deviations[0] * 0.05 * 127.5 * pca.directions[0, 0]
    assert brightness.change.mean() == pytest.approx(expected, rel=0.05)
    assert (np.diff(brightness.pictures[:, 0, 0, 0].astype(int)) > 0).all()
    assert shift.change.mean(axis=0).argmax() not in (0, 15, 16, 31)  # neither far off nor in the middle of the bar
    np.testing.assert_array_equal(brightness.pictures[2], shift.pictures[2])  # the mean


def test_two_processes_find_what_one_finds(results, run_folder, tmp_path):
    flags = ["--components", 4, "--steps", 3, "--samples", 2, "--num_workers", 0, "--batch_size", 5]
    done = run(SCRIPT, "--checkpoint", run_folder, *flags, "--output", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of them change structure") == 1
    one, two = (read_csv(folder / "explained_variance.csv") for folder in (results, tmp_path / "two"))
    for name in ("deviation", "share", "cumulative", "brightness_share"):
        np.testing.assert_allclose(*([float(row[name]) for row in rows] for rows in (one, two)), rtol=1e-2)
