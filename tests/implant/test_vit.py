"""The classifier's ViT: sizes, stems, halves, and weights of other programs."""

import pytest
import torch
from torch import nn

from core.checkpoints import save_model
from core.errors import UserError
from implants.vit import WIDTHS, ImplantClassifier, ImplantVit, load_classifier


def tiny(**arguments):
    torch.manual_seed(0)
    return ImplantClassifier("tiny", ["a", "b", "c"], image_size=32, **arguments)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8)])
def test_sizes_are_those_of_the_paper(size, millions):
    """Of Steiner et al.'s ViTs at 224 px, without a head: 5.7, 22 and 86 million with one of 1000 classes."""
    vit = ImplantVit(size)
    assert vit.width == WIDTHS[size]
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("conv_stem", [False, True])
def test_grey_and_colour_of_equal_channels_are_the_same(conv_stem):
    model = tiny(conv_stem=conv_stem).eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model(images), model(images.expand(-1, 3, -1, -1)))
    features, tokens = model.backbone(images)
    assert (features.shape, tokens.shape) == ((2, 192), (2, 4, 192))


@pytest.mark.parametrize("conv_stem", [False, True])
def test_the_halves_are_the_whole(conv_stem):
    vit = ImplantVit("tiny", 32, conv_stem)
    lower, upper = vit.halves()
    parts = [p for part in (*lower, *upper) for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
    assert {id(p) for p in parts} == {id(p) for p in vit.parameters()}
    assert len(parts) == len({id(p) for p in parts})
    assert sum(part in upper for part in vit.vit.blocks) == 6


def test_a_size_that_patches_do_not_divide():
    with pytest.raises(UserError, match="--image_size 40 is no multiple of 16"):
        ImplantVit("tiny", 40)


def test_imagenet_weights_have_no_convolutional_stem(tmp_path):
    with pytest.raises(UserError, match="--no-pretrained"):
        ImplantVit("tiny", 32, conv_stem=True, pretrained=True)


# ------------------------------------------------------------------------------------------------------ what is loaded


def test_a_folder_comes_back_at_another_size(tmp_path):
    model = tiny(conv_stem=True).eval()
    save_model(tmp_path / "best", model, {"kind": "implant classifier", "taught": {}, "model": model.arguments})
    images = torch.rand(2, 1, 32, 32)
    again = load_classifier(tmp_path, 32)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    assert again.classes == ["a", "b", "c"]
    larger = load_classifier(tmp_path / "best", 64)
    assert larger(torch.rand(1, 1, 64, 64)).shape == (1, 3)
    taught = {"model": {"a": 1, "b": 1, "c": 1}}
    save_model(tmp_path / "best", model, {"kind": "implant classifier", "taught": taught, "model": model.arguments})
    assert load_classifier(tmp_path, 32, "model").taught == taught["model"]
    with pytest.raises(UserError, match="classifies model, not company"):
        load_classifier(tmp_path, 32, "company")


@pytest.mark.parametrize(
    "names",
    [
        {"backbone.vit.": "backbone.", "embedding.": "embedding_layer.", "head.": "classifier."},
        {"backbone.vit.": "module.vit.", "embedding.": "module.vit.head.0.", "head.": "module.fc."},
        {"backbone.vit.": "", "embedding.": "embedding.1.", "head.": "classifier.3."},
    ],
)
def test_legacy_weights_are_known_by_their_shapes(tmp_path, names):
    model = tiny().eval()
    legacy = {}
    for name, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        legacy[names[prefix] + name.removeprefix(prefix)] = value
    torch.save({"model_state_dict": legacy, "epoch": 7}, tmp_path / "vit_company.pth")
    again = load_classifier(tmp_path / "vit_company.pth", 32)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(again(images), model(images))
    assert again.classes == ["0", "1", "2"]


def test_legacy_weights_without_a_head_have_no_classes(tmp_path):
    state = {name: value for name, value in tiny().state_dict().items() if not name.startswith("head.")}
    torch.save(state, tmp_path / "vit.pth")
    assert load_classifier(tmp_path / "vit.pth", 32).classes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"fc.weight": torch.zeros(3, 3)}, "holds no ViT"),
        (lambda state: {k: v for k, v in state.items() if not k.startswith("embedding")}, "no linear layer"),
        (lambda state: state | {"other.weight": torch.zeros(4, 192)}, "several linear layers on 192"),
        (lambda state: {k: v for k, v in state.items() if "blocks.11." not in k}, "do not fit the model"),
    ],
)
def test_other_weights_are_refused_in_one_line(tmp_path, change, message):
    torch.save(change(tiny().state_dict()), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_classifier(tmp_path / "vit.pth", 32)
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_no_classifier(tmp_path):
    save_model(tmp_path, nn.Linear(1, 1), {"kind": "implant regressor", "taught": {}, "model": {}})
    with pytest.raises(UserError, match="of kind 'implant regressor', not 'implant classifier'"):
        load_classifier(tmp_path, 32)
