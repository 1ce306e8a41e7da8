import copy
import math
import os
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg16

from core.losses.reconstruction import (
    CenterWeightedL1,
    EdgeLoss,
    PerceptualLoss,
    SSIMLoss,
    contrastive_loss,
    kl_divergence,
)


def correlate(image, kernel):
    """The weighted sum of every window that lies inside the image, `(H, W)` -> `(H − h + 1, W − w + 1)`."""
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape)
    return np.einsum("ijkl,kl->ij", windows, kernel)


class TestSSIM:
    def test_against_numpy(self):
        generator = np.random.default_rng(0)
        a, b = generator.random((2, 12, 14))
        x = np.arange(11) - 5
        window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
        window /= window.sum()

        def blur(image):
            return correlate(np.pad(image, 5, mode="reflect"), window)

        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        ssim = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        ssim /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        value = SSIMLoss(1.0)(torch.tensor(a)[None, None], torch.tensor(b)[None, None])
        assert value.item() == pytest.approx(1 - ssim.mean(), rel=1e-6)

    def test_range_pair_is_the_same_loss_on_shifted_pictures(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 2, 3, 16, 16, dtype=torch.float64)
        expected = SSIMLoss(1.0)(a, b)
        torch.testing.assert_close(SSIMLoss((-1, 1))(2 * a - 1, 2 * b - 1), expected)
        torch.testing.assert_close(SSIMLoss(255)(255 * a, 255 * b), expected)

    def test_equal_pictures_and_values_out_of_range(self):
        picture = torch.rand(1, 3, 16, 16)
        assert SSIMLoss((-1, 1))(picture, picture).item() == pytest.approx(0, abs=1e-6)
        beyond = (picture + 1.5).requires_grad_()
        SSIMLoss((-1, 1))(beyond, picture).backward()
        assert (beyond.grad != 0).all()

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 1, 1, 7, 7, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: SSIMLoss(1.0)(x, b), a.requires_grad_())

    @pytest.mark.parametrize("data_range", [0.0, -1.0, (1.0, -1.0)])
    def test_range_must_be_positive(self, data_range):
        with pytest.raises(ValueError, match="data_range"):
            SSIMLoss(data_range)


class TestEdge:
    def test_against_numpy(self):
        generator = np.random.default_rng(0)
        a, b = generator.random((2, 2, 3, 7, 9))
        kernel = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32
        total = []
        for i in range(2):
            for c in range(3):
                for k in (kernel, kernel.T):
                    total.append(np.abs(correlate(a[i, c], k) - correlate(b[i, c], k)))
        value = EdgeLoss()(torch.tensor(a), torch.tensor(b))
        assert value.item() == pytest.approx(np.mean(total), rel=1e-9)

    def test_unit_is_intensity_per_pixel(self):
        ramp = 0.25 * torch.arange(8.0).expand(1, 1, 6, 8)
        assert EdgeLoss()(ramp, torch.zeros_like(ramp)).item() == pytest.approx(0.25 / 2)  # one component of two
        assert EdgeLoss()(ramp + 5, ramp).item() == pytest.approx(0, abs=1e-6)  # brightness has no edges

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 1, 2, 5, 6, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: EdgeLoss()(x, b), a.requires_grad_())

    def test_tiny_pictures_are_an_error(self):
        with pytest.raises(ValueError, match="3×3"):
            EdgeLoss()(torch.rand(1, 1, 2, 9), torch.rand(1, 1, 2, 9))


class TestCenterWeighted:
    def test_against_a_loop(self):
        generator = np.random.default_rng(0)
        a, b = generator.random((2, 2, 3, 5, 8))
        weight = np.empty((5, 8))
        for i in range(5):
            for j in range(8):
                y, x = (i + 0.5) / 5 * 2 - 1, (j + 0.5) / 8 * 2 - 1
                weight[i, j] = math.exp(-(x * x + y * y) / (2 * 0.35**2))
        expected = (weight / weight.mean() * np.abs(a - b)).mean()
        assert CenterWeightedL1()(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, rel=1e-9)

    def test_a_uniform_error_costs_itself_and_the_centre_counts_most(self):
        picture = torch.rand(2, 3, 9, 12)
        assert CenterWeightedL1()(picture + 0.5, picture).item() == pytest.approx(0.5, rel=1e-5)
        centre, corner = torch.zeros(2, 1, 1, 9, 9)
        centre[0, 0, 4, 4], corner[0, 0, 0, 0] = 1, 1
        nothing = torch.zeros_like(centre)
        assert CenterWeightedL1()(centre, nothing) > 100 * CenterWeightedL1()(corner, nothing)

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.rand(2, 1, 2, 5, 6, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: CenterWeightedL1()(x, b), a.requires_grad_())


@pytest.fixture(scope="module")
def vgg_weights():
    """Random weights of VGG16's features up to relu4_3, of a size that keeps activations near 1."""
    with torch.device("meta"):
        features = vgg16(weights=None).features[:22]
    torch.manual_seed(0)
    return {
        f"features.{key}": torch.randn(p.shape) * (2 / p[0].numel()) ** 0.5 if p.ndim == 4 else torch.randn(p.shape) / 9
        for key, p in features.named_parameters()
    }


@pytest.fixture(scope="module")
def weights_file(vgg_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    safetensors.torch.save_file(vgg_weights, path)
    return path


@pytest.fixture(scope="module")
def perceptual(weights_file):
    return PerceptualLoss(weights_file)


class TestPerceptual:
    def test_against_functional_calls(self, perceptual, vgg_weights):
        torch.manual_seed(0)
        pictures = torch.rand(2, 2, 3, 16, 16) * 2 - 1
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

        def features(x):
            x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
            tapped = []
            for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21)):  # positions of the convolutions
                x = F.max_pool2d(x, 2) if tapped else x
                for i in block:
                    weight, bias = vgg_weights[f"features.{i}.weight"], vgg_weights[f"features.{i}.bias"]
                    x = F.conv2d(x, weight, bias, padding=1).relu()
                tapped.append(x)
            return tapped

        pairs = zip(features(pictures[0]), features(pictures[1]), strict=True)
        expected = sum((a - b).abs().mean() for a, b in pairs) / 4
        torch.testing.assert_close(perceptual(*pictures), expected)

    @pytest.mark.parametrize("prefix", ["features.", ""])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_both_formats_and_key_styles(self, prefix, suffix, vgg_weights, tmp_path):
        last = 3  # up to relu1_2: small files
        weights = {
            key.replace("features.", prefix): value
            for key, value in vgg_weights.items()
            if int(key.split(".")[1]) <= last
        }
        path = tmp_path / f"weights{suffix}"
        save = torch.save if suffix == ".pth" else safetensors.torch.save_file
        save(weights | {"classifier.0.weight": torch.zeros(2)}, path)  # a whole VGG16 has more keys
        loss = PerceptualLoss(str(path), layers=("relu1_1", "relu1_2"))
        assert torch.equal(loss.features[0].weight, vgg_weights["features.0.weight"])
        assert torch.equal(loss.features[2].bias, vgg_weights["features.2.bias"])

    def test_zero_for_equal_pictures_and_a_gradient_for_others(self, perceptual):
        picture = torch.rand(1, 3, 16, 16)
        assert perceptual(picture, picture).item() == 0
        prediction = torch.rand(1, 3, 16, 16, requires_grad=True)
        perceptual(prediction, picture).backward()
        assert prediction.grad.isfinite().all()
        assert (prediction.grad != 0).any(dim=1).all()

    def test_float16_under_autocast_is_float32(self, perceptual):
        torch.manual_seed(0)
        a, b = torch.rand(2, 1, 3, 8, 8).half()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = perceptual(a, b)
        assert value.dtype == torch.float32
        assert torch.equal(value, perceptual(a.float(), b.float()))

    def test_grey_is_repeated_and_the_range_is_respected(self, perceptual, weights_file):
        grey = torch.rand(2, 1, 1, 16, 16) * 2 - 1
        expected = perceptual(*grey.expand(2, 1, 3, 16, 16))
        torch.testing.assert_close(perceptual(*grey), expected)
        bytes_range = PerceptualLoss(weights_file, data_range=(0, 255))
        torch.testing.assert_close(bytes_range(*((grey + 1) / 2 * 255)), expected, rtol=1e-4, atol=1e-6)

    def test_is_no_part_of_the_model(self, perceptual):
        model = nn.Module()
        model.head = nn.Linear(2, 2)
        model.loss = perceptual
        model.train()
        assert not any(module.training for module in perceptual.modules())
        assert list(model.state_dict()) == ["head.weight", "head.bias"]
        assert len(list(model.parameters())) == 2
        moved = copy.deepcopy(perceptual).to("meta")
        assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
        assert len(list(moved.buffers())) == 2 * 10 + 2  # ten convolutions up to relu4_3, mean and std

    def test_uses_no_random_numbers(self, weights_file):
        torch.manual_seed(3)
        PerceptualLoss(weights_file)
        drawn = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))

    def test_gradcheck(self, weights_file):
        torch.manual_seed(0)
        loss = PerceptualLoss(weights_file, layers=("relu1_1",)).double()
        a, b = torch.rand(2, 1, 1, 3, 3, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x: loss(x, b), a.requires_grad_(), eps=1e-8, atol=1e-4)

    def test_wrong_files(self, vgg_weights, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"weights_file .*absent\.pth"):
            PerceptualLoss(tmp_path / "absent.pth")
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"text{suffix}"
            path.write_text("not weights")
            with pytest.raises(ValueError, match=r"weights_file .*text"):
                PerceptualLoss(path)
        torch.save([torch.zeros(1)], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="list"):
            PerceptualLoss(tmp_path / "list.pth")
        few = {key: value for key, value in vgg_weights.items() if key != "features.2.bias"}
        torch.save({key: few[key] for key in list(few)[:3]}, tmp_path / "few.pth")
        with pytest.raises(ValueError, match=r"weights_file .*features\.2\.bias"):
            PerceptualLoss(tmp_path / "few.pth", layers=("relu1_2",))
        torch.save({"0.weight": torch.zeros(64, 1, 3, 3), "0.bias": torch.zeros(64)}, tmp_path / "grey.pth")
        with pytest.raises(ValueError, match=r"features\.0\.weight of shape \(64, 3, 3, 3\)"):
            PerceptualLoss(tmp_path / "grey.pth", layers=("relu1_1",))

    def test_code_in_a_pickle_does_not_run(self, tmp_path):
        class MakesFolder:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "made"),)

        torch.save({"0.weight": MakesFolder()}, tmp_path / "code.pth")
        with pytest.raises(ValueError, match=r"weights_file .*code"):
            PerceptualLoss(tmp_path / "code.pth")
        assert not (tmp_path / "made").exists()

    def test_a_failed_download_names_the_way_out(self, monkeypatch, tmp_path):
        def no_internet(*args, **kwargs):
            raise urllib.error.URLError("no route to host")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.download_url_to_file", no_internet)
        with pytest.raises(OSError, match=r"no route to host.*vgg16.*give that file"):
            PerceptualLoss()

    def test_wrong_arguments(self, perceptual, weights_file):
        with pytest.raises(ValueError, match="relu9_9"):
            PerceptualLoss(weights_file, layers=("relu9_9",))
        with pytest.raises(ValueError, match="data_range"):
            PerceptualLoss(weights_file, data_range=(1, 0))
        with pytest.raises(ValueError, match="channels"):
            perceptual(torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8))


class TestKL:
    def test_against_torch_distributions(self):
        torch.manual_seed(0)
        mu, logvar = torch.randn(2, 5, 7, dtype=torch.float64)
        code = torch.distributions.Normal(mu, (logvar / 2).exp())
        prior = torch.distributions.Normal(0.0, 1.0)
        expected = torch.distributions.kl_divergence(code, prior).sum(dim=1).mean()
        torch.testing.assert_close(kl_divergence(mu, logvar), expected)
        assert kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4)).item() == 0

    def test_logvar_is_clamped(self):
        mu = torch.zeros(1, 1)
        assert kl_divergence(mu, torch.full((1, 1), 1e4)).item() == pytest.approx((math.exp(20) - 21) / 2)
        assert kl_divergence(mu, torch.full((1, 1), -1e4)).item() == pytest.approx(29 / 2)

    def test_gradcheck(self):
        torch.manual_seed(0)
        mu, logvar = torch.randn(2, 3, 4, dtype=torch.float64)
        assert torch.autograd.gradcheck(kl_divergence, (mu.requires_grad_(), logvar.requires_grad_()))


class TestContrastive:
    def test_two_views_against_a_loop(self):
        generator = np.random.default_rng(0)
        a, b = generator.standard_normal((2, 4, 6))
        codes = np.concatenate([a, b])
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        terms = []
        for i in range(8):
            j = (i + 4) % 8
            others = sum(math.exp(codes[i] @ codes[k] / 0.2) for k in range(8) if k != i)
            terms.append(-math.log(math.exp(codes[i] @ codes[j] / 0.2) / others))
        value = contrastive_loss(torch.tensor(a), torch.tensor(b), temperature=0.2)
        assert value.item() == pytest.approx(np.mean(terms), rel=1e-6)

    def test_one_view_against_a_loop(self):
        generator = np.random.default_rng(0)
        z = generator.standard_normal((5, 6))
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        terms = [math.exp(unit[i] @ unit[j] / 0.5) for i in range(5) for j in range(5) if i != j]
        assert contrastive_loss(torch.tensor(z)).item() == pytest.approx(math.log(np.mean(terms)), rel=1e-6)

    def test_known_values(self):
        assert contrastive_loss(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
        assert contrastive_loss(torch.ones(4, 3)).item() == pytest.approx(2)
        assert contrastive_loss(torch.tensor([[1.0, 0], [-1.0, 0]])).item() == pytest.approx(-2)

    @pytest.mark.parametrize("views", [1, 2])
    def test_a_batch_of_one_is_a_zero_on_the_graph(self, views):
        z = torch.randn(views, 1, 5, requires_grad=True)
        value = contrastive_loss(*z)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert z.grad.abs().max() < 1e-6

    def test_codes_at_zero_and_equal_codes_have_finite_gradients(self):
        z = torch.zeros(4, 5, requires_grad=True)
        contrastive_loss(z).backward()
        assert z.grad.isfinite().all()
        z = torch.ones(4, 5, requires_grad=True)
        contrastive_loss(z, torch.zeros(4, 5)).backward()
        assert z.grad.isfinite().all()

    def test_gradcheck(self):
        torch.manual_seed(0)
        a, b = torch.randn(2, 3, 4, dtype=torch.float64)
        a, b = a.requires_grad_(), b.requires_grad_()
        assert torch.autograd.gradcheck(contrastive_loss, (a,))
        assert torch.autograd.gradcheck(contrastive_loss, (a, b))
