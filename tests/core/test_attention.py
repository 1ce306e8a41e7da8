import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.attention import ATTENTIONS, attention, spatial_attention


def squeeze_excite(x, weights):
    squeezed = x.mean(dim=(2, 3))  # (B, C)
    hidden = (squeezed @ weights["fc1.weight"][..., 0, 0].T + weights["fc1.bias"]).relu()
    gate = torch.sigmoid(hidden @ weights["fc2.weight"][..., 0, 0].T + weights["fc2.bias"])
    return x * gate[:, :, None, None]


def channel_attention(x, weights):
    def mlp(v):
        return (v @ weights["channel.fc1.weight"][..., 0, 0].T).relu() @ weights["channel.fc2.weight"][..., 0, 0].T

    gate = torch.sigmoid(mlp(x.mean(dim=(2, 3))) + mlp(x.flatten(2).max(dim=2).values))
    return x * gate[:, :, None, None]


def spatial_formula(x, weights, prefix=""):
    pooled = torch.stack([x.mean(dim=1), x.max(dim=1).values], dim=1)  # (B, 2, H, W)
    scores = F.conv2d(pooled, weights[f"{prefix}conv.conv.weight"], padding=3)
    bn = {key.rsplit(".", 1)[1]: value for key, value in weights.items() if key.startswith(f"{prefix}conv.bn.")}
    scores = (scores - bn["running_mean"]) / (bn["running_var"] + 1e-5).sqrt() * bn["weight"] + bn["bias"]
    return x * torch.sigmoid(scores)


def shaken(module):
    """The module in eval, with batch norms away from the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return module.eval()


def test_squeeze_excite_against_its_formula():
    torch.manual_seed(0)
    module, x = shaken(attention("se", 48, reduction=4)), torch.randn(2, 48, 5, 6)
    torch.testing.assert_close(module(x), squeeze_excite(x, module.state_dict()))


def test_cbam_against_its_formula():
    torch.manual_seed(0)
    module, x = shaken(attention("cbam", 48, reduction=4)), torch.randn(2, 48, 9, 8)
    weights = module.state_dict()
    expected = spatial_formula(channel_attention(x, weights), weights, "spatial.")
    torch.testing.assert_close(module(x), expected)


def test_spatial_attention_against_its_formula():
    torch.manual_seed(0)
    module, x = shaken(spatial_attention(kernel_size=7)), torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(module(x), spatial_formula(x, module.state_dict()))


def test_none_is_the_identity():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(attention("none", 3)(x), x)


@pytest.mark.parametrize(("channels", "hidden"), [(64, 4), (2048, 128), (1280, 80), (8, 1)])
def test_hidden_units_and_parameter_counts(channels, hidden):
    """timm's own rule would give squeeze-and-excitation 8 hidden units for 64 and for 8 channels."""
    count = {name: sum(p.numel() for p in attention(name, channels).parameters()) for name in ATTENTIONS}
    weights = 2 * channels * hidden
    assert count == {"none": 0, "se": weights + hidden + channels, "cbam": weights + 2 * 49 + 2}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_shape_and_gradients(name, batch):
    torch.manual_seed(0)
    module = attention(name, 64).train()
    x = torch.randn(batch, 64, 7, 5, requires_grad=True)
    out = module(x)
    (out * torch.randn_like(out)).sum().backward()
    assert out.shape == x.shape
    assert (x.grad != 0).any()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad != 0).any(), key


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="none, se, cbam; got 'eca'"):
        attention("eca", 64)
