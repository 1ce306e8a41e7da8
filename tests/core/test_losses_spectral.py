import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import spectral_angle_mapper

from core.losses.spectral import range_penalty, spectral_angle, spectral_variance_loss


class TestAngle:
    @pytest.mark.parametrize("scale", [1.0, 0.1, 3000.0])
    def test_agrees_with_torchmetrics(self, scale):
        torch.manual_seed(0)
        prediction, target = scale * torch.rand(2, 2, 30, 8, 8)
        expected = spectral_angle_mapper(prediction, target, reduction="none")
        torch.testing.assert_close(spectral_angle(prediction, target, dim=1), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dim", [1, 2, -1])
    def test_each_angle_against_acos_in_float64(self, dim):
        generator = np.random.default_rng(0)
        a, b = generator.random((2, 4, 5, 6))
        cosine = (a * b).sum(dim) / np.linalg.norm(a, axis=dim) / np.linalg.norm(b, axis=dim)
        angles = spectral_angle(torch.tensor(a), torch.tensor(b), dim=dim)
        np.testing.assert_allclose(angles.numpy(), np.arccos(cosine), atol=1e-7)

    @pytest.mark.parametrize("angle", [1e-4, 1e-3, 0.5, math.pi / 2, 3.0, math.pi - 1e-3])
    def test_small_and_large_angles_in_float32(self, angle):
        """Two vectors in a plane at a known angle; acos in float32 reads 1e-4 as 0 or as 3.5e-4."""
        a = torch.tensor([[0.6, 0.8]])
        turned = [0.6 * math.cos(angle) - 0.8 * math.sin(angle), 0.6 * math.sin(angle) + 0.8 * math.cos(angle)]
        assert spectral_angle(a, 5 * torch.tensor([turned]), dim=1).item() == pytest.approx(angle, abs=5e-7)

    @pytest.mark.parametrize(
        ("prediction", "target", "angle"),
        [
            ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0),
            ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 0),
            ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], math.pi),
            ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], math.pi / 2),
            ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], math.pi / 2),
            ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], math.pi / 2),
        ],
        ids=["equal", "parallel", "opposite", "zero prediction", "zero target", "both zero"],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
    def test_degenerate_spectra_have_finite_gradients(self, prediction, target, angle, dtype, autocast):
        a = torch.tensor([prediction], requires_grad=True)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            value = spectral_angle(a.to(dtype), torch.tensor([target], dtype=dtype), dim=1)
        value.sum().backward()
        assert value.item() == pytest.approx(angle, abs=5e-6)
        assert a.grad.isfinite().all()
        assert a.grad.norm() < 2.1e4  # 2/√ε

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 3, 6, dtype=torch.float64)
        a, b = a.requires_grad_(), b.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: spectral_angle(x, y, dim=1), (a, b))


class TestVariance:
    def test_against_numpy(self):
        generator = np.random.default_rng(0)
        a, b = generator.random((2, 3, 6, 4))
        expected = ((a.std(axis=1) - b.std(axis=1)) ** 2).mean()
        value = spectral_variance_loss(torch.tensor(a), torch.tensor(b), dim=1)
        assert value.item() == pytest.approx(expected, rel=1e-6)

    def test_flat_spectra_have_no_gradient_instead_of_nan(self):
        flat = torch.full((2, 6), 0.4, requires_grad=True)
        spectral_variance_loss(flat, torch.rand(2, 6), dim=1).backward()
        assert flat.grad.abs().max() < 1e-2

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 3, 6, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: spectral_variance_loss(x, b, dim=1), a.requires_grad_())


class TestRange:
    def test_by_hand(self):
        values = torch.tensor([-0.5, 0.0, 0.3, 1.0, 3.0], requires_grad=True)
        loss = range_penalty(values, 0.0, 1.0)
        loss.backward()
        assert loss.item() == pytest.approx((0.25 + 4) / 5)
        assert values.grad.tolist() == pytest.approx([-0.2, 0, 0, 0, 0.8])

    def test_gradcheck(self):
        values = torch.tensor([-0.5, 0.1, 0.3, 3.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: range_penalty(x, 0.0, 1.0), values)

    def test_reversed_limits_are_an_error(self):
        with pytest.raises(ValueError, match="exceeds"):
            range_penalty(torch.rand(3), 1.0, 0.0)
