"""The ONNX file against PyTorch: a small HRNet through the script, and maps that decode in every special way."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ceph.anatomy import ANATOMY, SCHEMA, Anatomy
from ceph.heatmaps import decode_dark, encode_heatmaps
from ceph.hrnet import HRNetLandmarks
from ceph.predictor import Predictor
from ceph.tta import predict_views
from conftest import load_script
from core.checkpoints import save_model
from core.errors import UserError
from core.landmarks import make_schema
from core.windows import Letterbox
from launch import run

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SCRIPT = "cephalometric/export_onnx.py"
script = load_script(SCRIPT)
OUTPUTS = ["points", "confidence", "measurements", "cvm_stage"]


def saved(model, folder, points=None, stage=1):
    """best/ of a model that was taught one case of these points, by default all."""
    points = np.random.default_rng(0).random((1, len(model.anatomy.names), 2)) if points is None else points
    data = {"mean_shape": points[0], "ground_truth": "senior", "taught": model.anatomy.taught(points, [stage])}
    save_model(folder, model, model.config(sigma=1.5) | data)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """best/ of a small model with random weights."""
    torch.manual_seed(0)
    model = HRNetLandmarks("hrnet_w18_small", (64, 96), 48)
    model.set_statistics(np.arange(10.0, 20.0), np.arange(1.0, 11.0))
    folder = tmp_path_factory.mktemp("run") / "best"
    return saved(model, folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 130), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def exported(trained, picture, tmp_path_factory):
    """(what the script said, its file), started from another folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run(SCRIPT, "--checkpoint", trained, "--check", picture, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    return done, trained.parent / "landmarks.onnx"


def test_the_script_compares_and_says_so(exported, trained):
    done, file = exported
    assert "over 2 random and 1 given pictures" in done.stdout
    assert all(name in done.stdout for name in OUTPUTS)
    assert f"written: {file}" in done.stdout
    assert sorted(path.name for path in trained.parent.iterdir()) == ["best", "landmarks.onnx"]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_file_says_what_pytorch_says(exported, trained, picture, batch):
    predictor = Predictor(trained)
    with Image.open(picture) as opened:
        frame = Letterbox((130, 150), (96, 64)).draw(np.asarray(opened))
    images = torch.rand(batch, 1, 64, 96, generator=torch.Generator().manual_seed(3))
    images[0, 0] = torch.from_numpy(frame) / 255
    found = onnxruntime.InferenceSession(exported[1]).run(OUTPUTS, {"image": images.numpy()})
    with torch.inference_mode():
        expected = predictor.frames(images)
    assert found[0].shape == (batch, 29, 2)
    assert found[0].std(axis=1).min() > 5  # the landmarks differ
    assert np.abs(found[0] - expected["points"].numpy()).max() <= 0.01
    for name, values in zip(OUTPUTS[1:], found[1:], strict=True):
        assert np.allclose(values, expected[name], atol=1e-4), name


def test_the_file_says_how_to_use_it(exported):
    session = onnxruntime.InferenceSession(exported[1])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [1, 64, 96])
    assert isinstance(image.shape[0], str)  # a name, not a number: batches of any size
    assert [output.name for output in session.get_outputs()] == OUTPUTS
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["image_size"]) == [64, 96]
    assert json.loads(facts["landmarks"]) == list(SCHEMA.names)
    assert json.loads(facts["measurements"]) == [m.name for m in ANATOMY.measurements]
    assert set(json.loads(facts["units"])) == set(OUTPUTS)
    assert "letterbox" in facts["preprocessing"]


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(exported, trained):
    content = exported[1].read_bytes()
    assert b".py" not in content
    assert str(trained).encode() not in content


class Maps(nn.Module):
    """A stage 1 whose heatmaps are its picture, less and less bright."""

    stride, anatomy = 1, ANATOMY

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.linspace(1, 0.2, 29)[:, None, None])
        self.register_buffer("measurement_mean", torch.zeros(10))
        self.register_buffer("measurement_std", torch.ones(10))

    def forward(self, image):
        return {
            "heatmaps": image * self.gain,
            "measurements": F.adaptive_avg_pool2d(image, (1, 10)).flatten(1),
            "cvm_stage": F.adaptive_avg_pool2d(image, (1, 6)).flatten(1),
        }


def predictor_of(model):
    """As if it had been loaded."""
    predictor = Predictor.__new__(Predictor)
    predictor.model, predictor.anatomy, predictor.taught, predictor.tta = model, ANATOMY, np.ones(29, bool), "none"
    predictor.config = {"kind": "", "sigma": 2.0, "model": {"image_size": [32, 48]}}
    return predictor


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    file = tmp_path_factory.mktemp("maps") / "maps.onnx"
    script.write_onnx(predictor_of(Maps()), file)
    return file


def test_decoding_at_borders_and_of_flat_maps(maps):
    """Peaks in and beyond every corner and side, in the middle, two alike, none at all, a plateau, noise, negatives."""
    ends, sides = (-0.6, 0.0, 0.4, 1.7, 4.2), {"x": 47, "y": 31}
    xs = [*ends, 23.3, *(sides["x"] - end for end in ends)]
    ys = [*ends, 15.8, *(sides["y"] - end for end in ends)]
    points = torch.tensor([[x, y] for x in xs for y in ys])[:, None]
    images = encode_heatmaps(points, (32, 48), 2.0)
    flat, plateau = torch.zeros(2, 1, 32, 48), torch.zeros(1, 1, 32, 48)
    flat[1], plateau[:, :, 10:14, 10:20] = 0.5, 1
    twice = encode_heatmaps(torch.tensor([[[12.0, 9.0]]]), (32, 48), 2.0)
    twice = torch.maximum(twice, twice.flip(3))
    noise = torch.randn(3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, flat, plateau, twice, noise, -noise.abs()])
    decoded, _ = decode_dark(images[: len(points)], 2.0)
    inside = ((points > 0) & (points < torch.tensor([47, 31]))).all(-1)
    assert (decoded - points)[inside].abs().max() < 0.05  # the maps are what they are meant to be
    session = onnxruntime.InferenceSession(maps)
    found = session.run(["points", "confidence"], {"image": images.numpy()})
    expected = predict_views(Maps(), images, 2.0)
    assert found[0].shape == (len(images), 29, 2)
    assert np.abs(found[0] - expected["points"].numpy()).max() <= 0.01
    assert np.allclose(found[1], expected["confidence"], atol=1e-6)


def test_a_file_that_differs_is_not_left(trained, tmp_path, monkeypatch):
    def written(predictor, file, opset):
        file.write_bytes(b"another model")

    monkeypatch.setattr(script, "write_onnx", written)
    monkeypatch.setattr(script, "largest_differences", lambda *_: dict.fromkeys(OUTPUTS, 0.02))
    with pytest.raises(UserError, match=r"over 0\.01 off from PyTorch"):
        script.main(["--checkpoint", str(trained), "--output", str(tmp_path / "new.onnx")])
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_sees_a_difference(maps):
    class Shifted(Maps):
        def forward(self, image):
            return super().forward(image.roll(1, dims=3))

    picture = encode_heatmaps(torch.tensor([[[20.0, 15.0]]]), (32, 48), 2.0)
    assert max(script.largest_differences(predictor_of(Maps()), maps, [picture]).values()) <= 1e-4
    assert script.largest_differences(predictor_of(Shifted()), maps, [picture])["points"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("built_in", [True, False])
def test_what_was_not_taught_is_not_in_the_file(built_in, tmp_path):
    """A model of one landmark more than it was taught; without Go there is no measurement of it, without stage none."""
    torch.manual_seed(0)
    anatomy = ANATOMY if built_in else Anatomy(make_schema({"name": "hand", "names": ["P1", "P2", "Go"]}, ""))
    points = np.random.default_rng(0).random((1, len(anatomy.names), 2))
    points[0, anatomy.names.index("Go")] = np.nan
    model = HRNetLandmarks("hrnet_w18_small", (64, 64), 16, anatomy=anatomy).eval()
    script.main(["--checkpoint", str(saved(model, tmp_path / "best", points, None))])
    session = onnxruntime.InferenceSession(tmp_path / "landmarks.onnx")
    images = torch.rand(2, 1, 64, 64)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images.numpy()}), strict=True))
    known = [i for i, name in enumerate(anatomy.names) if name != "Go"]
    kept = [i for i, m in enumerate(anatomy.measurements) if "Go" not in m.landmarks]
    assert names == ["points", "confidence", "measurements"][: 3 if built_in else 2]
    with torch.inference_mode():
        expected = predict_views(model, images, 1.5)
    assert np.allclose(found["points"], expected["points"][:, known], atol=0.01)
    if built_in:
        assert 0 < len(kept) < len(anatomy.measurements)
        assert np.allclose(found["measurements"], expected["measurements"][:, kept], atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["landmarks"]) == [anatomy.names[i] for i in known]
    assert ("cvm" in str(facts).lower()) is False


def test_mistakes_are_one_line(trained, tmp_path, monkeypatch):
    for arguments, text in [
        (["--checkpoint", tmp_path], "is not a model folder"),
        (["--checkpoint", trained, "--check", tmp_path / "none.png"], "none.png: no such file"),
        (["--checkpoint", trained, "--opset", 7], "invalid choice: 7"),
    ]:
        done = run(SCRIPT, *arguments, "--output", tmp_path / "file.onnx")
        assert done.returncode == 2
        assert text in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    monkeypatch.setitem(script.sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime missing: pip install onnx onnxscript onnxruntime"):
        script.main(["--checkpoint", str(trained)])
    assert list(tmp_path.iterdir()) == []
