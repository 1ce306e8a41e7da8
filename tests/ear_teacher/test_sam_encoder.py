"""SAM's encoder: weights of a SAM on the disk, other input sizes, what is frozen and what is kept for backward."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, SamModel

from core.errors import UserError
from ear.sam_encoder import SAM_CONFIGS, SamEncoder

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def tiny(size=64, seed=0, **arguments):
    torch.manual_seed(seed)
    return SamEncoder("tiny", sam_image_size=size, **{"freeze_layers": 0, **arguments})


def pictures(count, size):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def kept_bytes(model, images):
    """What a forward pass keeps for the backward pass, each storage once, without the model's own tensors."""
    own, kept = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    assert output.requires_grad
    return sum(kept.values())


# ------------------------------------------------------------------------------------------------ weights of a SAM


@torch.no_grad()
def test_a_sam_gives_the_features_that_transformers_gives(sam, sam_folder):
    """At its own 1024 px, of normalised pictures; ours takes them in [-1, 1]."""
    encoder = SamEncoder(sam_model=sam_folder, freeze_layers=1).eval()
    images = pictures(1, 1024)
    expected = sam.vision_encoder(((images + 1) / 2 - MEAN) / STD).last_hidden_state
    assert encoder(images).shape == (1, 64, 64, 64)
    assert (encoder.channels, encoder.grid) == (64, 64)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=(2, 3)).min() > 1e-3  # or all would be equal


@pytest.mark.parametrize("size", [672, 448, 224, 128])
def test_at_another_size_positions_are_resized_bicubically(sam, sam_folder, size):
    encoder = SamEncoder(sam_model=str(sam_folder), sam_image_size=size, freeze_layers=0)
    loaded = sam.vision_encoder.pos_embed.detach()
    channels_first = loaded.permute(0, 3, 1, 2)
    expected = F.interpolate(channels_first, size=(size // 16, size // 16), mode="bicubic", antialias=True)
    assert encoder.vision.pos_embed.requires_grad
    torch.testing.assert_close(encoder.vision.pos_embed.detach(), expected.permute(0, 2, 3, 1))
    assert encoder.vision.pos_embed.detach().std() > 0.1 * loaded.std()
    for name, tensor in sam.vision_encoder.state_dict().items():  # and nothing else is changed
        if name != "pos_embed":
            assert torch.equal(encoder.vision.state_dict()[name], tensor), name
    assert encoder(pictures(1, 64)).shape == (1, 64, size // 16, size // 16)


@torch.no_grad()
def test_half_precision_on_the_disk_is_float32_in_memory(sam, tmp_path):
    sam_half = SamModel(sam.config).half()
    sam_half.load_state_dict(sam.state_dict())
    sam_half.save_pretrained(tmp_path)
    encoder = SamEncoder(sam_model=tmp_path, sam_image_size=224, freeze_layers=0)
    assert {x.dtype for x in (*encoder.parameters(), *encoder.buffers())} == {torch.float32}
    assert encoder(pictures(1, 32)).dtype == torch.float32


def no_such_folder(sam_folder, folder):
    return folder


def no_sam_on_the_hub(sam_folder, folder):
    return "facebook/sam-vit-base"  # the tests are offline


def an_empty_folder(sam_folder, folder):
    folder.mkdir()
    return folder


def weights_without_a_config(sam_folder, folder):
    folder.mkdir()
    shutil.copy(sam_folder / "model.safetensors", folder)
    return folder


def a_config_without_weights(sam_folder, folder):
    folder.mkdir()
    shutil.copy(sam_folder / "config.json", folder)
    return folder


def a_broken_config(sam_folder, folder):
    shutil.copytree(sam_folder, folder)
    (folder / "config.json").write_text("{")
    return folder


def a_config_of_nonsense(sam_folder, folder):
    shutil.copytree(sam_folder, folder)
    (folder / "config.json").write_text('{"model_type": "sam", "vision_config": {"hidden_size": "wide"}}')
    return folder


def broken_weights(sam_folder, folder):
    shutil.copytree(sam_folder, folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(100_000)
    return folder


def a_config_of_another_size(sam_folder, folder):
    shutil.copytree(sam_folder, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))
    return folder


def another_model(sam_folder, folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(folder)
    return folder


def a_file(sam_folder, folder):
    folder.with_suffix(".pth").write_bytes(b"weights")
    return folder.with_suffix(".pth")


@pytest.mark.parametrize(
    "wrong",
    [no_such_folder, no_sam_on_the_hub, an_empty_folder, weights_without_a_config, a_config_without_weights,
     a_broken_config, a_config_of_nonsense, broken_weights, a_config_of_another_size, another_model, a_file],
)  # fmt: skip
def test_what_is_no_sam_is_one_clear_line(sam_folder, tmp_path, capfd, wrong):
    name = wrong(sam_folder, tmp_path / "named")
    with pytest.raises(UserError) as caught:
        SamEncoder(sam_model=name, sam_image_size=64)
    assert str(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    if "cannot load" in str(caught.value):
        assert "--sam_model FOLDER" in str(caught.value)
        assert "--sam_config base" in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


# ------------------------------------------------------------------------------------------------ random weights


@pytest.mark.parametrize("size", [1024, 128])
@pytest.mark.parametrize("config", ["base", "tiny"])
def test_random_weights_have_the_usual_spread(config, size):
    """A standard deviation of 0.02; transformers' own is 1e-10. Positions too, at every input size."""
    torch.manual_seed(0)
    encoder = SamEncoder(config, sam_image_size=size, freeze_layers=0)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1 and "rel_pos" not in name:  # these start at zero in SAM, too
            assert 0.01 < parameter.std() < 0.03, name


@torch.no_grad()
@pytest.mark.parametrize("config", ["base", "tiny"])
def test_random_weights_tell_pictures_apart(config):
    torch.manual_seed(0)
    features = SamEncoder(config, sam_image_size=128, freeze_layers=0).eval()(pictures(2, 128))
    spread = features.std(dim=(0, 2, 3)).mean()
    assert spread > 0.1
    assert (features[0] - features[1]).abs().mean() > 0.3 * spread


def test_the_same_seed_gives_the_same_weights():
    ours, same, other = (tiny(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, same[name]) for name, tensor in ours.items())
    assert not torch.equal(ours["vision.pos_embed"], other["vision.pos_embed"])
    assert not torch.equal(ours["vision.neck.conv1.weight"], other["vision.neck.conv1.weight"])


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("grid", [64, 42, 28, 14, 8])
def test_every_size_gives_its_grid(grid):
    encoder = tiny(16 * grid)
    with torch.no_grad():
        assert encoder(pictures(1, 32)).shape == (1, 64, grid, grid)
    assert encoder.grid == grid


@torch.no_grad()
def test_any_picture_is_brought_to_the_input_size():
    encoder = tiny(64).eval()
    images = pictures(2, 64)
    enlarged = F.interpolate(images, size=(256, 256), mode="nearest")
    torch.testing.assert_close(encoder(F.avg_pool2d(enlarged, 4)), encoder(images))
    assert encoder(pictures(1, 128)[..., :50]).shape == (1, 64, 4, 4)
    constant = torch.full((1, 3, 20, 30), 0.3)
    torch.testing.assert_close(encoder(constant), encoder(torch.full((1, 3, 64, 64), 0.3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0, -64, 8, 100, 1000])
def test_a_size_that_patches_do_not_divide_is_refused(size):
    with pytest.raises(UserError, match=rf"--sam_image_size {size}\b.*16") as caught:
        SamEncoder("tiny", sam_image_size=size)
    assert "\n" not in str(caught.value)


def test_a_resized_encoder_can_be_resized_again():
    """Positions keep what they learn: whether they learn does not change."""
    for frozen in (True, False):
        encoder = tiny(128, freeze_embeddings=frozen)
        encoder.resize(64)
        assert encoder.vision.pos_embed.requires_grad is not frozen
        assert encoder.vision.pos_embed.shape == (1, 4, 4, 64)
        with torch.no_grad():
            assert encoder(pictures(1, 32)).shape == (1, 64, 4, 4)


# ------------------------------------------------------------------------------------------------ frozen, checkpointed


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("layers", [0, 2, 4])
def test_the_first_blocks_are_frozen_and_nothing_else(layers, embeddings):
    encoder = tiny(freeze_layers=layers, freeze_embeddings=embeddings)
    frozen = {name for name, parameter in encoder.vision.named_parameters() if not parameter.requires_grad}
    prefixes = tuple(f"layers.{number}." for number in range(layers)) + ("patch_embed.", "pos_embed") * embeddings
    expected = {name for name, _ in encoder.vision.named_parameters() if prefixes and name.startswith(prefixes)}
    assert frozen == expected
    encoder(pictures(2, 64)).square().mean().backward()
    for name, parameter in encoder.vision.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_a_number_of_blocks_above_what_there_is_means_all_of_them():
    layers = tiny(freeze_layers=6).vision.layers
    assert len(layers) == 4
    assert not any(parameter.requires_grad for parameter in layers.parameters())
    with pytest.raises(UserError, match="--freeze_layers -1"):
        tiny(freeze_layers=-1)


@pytest.mark.parametrize(
    "frozen", [{"freeze_layers": 0}, {"freeze_layers": 2}, {"freeze_layers": 2, "freeze_embeddings": True}]
)
def test_gradient_checkpointing_changes_nothing_but_the_memory(frozen):
    """Nor may it warn: a frozen first block has inputs without gradients."""
    plain, frugal = (tiny(128, gradient_checkpointing=switch, **frozen) for switch in (False, True))
    images, results = pictures(2, 32), []
    for encoder in (plain, frugal):
        encoder.train()
        loss = encoder(images).square().mean()
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in encoder.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        if gradient is None:
            assert results[1][1][name] is None
        else:
            torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-5, atol=1e-9, msg=name)
    assert kept_bytes(frugal, images) < 0.5 * kept_bytes(plain, images)


def test_checkpointing_is_for_training_only():
    encoder, images = tiny(128, gradient_checkpointing=True), pictures(1, 32)
    assert kept_bytes(encoder.eval(), images) > 1.5 * kept_bytes(encoder.train(), images)


def test_blocks_that_are_frozen_with_the_embeddings_keep_nothing():
    """With 3 of 4 blocks frozen as much is kept as with one block alone; with learning embeddings, all of them."""
    images = pictures(2, 32)
    everything, one, frozen, blocks_only = (
        kept_bytes(tiny(128, **arguments).train(), images)
        for arguments in (
            {"freeze_layers": 0},
            {"freeze_layers": 4, "freeze_embeddings": True},
            {"freeze_layers": 3, "freeze_embeddings": True},
            {"freeze_layers": 3},
        )
    )
    assert one < frozen < 0.5 * everything
    assert blocks_only > 2 * frozen
    hidden = tiny(128, freeze_layers=3, freeze_embeddings=True).train()
    seen = []
    for number, layer in enumerate(hidden.vision.layers):
        layer.register_forward_hook(lambda _, __, output, number=number: seen.append((number, output.requires_grad)))
    hidden(images)
    assert seen == [(0, False), (1, False), (2, False), (3, True)]


def test_the_tiny_one_is_small():
    assert count(tiny().parameters()) < 1_500_000
    assert set(SAM_CONFIGS) == {"base", "tiny"}
