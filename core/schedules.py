"""Learning rates: a function of the update alone, which neither resuming nor processes can bend; AdamW's groups."""

import math

from torch import nn


def warmup_cosine(update: int, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """Factor on the base learning rate at `update` (0-based) of `total`: linear warm-up, then half a cosine.

    The warm-up rises from 1/warmup to 1; the cosine (Loshchilov & Hutter 2017, SGDR without restarts) falls from 1 to
    `final`, which it reaches at update `total`; past the end it stays there. Raises ValueError unless
    0 <= warmup <= total.
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up of {warmup} updates does not fit into {total}")
    if update < warmup:
        return (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, lr_scale: dict[str, float] | None = None
) -> list[dict]:
    """Parameter groups for AdamW: no weight decay on biases, norms and other vectors; lower rates by name prefix.

    Nor on what the model names in `no_weight_decay()`, as timm's models do: position embeddings and their like.
    `lr_scale` maps a prefix of the parameter names to a factor on `lr`, e.g. {"backbone.": 0.1}; the longest matching
    prefix counts. Raises ValueError for a prefix that matches nothing. Groups carry their `lr`; `Run.step` multiplies
    it with the schedule's factor.
    """
    lr_scale = lr_scale or {}
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unused = set(lr_scale)
    for name, parameter in model.named_parameters():
        prefixes = [prefix for prefix in lr_scale if name.startswith(prefix)]
        unused -= set(prefixes)
        scale = lr_scale[max(prefixes, key=len)] if prefixes else 1.0
        decay = weight_decay if parameter.ndim > 1 and name not in no_decay else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    if unused:
        raise ValueError(f"no parameter is named {' or '.join(sorted(unused))}…")
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": decay} for (scale, decay), parameters in groups.items()
    ]
