import pytest
import torch

from core.losses.classification import AsymmetricLoss, FocalLoss, MaskedBCE
from core.losses.landmarks import HeatmapLoss, WingLoss, soft_argmax
from core.losses.precision import full_precision
from core.losses.reconstruction import CenterWeightedL1, EdgeLoss, SSIMLoss, contrastive_loss, kl_divergence
from core.losses.shapes import check_same_shape
from core.losses.spectral import range_penalty, spectral_angle, spectral_variance_loss

# Every loss of two tensors with one set of shapes that fits it. Values in [0, 1) suit them all.
LOSSES = {
    "bce": (MaskedBCE(), (4, 5)),
    "focal": (FocalLoss(), (4, 5)),
    "asymmetric": (AsymmetricLoss(), (4, 5)),
    "wing": (WingLoss(), (2, 3, 2)),
    "heatmap": (HeatmapLoss(), (2, 3, 8, 8)),
    "ssim": (SSIMLoss(1.0), (2, 3, 16, 16)),
    "edge": (EdgeLoss(), (2, 3, 8, 8)),
    "center": (CenterWeightedL1(), (2, 3, 8, 8)),
    "kl": (kl_divergence, (4, 5)),
    "contrastive": (contrastive_loss, (4, 5)),
    "angle": (lambda a, b: spectral_angle(a, b, dim=1).mean(), (2, 6, 3, 3)),
    "variance": (lambda a, b: spectral_variance_loss(a, b, dim=1), (2, 6, 3, 3)),
    "range": (lambda a, b: range_penalty(a, 0.2, 0.4) + 0 * b.float().sum(), (2, 6, 3, 3)),
    "soft-argmax": (lambda a, b: (soft_argmax(a) - soft_argmax(b)).abs().mean(), (2, 3, 8, 8)),
}
every_loss = pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=LOSSES.keys())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, shape, dtype):
    torch.manual_seed(0)
    prediction, target = torch.rand(2, *shape).to(dtype)
    prediction.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(prediction, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(prediction.float(), target.float()))  # not merely close: autocast changes nothing
    assert prediction.grad.dtype == dtype
    assert prediction.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_extreme_half_precision_values_give_finite_gradients(loss, shape, size):
    """At zero, at equal tensors and at large values of either sign; float32 gradients, as a scaler would see them."""
    torch.manual_seed(0)
    sign = torch.randint(0, 2, shape) * 2.0 - 1
    target = torch.randint(0, 2, shape).half()
    for values in (size * sign, size * target.float(), torch.full(shape, -size)):
        prediction = values.requires_grad_()
        value = loss(prediction.half(), target)
        value.backward()
        assert value.isfinite()
        assert prediction.grad.isfinite().all()


@every_loss
def test_batch_of_one(loss, shape):
    prediction = torch.rand(1, *shape[1:], requires_grad=True)
    loss(prediction, torch.rand(1, *shape[1:])).backward()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"range", "soft-argmax"}))
def test_shapes_must_agree(name):
    loss, shape = LOSSES[name]
    with pytest.raises(ValueError, match="shape"):
        loss(torch.rand(shape), torch.rand(1, *shape[1:]))


def test_decorator_turns_autocast_off_and_leaves_other_tensors_alone():
    @full_precision
    def seen(a, *, b, c, flag):
        return (a @ a).dtype, b.dtype, c.dtype, flag

    with torch.autocast("cpu", dtype=torch.bfloat16):
        dtypes = seen(torch.ones(2, 2).half(), b=torch.ones(2).double(), c=torch.tensor([True]), flag="yes")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # autocast is on again
    assert dtypes == (torch.float32, torch.float64, torch.bool, "yes")


def test_column_against_row_is_an_error():
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\)"):
        check_same_shape(torch.rand(4, 1), torch.rand(4))
