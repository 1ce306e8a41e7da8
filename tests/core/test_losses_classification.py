import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from core.losses.classification import AsymmetricLoss, FocalLoss, MaskedBCE

LOSSES = [MaskedBCE(), FocalLoss(), FocalLoss(alpha=None, gamma=0.5), AsymmetricLoss(), AsymmetricLoss(0.5, 0.5, 0)]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=["bce", "focal", "focal-0.5", "asl", "asl-0.5"])


def bce(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def focal(p, t, alpha, gamma):
    p_t = t * p + (1 - t) * (1 - p)
    alpha_t = 1 if alpha is None else t * alpha + (1 - t) * (1 - alpha)
    return alpha_t * (1 - p_t) ** gamma * bce(p, t)


def asymmetric(p, t, gamma_neg, gamma_pos, clip):
    p_m = max(p - clip, 0)
    return -t * (1 - p) ** gamma_pos * math.log(p) - (1 - t) * p_m**gamma_neg * math.log(1 - p_m)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (MaskedBCE(), bce),
        (FocalLoss(), lambda p, t: focal(p, t, 0.25, 2)),
        (FocalLoss(alpha=None, gamma=1.5), lambda p, t: focal(p, t, None, 1.5)),
        (FocalLoss(alpha=0.9, gamma=0), lambda p, t: focal(p, t, 0.9, 0)),
        (AsymmetricLoss(), lambda p, t: asymmetric(p, t, 4, 1, 0.05)),
        (AsymmetricLoss(2, 0, 0), lambda p, t: asymmetric(p, t, 2, 0, 0)),
        (AsymmetricLoss(0, 2, 0.3), lambda p, t: asymmetric(p, t, 0, 2, 0.3)),
    ],
)
def test_against_a_loop(loss, formula):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    targets = torch.rand(6, 5, dtype=torch.float64)
    targets[:2] = (targets[:2] > 0.5).double()
    targets[2, :3] = -1
    known = [(x, t) for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True) if t != -1]
    expected = sum(formula(1 / (1 + math.exp(-x)), t) for x, t in known) / len(known)
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-9)


def test_against_the_libraries():
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(8, 18), torch.rand(8, 18).round()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(MaskedBCE()(logits, targets), cross_entropy)
    torch.testing.assert_close(FocalLoss()(logits, targets), sigmoid_focal_loss(logits, targets, reduction="mean"))
    torch.testing.assert_close(FocalLoss(alpha=None, gamma=0)(logits, targets), cross_entropy)
    torch.testing.assert_close(AsymmetricLoss(0, 0, 0)(logits, targets), cross_entropy)


def test_alpha_weighs_the_positives():
    logits = torch.zeros(1, 1)
    positive, negative = (FocalLoss(alpha=0.25)(logits, torch.full((1, 1), t)).item() for t in (1.0, 0.0))
    assert negative == pytest.approx(3 * positive)


def test_asymmetric_loss_ignores_easy_negatives_and_caps_hard_ones():
    easy = torch.full((1, 1), -4.0, requires_grad=True)  # p = 0.018 < clip
    loss = AsymmetricLoss()(easy, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0
    assert easy.grad.item() == 0
    hard = AsymmetricLoss()(torch.full((1, 1), 1e4), torch.zeros(1, 1))
    assert hard.item() == pytest.approx(-(0.95**4) * math.log(0.05), rel=1e-5)


@every_loss
def test_gradcheck(loss):
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 0, -1, 0.3]] * 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.detach().requires_grad_())


@every_loss
def test_unknown_labels_have_no_influence(loss):
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6), torch.rand(4, 6).round()
    unknown = torch.rand(4, 6) < 0.4
    targets[unknown] = -1

    values, gradients = [], []
    for stranger in (0.0, 30.0, -1e4, math.inf, math.nan):
        x = torch.where(unknown, stranger, logits).requires_grad_()
        values.append(loss(x, targets))
        values[-1].backward()
        gradients.append(x.grad)
    assert all(torch.equal(value, values[0]) for value in values)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert (gradients[0][unknown] == 0).all()
    assert (gradients[0][~unknown] != 0).any()
    alone = loss(logits[~unknown][None], targets[~unknown][None])  # as if the unknown ones were not there
    torch.testing.assert_close(values[0], alone)


@every_loss
def test_all_unknown_is_a_zero_on_the_graph(loss):
    logits = torch.randn(2, 3, requires_grad=True)
    value = loss(logits, torch.full((2, 3), -1))  # integer labels, as read from a table
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


@every_loss
@pytest.mark.parametrize("size", [0.0, 17.0, 30.0, 1e4])
def test_saturated_logits_in_float16(loss, size):
    """In float16 arithmetic σ(−17) is 0 and its logarithm −inf."""
    logits = torch.tensor([[size, -size]] * 2, dtype=torch.float16, requires_grad=True)
    targets = torch.tensor([[1, 0], [0, 1]], dtype=torch.float16)
    value = loss(logits, targets)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_confidently_wrong_costs_its_logit():
    wrong = torch.tensor([[-30.0, 30.0]], dtype=torch.float16)
    assert MaskedBCE()(wrong, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(30)
    assert FocalLoss(alpha=None)(wrong, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(30)
