"""The masked autoencoder: sizes, the order of tokens, what it sees and what it does not, features, other cubes."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.checkpoints import load_model_folder, save_model
from core.errors import UserError
from core.schedules import parameter_groups
from hsi.loss import MAESpectralLoss
from hsi.mae_spectral import VARIANTS, Encoder, MAESpectral
from hsi.wavelengths import DEFAULT_WAVELENGTHS

PATCH, BANDS, SIZE = 10, 5, 40
GRID = (6, 4, 4)
COUNTS = {  # parameters at 500×500 px and 30 bands: all, encoder
    "mae_tiny": (7_272_533, 6_016_896),
    "mae_small": (26_965_109, 22_650_624),
    "mae_base": (103_619_765, 87_768_576),
    "mae_medium": (59_604_789, 52_247_552),
    "mae_large": (333_484_597, 305_928_192),
    "mae_huge": (661_889_077, 634_201_600),
}
WIDTHS = {"embed_dim": 16, "encoder_depth": 2, "encoder_num_heads": 2}
WIDTHS |= {"decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}


def small(seed=0, **changes):
    """A narrow model of 6 × 4 × 4 tokens, in eval mode, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    model = MAESpectral(**{"img_size": SIZE, "patch_size": (PATCH, BANDS), "in_chans": 30} | WIDTHS | changes)
    bands = len(model.mean)
    model.set_statistics(np.linspace(0.1, 0.4, bands), np.linspace(0.05, 0.1, bands))
    return model.eval()


def cubes(number=2, seed=1, shape=(30, SIZE, SIZE)):
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(seed))


def noise_for(model, number=2, seed=2):
    return torch.rand(number, model.n_noise, generator=torch.Generator().manual_seed(seed))


def values_of(token, cube):
    """The part of a cube (C, H, W) that token (group, row, column) covers."""
    s, r, c = token
    return cube[s * BANDS : (s + 1) * BANDS, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]


def tokens_where(which):
    """(cube, (group, row, column)) of each True in (B, N), counted by hand."""
    return [(int(b), (int(n) // 16, int(n) // 4 % 4, int(n) % 4)) for b, n in which.nonzero()]


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_of_parameters(name):
    with torch.device("meta"):
        model = MAESpectral(**VARIANTS[name])
    counts = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.encoder))
    assert tuple(counts) == COUNTS[name]
    assert (model.grid, model.n_tokens) == ((6, 20, 20), 2400)


def test_all_variants_are_pinned_and_medium_is_the_default():
    assert list(VARIANTS) == list(COUNTS)
    with torch.device("meta"):
        assert MAESpectral().arguments == MAESpectral(**VARIANTS["mae_medium"]).arguments


def test_one_token_in_five_is_kept():
    with torch.device("meta"):
        model = MAESpectral(**VARIANTS["mae_tiny"])
    assert model.n_visible == 480
    assert int(2400 * (1 - 0.8)) == 479  # what a cut-off instead of a rounding would give
    assert small(mask_ratio=0.999).n_visible == 1  # never none
    assert small(mask_ratio=0).n_visible == 96


def test_a_training_step_at_full_size():
    torch.manual_seed(0)
    model = MAESpectral(**VARIANTS["mae_tiny"])
    model.set_statistics(torch.full((30,), 0.5), torch.full((30,), 0.3))
    criterion = MAESpectralLoss(model.mean, model.std, 0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    cube, noise = cubes(1, shape=(30, 500, 500)), noise_for(model, 1)
    foreground = torch.ones(1, 500, 500, dtype=torch.bool)
    loss, _ = criterion(model(cube, noise), foreground)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        prediction = model(cube, noise)
    assert prediction["patches"].shape == (1, 6, 400, 3125)
    assert int(prediction["hidden"].sum()) == 1920
    assert criterion(prediction, foreground)[0] < loss


@torch.no_grad()
def test_the_encoder_of_mae_base_at_full_size():
    encoder = Encoder(3125, 768, 12, 12, (6, 20, 20))
    encoded = encoder(torch.randn(1, 480, 3125), torch.arange(0, 2400, 5)[None])
    assert encoded.shape == (1, 480, 768)
    assert encoded.isfinite().all()


@pytest.mark.parametrize("decoder", ["full", "cross"])
@pytest.mark.parametrize(
    ("bands", "size"), [(10, (250, 250)), (30, (500, 500)), (60, (250, 250)), (30, (250, 500)), (60, (500, 250))]
)
@torch.no_grad()
def test_other_sizes_and_numbers_of_bands(bands, size, decoder):
    model = small(img_size=size, patch_size=(25, 5), in_chans=bands, decoder=decoder)
    grid = (bands // 5, size[0] // 25, size[1] // 25)
    cube = cubes(1, shape=(bands, *size))
    prediction = model(cube)
    assert prediction["patches"].shape == (1, grid[0], grid[1] * grid[2], 3125)
    result, hidden = model.assemble(prediction, cube)
    assert result.shape == hidden.shape == cube.shape
    assert torch.equal(result[~hidden], cube[~hidden])
    assert model.encode(cube).grid.shape == (1, *grid, 16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"img_size": 44}, "patches of 10 px do not divide 44×44 px"),
        ({"img_size": (40, 45)}, "patches of 10 px do not divide 40×45 px"),
        ({"in_chans": 31}, "patches of 5 bands do not divide 31"),
        ({"in_chans": 0}, "patches of 5 bands do not divide 0"),
        ({"encoder_num_heads": 3}, "3 heads and 4 must divide the encoder's width of 16"),
        ({"decoder_num_heads": 3}, "3 heads and 4 must divide the decoder's width of 8"),
        ({"embed_dim": 18}, "the encoder's width of 18"),
        ({"mask_ratio": 1}, "--mask_ratio must be in"),
        ({"mask_ratio": -0.1}, "--mask_ratio must be in"),
        ({"decode_ratio": 0}, "--decode_ratio in"),
        ({"decoder": "half"}, "no decoder half: full or cross"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, text):
    with pytest.raises(UserError) as caught:
        small(**changes)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ tokens


def test_tokens_are_in_the_documented_order():
    """Every voxel holds its own number; tokens and their values are found by counting."""
    model = small(img_size=(40, 20))
    cube = torch.arange(30 * 40 * 20.0).view(1, 30, 40, 20)
    tokens = model.patchify(cube)
    assert tokens.shape == (1, 6 * 4 * 2, 500)
    n, p = np.mgrid[:48, :500]
    s, r, c = n // 8, n // 2 % 4, n % 2
    band, y, x = p // 100, p // 10 % 10, p % 10
    np.testing.assert_array_equal(tokens[0], ((s * 5 + band) * 40 + r * 10 + y) * 20 + c * 10 + x)
    assert torch.equal(model.unpatchify(tokens), cube)


@pytest.mark.parametrize(("bands", "size"), [(30, (40, 40)), (10, (20, 60)), (60, (60, 20))])
def test_unpatchify_is_the_exact_inverse(bands, size):
    model = small(img_size=size, in_chans=bands)
    cube = cubes(3, shape=(bands, *size))
    tokens = model.patchify(cube)
    assert torch.equal(model.unpatchify(tokens), cube)
    assert torch.equal(model.patchify(model.unpatchify(tokens)), tokens)


def test_normalisation_is_that_of_each_band():
    model, cube = small(), cubes()
    z = (cube.numpy() - model.mean.numpy()[:, None, None]) / model.std.numpy()[:, None, None]
    np.testing.assert_allclose(model.normalize(cube), z, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.denormalize(model.normalize(cube)), cube)
    torch.testing.assert_close(model.patchify(model.normalize(cube)), model(cube)["target"].flatten(1, 2))


def test_masks_are_fair():
    """Always as many; each token as likely; places of one column, and all others, independent of each other."""
    model, number = small(), 20_000
    visible, hidden = model.draw_mask(torch.rand(number, 96, generator=torch.Generator().manual_seed(0)))
    assert visible.shape == (number, 19)
    assert (visible.diff(dim=1) > 0).all()
    assert (hidden.sum(dim=1) == 77).all()
    assert not hidden.gather(1, visible).any()
    share, seen = 19 / 96, (~hidden).double()
    error = (share * (1 - share) / number) ** 0.5
    assert (seen.mean(dim=0) - share).abs().max() < 5 * error
    correlation = torch.corrcoef(seen.T) - torch.eye(96)
    expected = -1 / 95  # of draws without replacement
    assert (correlation[~torch.eye(96, dtype=torch.bool)] - expected).abs().max() < 5.5 / number**0.5
    same_column = correlation.view(6, 16, 6, 16).diagonal(dim1=1, dim2=3)[~torch.eye(6, dtype=torch.bool)]
    assert abs(float(same_column.mean()) - expected) < 5 / (number * 30 * 16 / 2) ** 0.5


def test_the_lowest_noise_is_seen():
    model, noise = small(), noise_for(small())
    hidden = model(cubes(), noise)["hidden"].flatten(1)
    for row, of_cube in zip(noise[:, :96].numpy(), hidden, strict=True):
        assert set(np.argsort(row)[:19]) == set(np.flatnonzero(~of_cube.numpy()))
    assert torch.equal(model(cubes(seed=9), noise)["hidden"].flatten(1), hidden)
    assert not torch.equal(model(cubes())["hidden"], model(cubes())["hidden"])  # drawn where not given


# ------------------------------------------------------------------------------------------------ what it sees


@pytest.mark.parametrize("decoder", ["full", "cross"])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_hidden_voxels_are_not_seen_and_all_visible_ones_are(decoder, training):
    model = small(decoder=decoder).train(training)
    cube, noise = cubes(), noise_for(model)
    before = model(cube, noise)["patches"]
    _, hidden = model.draw_mask(noise[:, :96])
    changed = cube.clone()
    for b, token in tokens_where(hidden):
        values_of(token, changed[b])[:] = torch.rand(BANDS, PATCH, PATCH) * 50
    assert not torch.equal(changed, cube)
    assert torch.equal(model(changed, noise)["patches"], before)
    for b, token in tokens_where(~hidden)[::7]:
        changed = cube.clone()
        values_of(token, changed[b])[-1, -1, -1] += 5  # a single voxel
        after = model(changed, noise)["patches"]
        assert not torch.equal(after[b], before[b])
        assert torch.equal(after[1 - b], before[1 - b])  # and no other cube


@torch.no_grad()
def test_only_which_tokens_are_visible_matters():
    model = small()
    cube, noise = cubes(), noise_for(model)
    visible, _ = model.draw_mask(noise[:, :96])
    other = noise.clone()
    other[:, :96] = other[:, :96] * 0.5 + 0.5
    other[:, :96].scatter_(1, visible, noise[:, :96].gather(1, visible.flip(1)) * 0.5)
    assert torch.equal(model(cube, noise)["patches"], model(cube, other)["patches"])
    assert not torch.equal(model(cube, noise)["patches"], model(cube, 1 - noise)["patches"])


@torch.no_grad()
def test_every_visible_token_has_its_own_position():
    model = small(encoder_depth=1)
    model.encoder.blocks = nn.ModuleList()
    target, noise = model.patchify(model.normalize(cubes())), noise_for(model)
    visible, _ = model.draw_mask(noise[:, :96])
    encoded = model.encoder(target.gather(1, visible[..., None].expand(-1, -1, 500)), visible)
    plane, spectrum = model.encoder.positions.plane[0], model.encoder.positions.spectrum[0]
    for b in range(2):
        for k, n in enumerate(visible[b].tolist()):
            expected = model.encoder.embed(target[b, n]) + plane[n % 16] + spectrum[n // 16]
            torch.testing.assert_close(encoded[b, k], model.encoder.norm(expected), rtol=1e-4, atol=1e-5)
    positions = model.encoder.positions()[0]
    assert torch.cdist(positions, positions).add(torch.eye(96)).min() > 0.01  # no two alike


@torch.no_grad()
def test_the_full_decoder_puts_visible_tokens_where_they_belong():
    model = small()
    model.decoder.blocks = nn.ModuleList()
    cube, noise = cubes(), noise_for(model)
    visible, hidden = model.draw_mask(noise[:, :96])
    target = model.patchify(model.normalize(cube))
    encoded = model.encoder(target.gather(1, visible[..., None].expand(-1, -1, 500)), visible)
    patches = model(cube, noise)["patches"].flatten(1, 2)
    plane, spectrum = model.decoder.positions.plane[0], model.decoder.positions.spectrum[0]
    finish = nn.Sequential(model.decoder.norm, model.decoder.head)
    for b in range(2):
        place = {n: k for k, n in enumerate(visible[b].tolist())}
        for n in range(96):
            token = model.decoder.mask_token[0, 0] if hidden[b, n] else model.decoder.embed(encoded[b, place[n]])
            expected = finish(token + plane[n % 16] + spectrum[n // 16])
            torch.testing.assert_close(patches[b, n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["full", "cross"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_every_parameter_gets_a_gradient(decoder, norm_pix_loss):
    """DistributedDataParallel waits for those that get none."""
    model = small(decoder=decoder, norm_pix_loss=norm_pix_loss).train()
    criterion = MAESpectralLoss(model.mean, model.std, 0, 1, norm_pix_loss=norm_pix_loss)
    loss, _ = criterion(model(cubes(), noise_for(model)), torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_weights_decay_and_places_do_not():
    model = small()
    decayed, rest = (
        {id(p) for group in parameter_groups(model, 1.0, 0.05) if bool(group["weight_decay"]) == decays
         for p in group["params"]} for decays in (True, False)
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert id(parameter) in (decayed if is_matrix else rest), name
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


# ------------------------------------------------------------------------------------------------ decoding


@torch.no_grad()
def test_cross_decodes_whole_columns_while_training():
    model = small(decoder="cross", decode_ratio=0.25).train()
    cube, noise = cubes(64), noise_for(model, 64)
    prediction = model(cube, noise)
    columns = prediction["columns"]
    assert columns.shape == (64, 4)
    assert (columns.diff(dim=1) > 0).all()
    assert set(columns.flatten().tolist()) == set(range(16))
    assert prediction["patches"].shape == prediction["target"].shape == (64, 6, 4, 500)
    target = model.patchify(model.normalize(cube)).unflatten(1, (6, 16))
    _, hidden = model.draw_mask(noise[:, :96])
    for b in range(64):
        assert torch.equal(prediction["target"][b], target[b][:, columns[b]])
        assert torch.equal(prediction["hidden"][b], hidden[b].view(6, 16)[:, columns[b]])
    other = noise.clone()
    other[:, 96:] = 1 - other[:, 96:]
    again = model(cube, other)
    assert torch.equal(model.draw_mask(other[:, :96])[1], hidden)  # what is decoded does not decide what is hidden
    assert not torch.equal(again["columns"], columns)


@torch.no_grad()
def test_cross_decodes_every_column_in_eval_and_each_by_itself():
    model = small(decoder="cross")
    cube, noise = cubes(), noise_for(model)
    whole = model.eval()(cube, noise)
    part = model.train()(cube, noise)
    assert whole["columns"].tolist() == [list(range(16))] * 2
    assert whole["patches"].shape == (2, 6, 16, 500)
    for b in range(2):
        chosen = whole["patches"][b][:, part["columns"][b]]
        torch.testing.assert_close(part["patches"][b], chosen, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_full_decodes_every_column_always():
    model, cube = small(), cubes()
    prediction = model.train()(cube)
    assert prediction["columns"].tolist() == [list(range(16))] * 2
    torch.testing.assert_close(prediction["target"].flatten(1, 2), model.patchify(model.normalize(cube)))


@pytest.mark.parametrize("decoder", ["full", "cross"])
@torch.no_grad()
def test_assembled_cubes_keep_what_was_visible(decoder):
    model = small(decoder=decoder)
    cube, noise = cubes(3), noise_for(model, 3)
    prediction = model(cube, noise)
    result, hidden = model.assemble(prediction, cube)
    assert torch.equal(result[~hidden], cube[~hidden])
    assert hidden.sum(dim=(1, 2, 3)).tolist() == [77 * 500] * 3
    mean, std = (x.view(-1, 1, 1) for x in (model.mean, model.std))
    for b, token in tokens_where(prediction["hidden"].flatten(1)):
        s, r, c = token
        made = prediction["patches"][b, s, r * 4 + c].view(BANDS, PATCH, PATCH)
        bands = slice(s * BANDS, (s + 1) * BANDS)
        torch.testing.assert_close(values_of(token, result[b]), made * std[bands] + mean[bands])
        assert values_of(token, hidden[b]).all()
    perfect, _ = model.assemble(prediction | {"patches": prediction["target"]}, cube)
    torch.testing.assert_close(perfect, cube)


@pytest.mark.parametrize("decoder", ["full", "cross"])
@torch.no_grad()
def test_norm_pix_loss_is_that_of_he_et_al(decoder):
    """As in their paper: targets become z-scores of their own token; the error is over hidden tokens."""
    plain, ours = (small(decoder=decoder, norm_pix_loss=flag).train() for flag in (False, True))
    ours.load_state_dict(plain.state_dict())
    cube, noise = cubes(), noise_for(plain)
    raw = plain(cube, noise)
    target, hidden = raw["target"].double(), raw["hidden"]
    target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    error = ((raw["patches"] - target) ** 2).mean(dim=-1)
    per_cube = [error[b][hidden[b]].mean() for b in range(2)]  # cross decodes another number of hidden tokens in each
    criterion = MAESpectralLoss(ours.mean, ours.std, 0, 1, norm_pix_loss=True)
    _, parts = criterion(ours(cube, noise), torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    assert float(parts["mse"]) == pytest.approx(float(sum(per_cube) / 2), rel=1e-5)


# ------------------------------------------------------------------------------------------------ features


@torch.no_grad()
def test_features_do_not_depend_on_the_batch():
    model, cube = small(), cubes(5)
    together, again = model.encode(cube), model.encode(cube)
    for name in ("tokens", "pooled", "grid"):
        assert torch.equal(getattr(together, name), getattr(again, name))
    for i in range(5):
        alone = model.encode(cube[i : i + 1])
        for name in ("tokens", "pooled", "grid"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-5, atol=1e-5)
    reverse = model.encode(cube.flip(0))
    torch.testing.assert_close(reverse.pooled.flip(0), together.pooled, rtol=1e-5, atol=1e-5)
    assert torch.cdist(together.pooled, together.pooled).add(torch.eye(5)).min() > 1e-4


@torch.no_grad()
def test_features_are_in_grid_order():
    """With the blocks' outputs at zero nothing mixes: each place of the grid depends on its own patch alone."""
    model, cube = small(), cubes(1)
    features = model.encode(cube)
    assert features.grid.shape == (1, *GRID, 16)
    assert torch.equal(features.tokens.unflatten(1, GRID), features.grid)
    torch.testing.assert_close(features.pooled, features.grid.mean(dim=(1, 2, 3)))
    changed = cube.clone()
    values_of((2, 1, 3), changed[0])[:] += 1
    assert (model.encode(changed).grid != features.grid).any(dim=-1).all()  # as it is, all see all
    for block in model.encoder.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    differs = (model.encode(changed).grid != model.encode(cube).grid).any(dim=-1)[0]
    assert differs.nonzero().tolist() == [[2, 1, 3]]


# ------------------------------------------------------------------------------------------------ folders


NM = list(DEFAULT_WAVELENGTHS)


@pytest.fixture
def stored(tmp_path):
    """Stores a model whose position embeddings have moved, as by training: (folder, state)."""

    def store(**changes):
        model = small(**changes)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "positions" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / "best"
        config = {"kind": "masked autoencoder", "model": model.arguments, "wavelengths": NM, "h5_key": "cube"}
        config |= {"unit": "1", "statistics": {}, "split_fractions": [0.1, 0.1], "taught": {"bands": {}}}
        save_model(folder, model, config)
        return folder, {name: tensor.clone() for name, tensor in model.state_dict().items()}

    return store


PLACES = [f"{part}.positions.{axis}" for part in ("encoder", "decoder") for axis in ("plane", "spectrum")]


@pytest.mark.parametrize("decoder", ["full", "cross"])
def test_a_model_comes_back_bit_for_bit(stored, decoder):
    folder, state = stored(decoder=decoder, norm_pix_loss=True, mask_ratio=0.7)
    model, config = MAESpectral.from_folder(folder)
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert json.loads(json.dumps(model.arguments)) == json.loads((folder / "config.json").read_text())["model"]
    assert config["wavelengths"] == NM
    for other in (MAESpectral.from_folder(folder, SIZE, tuple(NM)), MAESpectral.from_folder(folder, (SIZE, SIZE))):
        assert all(torch.equal(other[0].state_dict()[name], tensor) for name, tensor in state.items())


def bicubic(plane, old, new):
    picture = plane[0].T.reshape(1, -1, *old)
    return F.interpolate(picture, new, mode="bicubic", antialias=True, align_corners=False)[0].flatten(1).T


@pytest.mark.parametrize(
    ("old", "new"), [((40, 40), (80, 80)), ((40, 40), (20, 60)), ((60, 40), (40, 60)), ((20, 80), (40, 40))]
)
@torch.no_grad()
def test_places_in_the_plane_are_resampled_for_other_sizes(stored, old, new):
    """Also where the number of places stays the same and their arrangement does not."""
    folder, state = stored(img_size=old)
    model, config = MAESpectral.from_folder(folder, new)
    fresh = small(img_size=new)
    assert config["model"]["img_size"] == model.img_size == new
    for name in ("encoder.positions.plane", "decoder.positions.plane"):
        result = model.state_dict()[name][0]
        expected = bicubic(state[name], [n // PATCH for n in old], [n // PATCH for n in new])
        torch.testing.assert_close(result, expected)
        assert (result - fresh.state_dict()[name][0]).abs().max() > 0.5  # not left as it was drawn
    for name, tensor in state.items():
        if not name.endswith("plane"):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model(cubes(1, shape=(30, *new)))["patches"].isfinite().all()


WIDER = [float(nm) for nm in range(400, 900, 10)]  # 50 bands, beyond both ends


@pytest.mark.parametrize("new", [NM[5:25], WIDER, [nm + 3 for nm in NM]])
@torch.no_grad()
def test_other_wavelengths_find_their_places_along_the_spectrum(stored, new):
    """Linear between the mean wavelengths of the groups; beyond the ends, the end."""
    folder, state = stored()
    model, config = MAESpectral.from_folder(folder, wavelengths=new)
    assert config["wavelengths"] == new
    assert config["model"]["in_chans"] == len(new)
    was, now = (np.array(nm).reshape(-1, BANDS).mean(axis=1) for nm in (NM, new))
    for name in ("encoder.positions.spectrum", "decoder.positions.spectrum"):
        result = model.state_dict()[name][0].numpy()
        expected = np.stack([np.interp(now, was, column) for column in state[name][0].numpy().T], axis=1)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        fresh = small(in_chans=len(new)).state_dict()[name][0].numpy()
        assert np.abs(result - fresh).max() > 0.5
    for name in ("mean", "std"):
        np.testing.assert_allclose(model.state_dict()[name], np.interp(new, NM, state[name]), rtol=1e-5)
    for name, tensor in state.items():
        if name not in ("mean", "std", *PLACES[1::2]):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.encode(cubes(1, shape=(len(new), SIZE, SIZE))).grid.shape == (1, len(new) // BANDS, 4, 4, 16)


def test_masking_may_be_changed_and_sizes_that_do_not_fit_are_told(stored, tmp_path):
    folder, _ = stored()
    model, config = MAESpectral.from_folder(folder, mask_ratio=0.5)
    assert model.n_visible == 48
    assert config["model"]["mask_ratio"] == 0.5
    save_model(tmp_path / "other", nn.Linear(1, 1), {"kind": "other"})
    _, config = load_model_folder(folder)
    save_model(tmp_path / "old", model, {name: value for name, value in config.items() if name != "taught"})
    load = MAESpectral.from_folder
    for call, text in (
        (partial(load, tmp_path / "other"), "holds a model of kind 'other', not 'masked autoencoder'"),
        (partial(load, tmp_path / "nowhere"), "is not a model folder"),
        (partial(load, tmp_path / "old"), "config.json and model.safetensors do not fit (no taught)"),
        (partial(load, folder, 45), "patches of 10 px do not divide 45×45 px"),
        (partial(load, folder, None, NM[:12]), "patches of 5 bands do not divide 12"),
        (partial(load, folder, mask_ratio=1.0), "--mask_ratio"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
