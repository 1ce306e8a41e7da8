"""Learning rate schedule, as a function of the update alone (exact after resuming), and AdamW's parameter groups."""

import math

from torch import nn


def warmup_cosine(update: int, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """Factor on the base learning rate at `update` (0-based) of `total`: linear warm-up, then cosine decay.

    The warm-up rises from 1/warmup to 1; the cosine (Loshchilov & Hutter 2017, SGDR without restarts) falls from 1 to
    `final` at update `total` and stays there. Raises ValueError unless 0 <= warmup <= total.
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
    """Parameter groups for AdamW with their `lr`, which `Run.step` multiplies by the factor of the schedule.

    No weight decay on biases, norms and other vectors, and on the names in the model's `no_weight_decay()` (timm:
    position embeddings). `lr_scale`: prefix of parameter names -> factor on `lr`, e.g. {"backbone.": 0.1}; the longest
    matching prefix counts. Raises ValueError for a prefix without parameters.
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
        raise ValueError(f"no parameter name begins with {' or '.join(sorted(unused))}")
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": decay} for (scale, decay), parameters in groups.items()
    ]
