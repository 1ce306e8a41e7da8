"""Fusions, freezing, and what the regressor makes of features."""

import pytest
import torch

from core.checkpoints import save_model
from core.errors import UserError
from implants.dual_embedding import ATTENTION_TYPES, DualEmbeddingRegressor
from implants.loss import BETA, DimensionLoss, beta_nll, class_loss

VIT = {"size": "tiny", "image_size": 32}
COMPANY, MODEL = VIT | {"classes": ["a", "b", "c"]}, VIT | {"classes": ["x", "y"], "embedding_dim": 64}


def make(attention_type="triple", company=COMPANY, model=MODEL, **arguments):
    torch.manual_seed(0)
    options = {"embedding_dim": 32, "scale_features": 5, "dropout": 0.0} | arguments
    return DualEmbeddingRegressor(VIT, company, model, attention_type, **options)


def batch(count=3):
    torch.manual_seed(1)
    return {"image": torch.rand(count, 1, 32, 32), "scale": torch.randn(count, 5),
            "target": torch.tensor([[10.0, 4.0]]).repeat(count, 1) + torch.randn(count, 2)}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- fusion


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_every_fusion_gives_sizes_and_its_weights(attention_type):
    model = make(attention_type).eval()
    result = model(batch())
    assert result["mm"].shape == result["standard"].shape == (3, 2)
    expected = {
        "dual": {"company, model": (3, 2)},
        "triple": {"visual, company, model": (3, 3)},
        "hierarchical": {"company, model": (3, 2), "visual, embeddings": (3, 2)},
        "cross": {"company, model over patches": (3, 2, 4)},
        "concat": {},
    }[attention_type]
    assert {name: tuple(weights.shape) for name, weights in result["attention"].items()} == expected
    for weights in result["attention"].values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert (weights >= 0).all()
        assert (weights[0] - weights[1]).abs().max() > 1e-4  # they vary with the input


@pytest.mark.parametrize("attention_type", ["dual", "triple", "hierarchical", "concat"])
@pytest.mark.parametrize("branch", ["visual", "company", "model"])
def test_every_branch_counts(attention_type, branch):
    model, inputs = make(attention_type).eval(), batch()
    features = model.encode(inputs["image"])
    inputs = {"features": features, "scale": inputs["scale"]}
    before = model(inputs)["mm"]
    inputs["features"] = features | {branch: features[branch] + torch.randn_like(features[branch])}
    assert ((model(inputs)["mm"] - before).abs().amax(dim=1) > 1e-5).all()


def test_cross_attention_looks_at_the_tokens():
    model, inputs = make("cross").eval(), batch()
    features = model.encode(inputs["image"])
    before = model({"features": features, "scale": inputs["scale"]})["mm"]
    other = features | {"tokens": features["tokens"].flip(0)}
    assert not torch.allclose(model({"features": other, "scale": inputs["scale"]})["mm"], before)


@pytest.mark.parametrize(
    ("attention_type", "company", "model", "branches"),
    [("triple", COMPANY, None, "visual, company"), ("triple", None, MODEL, "visual, model"),
     ("cross", COMPANY, None, "company over patches"), ("concat", None, None, None)],
)  # fmt: skip
def test_one_embedding_or_none(attention_type, company, model, branches):
    attention = make(attention_type, company, model)(batch())["attention"]
    assert list(attention) == ([branches] if branches else [])


@pytest.mark.parametrize(
    ("attention_type", "company"),
    [("dual", COMPANY), ("hierarchical", COMPANY), ("triple", None), ("cross", None), ("dual", None)],
)
def test_nothing_to_weigh_is_refused(attention_type, company):
    with pytest.raises(UserError, match="--attention_type"):
        make(attention_type, company, None)


def test_the_scale_counts():
    model, inputs = make().eval(), batch()
    before = model(inputs)["mm"]
    assert not torch.allclose(model(inputs | {"scale": inputs["scale"] + 1})["mm"], before)
    without = make(scale_features=0).eval()
    torch.testing.assert_close(without(inputs)["mm"], without({"image": inputs["image"]})["mm"])


@pytest.mark.parametrize("size", ["base"])
def test_vit_base_builds_and_steps(size):
    vit = {"size": size, "image_size": 32}
    model = DualEmbeddingRegressor(vit, vit | {"classes": ["a", "b"]}, vit | {"classes": ["x", "y"]}, "cross")
    assert model.encoders["visual"].width == 768
    result = model({"image": torch.rand(1, 1, 32, 32)})
    DimensionLoss()(result, {"target": torch.tensor([[10.0, 4.0]])}, model)[0].backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)


# ----------------------------------------------------------------------------------------------------------- freezing


def test_unfreezing_goes_by_halves():
    model = make()
    schedule = model.unfreezing(2, 4)
    learning = {}
    for epoch in (0, 1, 2, 3, 4):
        model.train()
        schedule.apply(epoch)
        learning[epoch] = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning[0] == learning[1] == {n for n, _ in model.named_parameters() if not n.startswith("encoders.")}
    upper = learning[2] - learning[0]
    assert learning[2] == learning[3]
    assert {name.split(".")[1] for name in upper} == {"visual", "company", "model"}
    assert not [
        n for n in upper if "patch_embed" in n or "pos_embed" in n or any(f"blocks.{i}." in n for i in range(6))
    ]
    assert all(any(f"{e}vit.blocks.{i}." in n for n in upper) for e in ("visual.", "company.backbone.")
               for i in range(6, 12))  # fmt: skip
    heads = {name for name, _ in model.named_parameters() if ".head." in name and name.startswith("encoders.")}
    assert learning[4] == {name for name, _ in model.named_parameters()} - heads  # which name classes, and stay


def test_frozen_encoders_get_no_gradients_and_keep_no_activations():
    model, inputs, kept = make(), batch(), []
    model.unfreezing(1, 2).apply(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        features = model.encode(inputs["image"])
    assert kept == []
    assert not any(value.requires_grad for value in features.values())
    DimensionLoss()(model(inputs), inputs, model)[0].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if not name.startswith("encoders.")}


def test_features_stand_for_their_images():
    model, inputs = make("cross").eval(), batch()
    features = model.encode(inputs["image"])
    torch.testing.assert_close(model({"features": features, "scale": inputs["scale"]})["mm"], model(inputs)["mm"])


# ------------------------------------------------------------------------------------------------------ targets, loss


def test_sizes_are_standardised_as_in_training():
    model = make()
    targets = torch.tensor([[8.0, 3.0], [10.0, 4.0], [12.0, 5.0]])
    model.standardise(targets)
    assert model.target_mean.tolist() == [10, 4]
    assert model.target_std.tolist() == [2, 1]
    result = model(batch())
    torch.testing.assert_close(result["mm"], result["standard"] * torch.tensor([2.0, 1.0]) + torch.tensor([10.0, 4.0]))


def test_the_loss_is_huber_of_standardised_sizes():
    model, inputs = make().eval(), batch()
    model.standardise(inputs["target"])
    loss, parts = DimensionLoss()(model(inputs), inputs, model)
    error = ((inputs["target"] - model(inputs)["mm"]) / model.target_std).abs()
    expected = torch.where(error < 1, 0.5 * error**2, error - 0.5).mean(dim=0)
    torch.testing.assert_close(torch.stack([parts["length"], parts["diameter"]]), expected)
    torch.testing.assert_close(loss, expected.sum())


def test_beta_nll_is_the_weighted_likelihood():
    mean, log_variance, target = (torch.randn(7, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    value = beta_nll(mean, log_variance, target.detach())
    gaussian = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    expected = log_variance.exp() ** BETA * (-gaussian.log_prob(target) - constant)
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value.sum(), mean)
    torch.testing.assert_close(slope, log_variance.exp() ** (BETA - 1) * (mean - target))  # no gradient of the weight


def test_unknown_classes_do_not_count():
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, -1, 2, -1])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(class_loss(logits, labels), expected)
    assert class_loss(logits, torch.full((4,), -1)) == 0


def test_auxiliary_fields_and_uncertainty():
    model = make(auxiliary={"thread_type": ["v", "square"]}, uncertainty=True)
    inputs = batch() | {"label_thread_type": torch.tensor([0, 1, -1])}
    result = model(inputs)
    assert result["auxiliary"]["thread_type"].shape == (3, 2)
    assert result["log_variance"].shape == (3, 2)
    loss, parts = DimensionLoss(0.5)(result, inputs, model)
    torch.testing.assert_close(loss, parts["length"] + parts["diameter"] + 0.5 * parts["auxiliary"])


def test_a_saved_model_comes_back(tmp_path):
    model = make(
        "hierarchical", uncertainty=True, auxiliary={"type": ["v"], "a.b": ["w"]}
    ).eval()  # no keys of a ModuleDict
    model.standardise(torch.tensor([[8.0, 3.0], [10.0, 4.0]]))
    taught = {"targets": {"length": 3, "diameter": 3}}
    config = {"kind": "implant regressor", "taught": taught, "model": model.arguments, "image_size": 32, "margin": 0.1}
    save_model(tmp_path / "best", model, config | {"modalities": None, "train_sizes": [], "limits": {}})
    again, config = DualEmbeddingRegressor.from_folder(tmp_path)
    assert config["model"]["attention_type"] == "hierarchical"
    torch.testing.assert_close(again(batch())["mm"], model(batch())["mm"], rtol=0, atol=0)
    images = batch()["image"]
    named = again.name_classes(again.encode(images))
    for name in ("company", "model"):
        assert named[name].tolist() == model.encoders[name](images).argmax(dim=1).tolist()
    save_model(tmp_path / "untaught", model, {name: value for name, value in config.items() if name != "taught"})
    with pytest.raises(UserError, match="no taught"):
        DualEmbeddingRegressor.from_folder(tmp_path / "untaught")
    save_model(tmp_path / "no_cases", model, config | {"taught": {"targets": {"length": 3, "diameter": 0}}})
    with pytest.raises(UserError, match="a target without training cases"):
        DualEmbeddingRegressor.from_folder(tmp_path / "no_cases")
    save_model(tmp_path / "other", torch.nn.Linear(1, 1), {"kind": "implant classifier", "taught": {}, "model": {}})
    with pytest.raises(UserError, match="of kind 'implant classifier', not 'implant regressor'"):
        DualEmbeddingRegressor.from_folder(tmp_path / "other")
