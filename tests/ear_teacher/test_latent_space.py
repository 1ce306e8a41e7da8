"""Components, samples and verdicts of made-up codes and of an ear drawn by a formula."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import multivariate_normal

from ear import latent_space
from ear.latent_space import (
    active_units,
    along,
    brightness_share,
    fit_mixture,
    kl_by_dimension,
    principal_components,
    sample,
    verdict,
)


@pytest.fixture
def codes() -> np.ndarray:
    """(400, 6): deviations of about 5, 3, 1, 0.1 along random orthonormal directions, nothing along the last two."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return 2.0 + (rng.standard_normal((400, 4)) * (5, 3, 1, 0.1)) @ turn[:4]


def drawn_ear(size: int = 64) -> np.ndarray:
    """(3, size, size) in [-1, 1]: an oval of skin with a bright rim and a dark hollow, before hair. Synthetic."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / 0.5, y / 0.75)
    picture = np.where(x < -0.3, -0.7, 0.1) + 0.5 * np.exp(-(((radius - 0.9) / 0.12) ** 2))
    picture -= 0.6 * np.exp(-(((x - 0.05) / 0.15) ** 2) - ((y - 0.1) / 0.25) ** 2)
    return np.multiply.outer((1.0, 0.8, 0.65), ndimage.gaussian_filter(picture, 1)) - 0.1


def warped(picture: np.ndarray, amount: float) -> np.ndarray:
    """Rows drawn apart above the middle and together below it, as if the lobe grew."""
    rows, columns = np.mgrid[: picture.shape[1], : picture.shape[2]].astype(float)
    rows += amount * np.sin(np.pi * rows / picture.shape[1])
    return np.stack([ndimage.map_coordinates(c, (rows, columns), order=1, mode="nearest") for c in picture])


# --------------------------------------------------------------------------------------------------- dimensions in use


def test_active_units_are_those_that_vary():
    mu = np.random.default_rng(0).standard_normal((500, 4)) * (1, 0.2, 0.05, 0) + 7
    assert active_units(mu) == 2  # variances 1, 0.04, 0.0025 and 0 against 0.01


def test_kl_by_dimension_is_that_of_two_gaussians():
    assert kl_by_dimension(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [0, 0]
    mu, deviation = np.array([[1.0, -2.0], [3.0, 0.0]]), 0.5
    expected = -np.log(deviation) + (deviation**2 + np.mean(mu**2, axis=0)) / 2 - 0.5
    np.testing.assert_allclose(kl_by_dimension(mu, np.full((2, 2), 2 * np.log(deviation))), expected)


# ----------------------------------------------------------------------------------------------------------- components


def test_components_are_the_eigenvectors_of_the_covariance(codes):
    pca = principal_components(codes)
    assert len(pca.deviations) == len(pca.explained) == len(pca.directions) == 4  # the codes span no more
    values, vectors = np.linalg.eigh(np.cov(codes.T))
    np.testing.assert_allclose(pca.deviations**2, values[:-5:-1])
    np.testing.assert_allclose(np.abs((pca.directions * vectors.T[:-5:-1]).sum(axis=1)), 1)
    np.testing.assert_allclose(pca.directions @ pca.directions.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(pca.explained, values[:-5:-1] / values.sum())
    assert pca.explained.sum() == pytest.approx(1)
    np.testing.assert_allclose(pca.mean, codes.mean(axis=0))


def test_components_of_fewer_codes_than_dimensions():
    codes = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    pca = principal_components(codes)
    assert pca.directions.shape == (4, 40)
    scores = (codes - pca.mean) @ pca.directions.T
    np.testing.assert_allclose(pca.mean + scores @ pca.directions, codes, atol=1e-5)


def test_signs_do_not_depend_on_the_order_or_on_mirrored_codes(codes):
    first, again, mirrored = (
        principal_components(x).directions for x in (codes, codes[::-1], 2 * codes.mean(axis=0) - codes)
    )
    np.testing.assert_allclose(first, again, atol=1e-9)
    np.testing.assert_allclose(first, mirrored, atol=1e-9)
    assert (first[np.arange(4), np.abs(first).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("codes", [np.ones((1, 3)), np.zeros((0, 3)), np.ones((9, 3))])
def test_codes_without_components(codes):
    with pytest.raises(ValueError, match=rf"{len(codes)} codes that do not differ"):
        principal_components(codes)


def test_along_a_component_only_its_score_changes(codes):
    pca = principal_components(codes)
    path = along(pca, 1, np.array([-3.0, 0.0, 2.0]))
    np.testing.assert_allclose(path[1], pca.mean)
    scores = (path - pca.mean) @ pca.directions.T / pca.deviations
    np.testing.assert_allclose(scores, np.multiply.outer([-3, 0, 2], [0, 1, 0, 0]), atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- samples


@pytest.fixture
def groups() -> np.ndarray:
    """(600, 10): two heaps, 12 apart in the first dimension, 200 and 400 codes with deviations of 1."""
    codes = np.random.default_rng(0).standard_normal((600, 10))
    codes[200:, 0] += 12
    return codes


def draw(codes: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    return sample(fit_mixture(principal_components(codes), codes), count, np.random.default_rng(seed))


def test_codes_of_one_heap_get_one_gaussian_with_their_mean_and_covariance(codes):
    assert len(fit_mixture(principal_components(codes), codes).weights) == 1
    drawn = draw(codes, 200_000)
    np.testing.assert_allclose(drawn.mean(axis=0), codes.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), atol=0.3)  # 1 % is the floor's


def test_two_heaps_get_two_gaussians_and_nothing_is_drawn_between_them(groups):
    mixture = fit_mixture(principal_components(groups), groups)
    np.testing.assert_allclose(np.sort(mixture.weights), [1 / 3, 2 / 3], atol=1e-3)
    drawn = draw(groups, 20_000)
    assert ((drawn[:, 0] > 4) & (drawn[:, 0] < 8)).mean() < 0.002  # one Gaussian would put 28 % there
    assert (drawn[:, 0] > 6).mean() == pytest.approx(2 / 3, abs=0.02)
    np.testing.assert_allclose(drawn.mean(axis=0), groups.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T)[1:, 1:], np.cov(groups.T)[1:, 1:], atol=0.06)


def test_the_mixture_is_a_maximum_of_the_likelihood(groups):
    """Where expectation maximisation has ended, no small change of a mean or a weight makes the codes more likely."""
    mixture = fit_mixture(principal_components(groups), groups)
    pca, length = mixture.pca, mixture.means.shape[1]
    scores = (groups - pca.mean) @ pca.directions[:length].T / pca.deviations[:length]

    def likelihood(weights, means) -> float:
        each = [multivariate_normal.pdf(scores, *one) for one in zip(means, mixture.covariances, strict=True)]
        return np.log(weights @ each).sum()

    best = likelihood(mixture.weights, mixture.means)
    for change in (0.02, -0.02):
        assert likelihood(mixture.weights + [change, -change], mixture.means) < best
        for place in np.ndindex(mixture.means.shape):
            moved = mixture.means.copy()
            moved[place] += change
            assert likelihood(mixture.weights, moved) < best


def test_few_codes_get_one_gaussian(groups):
    assert len(fit_mixture(principal_components(groups[180:220]), groups[180:220]).weights) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_codes_can_be_drawn_from(groups, count):
    assert np.isfinite(draw(groups[:count], 50)).all()


def test_samples_stay_where_codes_were():
    few = np.random.default_rng(0).standard_normal((10, 200)) + 50
    away = draw(few, 300) - few.mean(axis=0)
    span = np.linalg.qr((few - few.mean(axis=0)).T[:, :9])[0]
    np.testing.assert_allclose(away @ span @ span.T, away, atol=1e-9)
    # As far from the mean as the codes themselves are, on the average.
    assert (away**2).sum(axis=1).mean() == pytest.approx(few.var(axis=0, ddof=1).sum(), rel=0.15)


def test_samples_follow_the_generator(codes):
    one, same, other = (draw(codes, 3, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert not np.isclose(one, other).any()


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_gain_and_offset_of_each_channel_are_all_brightness():
    ear = drawn_ear()
    gain, offset = np.array([1.3, 0.9, 0.7])[:, None, None], np.array([0.2, 0.0, -0.3])[:, None, None]
    for high in (1.5 * ear, ear + 0.4, gain * ear + offset):
        assert brightness_share(ear, high) == pytest.approx(1)
        assert verdict(brightness_share(ear, high)) == "brightness or colour"


@pytest.mark.parametrize("amount", [1, 3, 6])
def test_a_shift_and_a_warp_are_structure(amount):
    ear = drawn_ear()
    for low, high in (
        (ndimage.shift(ear, (0, 0, -amount / 2), order=1, mode="nearest"),
         ndimage.shift(ear, (0, 0, amount / 2), order=1, mode="nearest")),
        (warped(ear, -amount / 2), warped(ear, amount / 2)),
    ):  # fmt: skip
        assert brightness_share(low, high) < 0.1
        assert verdict(brightness_share(low, high)) == "structure"


def test_a_mixture_turns_over_where_its_parts_are_equal():
    ear = drawn_ear()
    warp = (warped(ear, 2) - warped(ear, -2)) / 2
    warp -= warp.mean(axis=(1, 2), keepdims=True)
    light = np.full_like(ear, np.sqrt((warp**2).mean()))  # as much squared change as the warp
    shares = [brightness_share(ear - warp - k * light, ear + warp + k * light) for k in (0, 0.5, 1, 2, 5)]
    np.testing.assert_allclose(shares, [k**2 / (1 + k**2) for k in (0, 0.5, 1, 2, 5)], atol=0.02)
    assert [verdict(share) for share in shares[:2]] == ["structure"] * 2
    assert [verdict(share) for share in shares[3:]] == ["brightness or colour"] * 2


def test_the_share_is_that_of_a_least_squares_fit():
    rng = np.random.default_rng(0)
    low, high = rng.standard_normal((2, 3, 5, 7))
    left = total = 0
    for a, b in zip(low, high, strict=True):
        regressors = np.column_stack([((a + b) / 2).ravel(), np.ones(35)])
        residual = (b - a).ravel() - regressors @ np.linalg.lstsq(regressors, (b - a).ravel(), rcond=None)[0]
        left, total = left + (residual**2).sum(), total + ((b - a) ** 2).sum()
    assert brightness_share(low, high) == pytest.approx(1 - left / total)
    assert brightness_share(high, low) == pytest.approx(brightness_share(low, high))
    assert brightness_share(100 * low + 3, 100 * high + 3) == pytest.approx(brightness_share(low, high))


def test_pictures_that_do_not_differ_show_no_structure():
    ear = drawn_ear()
    assert brightness_share(ear, ear) == 1
    assert brightness_share(np.zeros((3, 8, 8)), np.ones((3, 8, 8))) == 1  # flat pictures


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) and \(3, 8, 9\)"):
        brightness_share(np.zeros((3, 8, 8)), np.zeros((3, 8, 9)))


def test_the_threshold_belongs_to_brightness():
    below = np.nextafter(latent_space.MOSTLY, 0)
    assert verdict(latent_space.MOSTLY) == verdict(1.0) == "brightness or colour"
    assert verdict(below) == verdict(0.0) == "structure"
