"""train.py of the ears as users run it: results, arguments, bad data."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from conftest import load_script
from core.errors import UserError
from ear.crops import EarCrops, read_manifest
from ear.latent_space import active_units, kl_by_dimension
from ear.losses import WEIGHTS
from ear.quality import quality
from ear.sam_vae import EarVAE
from files import logged, read_csv, read_json, write_csv
from launch import run


def parse(*arguments):
    return load_script("ear_teacher/train.py").parse_args(list(arguments))


# ------------------------------------------------------------------------------------------------ results


def test_training_leaves_its_results(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "best", "best_2", "best_3",
                     "last", "previous", "figures"}  # fmt: skip
    rows = logged(trained)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {f"train/{name}" for name in ("loss", "grad_norm", *WEIGHTS)} - set(row) == {"train/perceptual"}
        assert {f"val/{name}" for name in ("loss", "psnr", "ssim", "kl", "active_units")} <= set(row)
        assert all(np.isfinite(value) for value in row.values())
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert read_json(trained / "data_report.json") == {"cases": {"train": 12, "val": 5}, "counts": [], "problems": []}
    pictures = {path.relative_to(trained / "figures").as_posix() for path in (trained / "figures").rglob("*.png")}
    assert pictures == {"training.png"} | {
        f"epoch_{epoch:04d}/{name}.png" for epoch in range(1, 5) for name in ("reconstructions", "kl_by_dimension")
    }
    for picture in pictures:
        with Image.open(trained / "figures" / picture) as pixels:
            assert np.asarray(pixels.convert("L")).std() > 5


def test_the_three_best_are_in_order(trained):
    losses = {row["epoch"]: row["val/loss"] for row in logged(trained)}
    order = sorted(losses, key=losses.get)
    for name, epoch in zip(("best", "best_2", "best_3"), order, strict=False):
        assert read_json(trained / name / "config.json")["best"] == {"epoch": epoch, "loss": losses[epoch]}


@torch.no_grad()
@pytest.mark.parametrize("name", ["best", "best_3"])
def test_the_logged_numbers_are_those_of_the_stored_model(trained, pictures, name):
    """All but the loss, which needs no second look: its terms have their own tests."""
    model, config = EarVAE.from_folder(trained / name)
    assert config["data"] == {"crop": True, "margin": 0.1, "mirror_left": True}
    assert (config["kind"], config["taught"]) == ("ear VAE", {"images": {"ears": 12}})
    crops = EarCrops(read_manifest(pictures / "val.csv"), model.image_size, **config["data"])
    images = torch.stack([crops[i]["image"] for i in range(len(crops))])
    result = model(images)
    row = logged(trained)[config["best"]["epoch"] - 1]
    for metric, values in quality(result["reconstruction"], images).items():
        assert values.mean().item() == pytest.approx(row[f"val/{metric}"], rel=1e-3)
    mu, logvar = result["mu"].numpy(), result["logvar"].numpy()
    assert kl_by_dimension(mu, logvar).sum() == pytest.approx(row["val/kl"], rel=1e-3)
    assert active_units(mu) == row["val/active_units"]


def test_the_parameters_are_printed_with_the_frozen_ones(launch, tmp_path, vgg_file):
    """Also with VGG16 from a file, two views, bf16 and checkpointing: the flags that no other run here has."""
    done = launch(tmp_path, "--epochs", 1, "--perceptual_weight", 1.5, "--vgg_weights", vgg_file, "--contrastive_views",
                  2, "--precision", "bf16-mixed", "--gradient_checkpointing", "--freeze_embeddings")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = EarVAE.from_pretrained(tmp_path)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    text = " ".join(done.stdout.split())
    for number in (total, frozen, total - frozen):
        assert f"{number / 1e6:.1f} M" in text
    assert "frozen" in text
    assert "bf16" in done.stdout
    (row,) = logged(tmp_path)
    assert row["train/perceptual"] > 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "Warning" not in done.stderr


# ------------------------------------------------------------------------------------------------ workers


def test_workers_do_not_matter(train, tmp_path):
    """The batches are equal to the bit (test_ear_crops.py), but lie elsewhere in memory, which changes roundings, and
    AdamW makes these larger with every update: after one epoch the weights must still agree."""
    for workers in (0, 2):
        train(tmp_path / str(workers), "--epochs", 1, "--num_workers", workers)
    ours, theirs = (load_file(tmp_path / workers / "last" / "model.safetensors") for workers in "20")
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


# ------------------------------------------------------------------------------------------------ arguments


def test_defaults_are_those_of_the_reference():
    args = parse()
    assert {name: getattr(args, f"{name}_weight") for name in WEIGHTS} == {n: w for n, (w, _) in WEIGHTS.items()}
    names = ("epochs", "batch_size", "lr", "latent_dim", "image_size", "freeze_layers", "num_workers", "sam_image_size")
    assert [getattr(args, name) for name in names] == [60, 4, 3e-4, 1024, 128, 6, 4, 1024]
    assert (args.sam_model, args.mixed_precision) == ("facebook/sam-vit-base", None)


REFERENCE = "--lr 3e-4 --kl-weight 1e-6 --perceptual-weight 1.5 --ssim-weight 0.6 --edge-weight 0.3"
REFERENCE += " --contrastive-weight 0.1 --center-weight 3.0 --latent-dim 1024 --image-size 128 --freeze-layers 6"
REFERENCE += " --num-workers 4 --epochs 60 --batch-size 4"


def test_the_commands_of_the_reference_are_understood():
    assert vars(parse(*REFERENCE.split())) == vars(parse())
    for dashes in ("--sam-image-size 448", "--freeze-embeddings", "--gradient-checkpointing", "--vgg-weights f.pth"):
        assert vars(parse(*dashes.split())) != vars(parse())
    assert parse("--sam-config", "tiny").sam_model is None
    assert parse("--resume").resume == "latest"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--precision 32", "no"),
        ("--precision 16-mixed", "fp16"),
        ("--precision bf16-mixed", "bf16"),
        ("--mixed_precision", "fp16"),
        ("--mixed_precision bf16 --precision bf16-mixed", "bf16"),
        ("", None),
    ],
)
def test_both_names_of_the_precision(flags, expected):
    assert parse(*flags.split()).mixed_precision == expected


@pytest.mark.parametrize(
    "flags",
    ["--precision 16", "--precision 32 --mixed_precision fp16", "--sam_image_size 100", "--sam_config huge",
     "--latent_dim 0", "--batch_size 0", "--margin -1", "--box_format corners", "--contrastive_views 3",
     "--nb_to_plot 0", "--weight 1", "--kl_weight much"],
)  # fmt: skip
def test_impossible_arguments_are_refused(flags, capsys):
    with pytest.raises((SystemExit, UserError)):
        parse(*flags.split())


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--image_size 100", ["--image_size 100"]),
        ("--freeze_layers -1", ["--freeze_layers -1"]),
        ("--batch_size 16", ["12 training cases do not fill one update of 16", "lower --batch_size"]),
        ("--train_manifest nowhere.npy", ["nowhere.npy"]),
        ("--val_manifest nowhere", ["nowhere"]),
        ("--data_root nowhere", ["--data_root"]),
        ("--perceptual_weight 1 --vgg_weights nowhere.pth", ["nowhere.pth", "--vgg_weights", "--perceptual_weight 0"]),
        ("--resume nowhere", ["nowhere", "no training state there"]),
    ],
)
def test_mistakes_are_one_line(train, tmp_path, flags, texts):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", *flags.split())
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in texts), caught.value
    assert not (tmp_path / "run" / "last").exists()


def test_a_sam_that_cannot_be_had_ends_the_script_with_one_line(pictures, tmp_path):
    manifests = ["--train_manifest", pictures / "train.csv", "--val_manifest", pictures / "val.csv"]
    done = run(
        "ear_teacher/train.py", *manifests, "--save_dir", tmp_path / "run", "--perceptual_weight", 0, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    for text in ("error: ", "facebook/sam-vit-base", "--sam_model", "--sam_config"):
        assert text in done.stderr


# ------------------------------------------------------------------------------------------------ data


@pytest.fixture
def spoilt(pictures, tmp_path):
    """A copy of the pictures that a test may spoil."""
    return shutil.copytree(pictures, tmp_path / "spoilt")


def test_broken_pictures_are_left_out_and_listed(train, spoilt, tmp_path):
    (spoilt / "train_3.png").write_bytes((spoilt / "train_3.png").read_bytes()[:700])
    (spoilt / "train_5.png").unlink()
    (spoilt / "val_1.png").write_text("no picture")
    manifests = ["--train_manifest", spoilt / "train.csv", "--val_manifest", spoilt / "val.csv"]
    train(tmp_path / "run", *manifests, "--epochs", 1)
    report = read_json(tmp_path / "run" / "data_report.json")
    assert report["cases"] == {"train": 10, "val": 4}
    listed = json.dumps(report["problems"])
    assert len(report["problems"]) == 3
    assert all(name in listed for name in ("train_3", "train_5", "val_1"))


def test_a_refusal_leaves_the_data_report(train, spoilt, tmp_path):
    for file in spoilt.glob("val_*.png"):
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match="no readable picture in val"):
        train(tmp_path / "run", "--train_manifest", spoilt / "train.csv", "--val_manifest", spoilt / "val.csv")
    (count,) = read_json(tmp_path / "run" / "data_report.json")["counts"]
    assert count == {"reason": "picture unreadable", "action": "left out", "count": 5}


def test_a_subject_in_both_splits_is_refused(train, spoilt, tmp_path):
    rows = read_csv(spoilt / "val.csv")
    write_csv(spoilt / "val.csv", [row | {"subject": "train2"} for row in rows])
    with pytest.raises(UserError, match="train2") as caught:
        train(tmp_path / "run", "--train_manifest", spoilt / "train.csv", "--val_manifest", spoilt / "val.csv")
    assert "\n" not in str(caught.value)


def test_a_npy_and_a_folder_as_manifests(train, pictures, tmp_path):
    """The reference's .npy, a pickled dict, and a plain folder of pictures."""
    rows = read_csv(pictures / "train.csv")
    content = {
        "image_paths": [row["image"] for row in rows],
        "bboxes": np.array([[float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row in rows]),
    }
    np.save(tmp_path / "train.npy", content, allow_pickle=True)
    (tmp_path / "val").mkdir()
    for file in pictures.glob("val_*.png"):
        shutil.copy(file, tmp_path / "val")
    train(tmp_path / "run", "--train_manifest", tmp_path / "train.npy", "--data_root", pictures, "--epochs", 1,
          "--val_manifest", tmp_path / "val")  # fmt: skip
    assert read_json(tmp_path / "run" / "data_report.json")["cases"] == {"train": 12, "val": 5}
