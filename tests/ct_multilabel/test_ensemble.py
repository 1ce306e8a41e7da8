"""Models at work: several members averaged, dropout samples, gated attention. Small models without training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core.checkpoints import save_model
from core.errors import UserError
from ct.ensemble import Member, average, calibrated, load_members, predict_logits
from ct.labels import LABELS
from ct.slice_classifier import SliceClassifier
from ct.vlm3d import Calibration, pool, remap

N, S = 3, 4  # volumes, slices


def member(seed: int, gated: bool = False, aggregate: str = "mean") -> Member:
    """An untrained model that is no constant: its head is drawn wide, its calibration is not the identity."""
    torch.manual_seed(seed)
    model = SliceClassifier(18, "test_resnet", gated_attention=gated, image_size=32).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    thresholds = tuple(np.random.default_rng(seed).uniform(0.2, 0.8, 18))
    return Member(f"m{seed}", model, {}, Calibration("attention" if gated else aggregate, 1.5, -0.2, thresholds, 9))


@pytest.fixture(scope="module")
def slices():
    return torch.randint(0, 256, (N, S, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predicted(one: Member, slices, samples: int = 0):
    torch.manual_seed(5)
    return calibrated(one, predict_logits(one, slices, samples).numpy())


def test_a_member_is_its_model_pooled_and_calibrated(slices):
    one = member(1, aggregate="max")
    with torch.no_grad():
        probabilities = one.model(slices)["slices"].double().sigmoid().numpy().max(axis=1)
    result = predicted(one, slices)
    assert np.allclose(result.raw, probabilities, atol=1e-6)
    odds = np.log(probabilities / (1 - probabilities))
    assert np.allclose(result.probabilities, 1 / (1 + np.exp(-(odds / 1.5 - 0.2))), atol=1e-6)
    assert ((result.scores >= 0.5) == (result.probabilities >= one.calibration.thresholds)).all()
    assert 0 < (result.scores >= 0.5).mean() < 1
    assert result.spread is None


def test_gated_attention_gives_one_row_a_volume(slices):
    one = member(2, gated=True)
    logits = predict_logits(one, slices, 2)
    assert logits.shape == (3, N, 1, 18)
    with torch.no_grad():
        assert torch.allclose(logits[0, :, 0], one.model(slices)["volume"], atol=1e-6)
    assert np.allclose(calibrated(one, logits[:1].numpy()).raw, logits[0, :, 0].sigmoid().numpy(), atol=1e-6)


@pytest.mark.parametrize("gated", [False, True], ids=["pooled", "gated"])
def test_dropout_samples_differ_and_spread(slices, gated):
    one = member(3, gated)
    logits = predict_logits(one, slices, 5)
    assert torch.equal(logits[0], predict_logits(one, slices)[0])  # the first is without dropout
    assert len({sample.numpy().tobytes() for sample in logits}) == 6
    result = calibrated(one, logits.numpy())
    assert (result.spread > 0).all()
    runs = [one.calibration.probabilities(run) for run in logits[1:].double().sigmoid().numpy()]
    assert np.allclose(result.probabilities, np.mean(runs, axis=0))
    assert np.allclose(result.spread, np.std(runs, axis=0))
    assert np.allclose(result.scores, remap(result.probabilities, one.calibration.thresholds))
    assert np.allclose(result.raw, pool(logits[0].double().sigmoid().numpy(), one.calibration.aggregate))
    assert not any(module.training for module in one.model.modules())  # dropout is off again


def test_the_ensemble_is_the_mean_of_its_members_in_any_order(slices):
    members = [predicted(member(1), slices), predicted(member(2, gated=True), slices), predicted(member(3), slices)]
    ensemble = average(members)
    for name in ("raw", "probabilities", "scores"):
        values = [getattr(one, name) for one in members]
        assert np.allclose(getattr(ensemble, name), sum(values) / 3)
        assert np.allclose(getattr(average(members[::-1]), name), getattr(ensemble, name))
    assert np.allclose(ensemble.spread, np.std([one.probabilities for one in members], axis=0))
    assert (ensemble.spread > 0).all()


def test_one_member_keeps_its_own_spread_and_twins_have_none(slices):
    sampled = predicted(member(1), slices, 3)
    assert average([sampled]) is sampled
    twins = average([predicted(member(1), slices)] * 2)
    assert np.allclose(twins.scores, predicted(member(1), slices).scores)
    assert np.abs(twins.spread).max() < 1e-12


def save(folder: Path, seed: int, **changes) -> Path:
    one = member(seed)
    config = {"kind": "slice classifier", "model": one.model.arguments, "labels": list(LABELS), "tune_fraction": 0.2}
    config |= {"taught": {"labels": dict.fromkeys(LABELS, 9)}, "slices": {"size": 32, "slices": S}, "prevalence": {}}
    config |= {"calibration": one.calibration.to_json(LABELS)}
    save_model(folder, one.model, config | changes)
    return folder


def test_members_are_named_after_their_runs_and_come_back_whole(slices, tmp_path):
    folders = [save(tmp_path / name / "best", seed) for seed, name in ((1, "a"), (2, "b"), (3, "x/a"))]
    members = load_members([*folders[:2], folders[2].parent], torch.device("cpu"))
    assert [one.name for one in members] == ["1 a", "b", "3 a"]
    for seed, one in enumerate(members, 1):
        assert np.allclose(predicted(one, slices).scores, predicted(member(seed), slices).scores)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"slices": {"size": 48, "slices": S}}, r"b.best was trained on other slices \(size 48.*evaluate them apart"),
        ({"tune_fraction": 0.3}, "b.best has other tuning patients than .*a.best"),
        ({"kind": "ear VAE"}, "a model of kind 'ear VAE'"),
        ({"labels": [*LABELS[1:], LABELS[0]]}, "b.best has other labels .*than .*a.best .*evaluate them apart"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(tmp_path, changes, text):
    folders = [save(tmp_path / "a" / "best", 1), save(tmp_path / "b" / "best", 2, **changes)]
    with pytest.raises(UserError, match=text):
        load_members(folders, torch.device("cpu"))
