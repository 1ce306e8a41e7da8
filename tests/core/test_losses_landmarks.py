import math

import pytest
import torch

from core.losses.landmarks import HeatmapLoss, WingLoss, soft_argmax


def gaussians(points, size=(32, 32), sigma=2.0, dtype=torch.float32):
    """points `(..., 2)` xy -> maps `(..., H, W)` that peak at 1."""
    points = torch.as_tensor(points, dtype=dtype)
    ys = torch.arange(size[0], dtype=dtype)[:, None]
    xs = torch.arange(size[1], dtype=dtype)
    x, y = points[..., 0, None, None], points[..., 1, None, None]
    return torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))


def wing(x, omega, epsilon):
    x = abs(x)
    if x < omega:
        return omega * math.log(1 + x / epsilon)
    return x - (omega - omega * math.log(1 + omega / epsilon))


class TestWing:
    @pytest.mark.parametrize(("omega", "epsilon"), [(10.0, 2.0), (3.0, 0.5)])
    def test_against_a_loop(self, omega, epsilon):
        torch.manual_seed(0)
        prediction, target = 10 * torch.randn(2, 3, 5, 2, dtype=torch.float64)
        mask = torch.rand(3, 5) < 0.6
        values = [wing(x, omega, epsilon) for x in (prediction - target)[mask].flatten().tolist()]
        expected = sum(values) / len(values)
        assert WingLoss(omega, epsilon)(prediction, target, mask).item() == pytest.approx(expected, rel=1e-9)
        normalised = WingLoss(omega, epsilon, normalise=True)(prediction, target, mask)
        assert normalised.item() == pytest.approx(expected / omega, rel=1e-9)

    def test_is_continuous_at_omega(self):
        target = torch.zeros(1, 1, 2, dtype=torch.float64)
        below, above = (WingLoss()(torch.full_like(target, 10 + step), target) for step in (-1e-9, 1e-9))
        assert above.item() == pytest.approx(below.item(), abs=1e-8)

    def test_gradcheck(self):
        torch.manual_seed(0)
        target = 20 * torch.randn(2, 4, 2, dtype=torch.float64)
        offset = torch.tensor([0.5, -3.0, 11.0, -25.0], dtype=torch.float64)[:, None]  # both branches, no kink
        prediction = (target + offset).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: WingLoss()(x, target), prediction)


class TestHeatmap:
    def test_against_a_loop(self):
        torch.manual_seed(0)
        target = gaussians(torch.rand(2, 3, 2) * 31, dtype=torch.float64)
        prediction = torch.randn_like(target)
        mask = torch.tensor([[True, False, True], [False, True, True]])
        shares = [
            ((prediction[b, k] - target[b, k]) ** 2).sum().item() / (target[b, k] ** 2).sum().item()
            for b, k in mask.nonzero().tolist()
        ]
        expected = sum(shares) / len(shares)
        assert HeatmapLoss()(prediction, target, mask).item() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
    @pytest.mark.parametrize("size", [(32, 32), (64, 48)])
    def test_an_empty_prediction_costs_one(self, sigma, size):
        points = [[[10.3, 7.8], [0, 0], [-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]]]  # up to the outermost corners
        target = gaussians(points, size, sigma)
        assert HeatmapLoss()(torch.zeros_like(target), target).item() == pytest.approx(1, abs=1e-6)

    def test_landmarks_out_of_frame_are_left_out(self):
        target = gaussians([[[10, 10], [20, 20]]])
        target[0, 1] = 0
        prediction = torch.rand_like(target).requires_grad_()
        loss = HeatmapLoss()(prediction, target)
        loss.backward()
        torch.testing.assert_close(loss, HeatmapLoss()(prediction[:, :1], target[:, :1]))
        assert torch.equal(prediction.grad[0, 1], torch.zeros(32, 32))

    def test_a_tail_does_not_outweigh_the_others(self):
        target = gaussians([[[10, 10], [-8, 10]]])  # the second is 4σ outside: its energy is below 1e-5
        noise = target + 0.01 * torch.ones_like(target)
        assert HeatmapLoss()(noise, target).item() < 1

    def test_gradcheck(self):
        target = gaussians([[[2.2, 3.1], [1, 4.7]]], (6, 5), dtype=torch.float64)
        prediction = torch.rand_like(target).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: HeatmapLoss()(x, target), prediction)


@pytest.mark.parametrize(("loss", "shape"), [(WingLoss(), (2, 3, 2)), (HeatmapLoss(), (2, 3, 8, 8))])
class TestMasks:
    def test_masked_landmarks_have_no_influence(self, loss, shape):
        torch.manual_seed(0)
        prediction, target = torch.rand(2, *shape)
        mask = torch.tensor([[True, False, True], [False, False, True]])
        target[~mask] = math.nan
        values, gradients = [], []
        for stranger in (0.0, 1e4, math.nan):
            x = prediction.clone()
            x[~mask] = stranger
            x.requires_grad_()
            values.append(loss(x, target, mask))
            values[-1].backward()
            gradients.append(x.grad)
        assert values[0].isfinite()
        assert all(torch.equal(value, values[0]) for value in values)
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
        assert (gradients[0][~mask] == 0).all()
        assert (gradients[0][mask] != 0).any()

    def test_empty_mask_is_a_zero_on_the_graph(self, loss, shape):
        prediction = torch.rand(shape, requires_grad=True)
        value = loss(prediction, torch.rand(shape), torch.zeros(shape[:2], dtype=torch.bool))
        value.backward()
        assert value.item() == 0
        assert torch.equal(prediction.grad, torch.zeros(shape))

    def test_mask_of_another_shape_is_an_error(self, loss, shape):
        with pytest.raises(ValueError, match=r"mask \(2, 1\)"):
            loss(torch.rand(shape), torch.rand(shape), torch.ones(2, 1))


class TestSoftArgmax:
    def test_against_a_loop(self):
        torch.manual_seed(0)
        heatmaps = torch.rand(2, 3, 4, 6, dtype=torch.float64)
        points = soft_argmax(heatmaps, beta=7.0)
        assert points.shape == (2, 3, 2)
        for b in range(2):
            for k in range(3):
                weights = [[math.exp(7 * value) for value in row] for row in heatmaps[b, k].tolist()]
                total = sum(map(sum, weights))
                x = sum(w * column for row in weights for column, w in enumerate(row)) / total
                y = sum(w * line for line, row in enumerate(weights) for w in row) / total
                assert points[b, k].tolist() == pytest.approx([x, y], rel=1e-9)

    def test_reads_sub_pixel_positions_where_beta_one_reads_the_centre(self):
        truth = torch.stack([torch.linspace(10, 11, 9), torch.linspace(100.5, 101.5, 9)], dim=-1)[None]  # (1, 9, 2)
        heatmaps = gaussians(truth, (128, 128))
        assert (soft_argmax(heatmaps) - truth).abs().max() < 0.1
        centre = torch.full_like(truth, 63.5)
        assert (soft_argmax(heatmaps, beta=1.0) - centre).abs().max() < 1

    def test_a_flat_map_gives_the_centre_and_extremes_stay_finite(self):
        assert soft_argmax(torch.zeros(1, 1, 5, 9)).tolist() == [[[4.0, 2.0]]]
        heatmaps = torch.full((1, 1, 8, 8), -1e4, dtype=torch.float16)
        heatmaps[0, 0, 2, 5] = 1e4
        heatmaps.requires_grad_()
        points = soft_argmax(heatmaps)
        points.sum().backward()
        assert points.tolist() == [[[5.0, 2.0]]]
        assert heatmaps.grad.isfinite().all()

    def test_gradcheck(self):
        heatmaps = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(soft_argmax, heatmaps)
