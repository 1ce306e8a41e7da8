"""Backbones from timm, with ImageNet weights from the hub or from a file."""

import logging
from pathlib import Path

from torch import nn

from core.checkpoints import load_weights
from core.errors import UserError


def timm_backbone(name: str, pretrained: bool = False, weights: Path | None = None, **options) -> nn.Module:
    """timm's model `name` with ImageNet weights if `pretrained`, or with those of the file `weights`.

    `options` go to `timm.create_model`. For `in_chans=1` the weights of the three colours are added up, as timm does:
    a grey picture is r = g = b. Raises UserError for an unknown name, and where the weights cannot be had.
    """
    import timm  # here, so that a script's --help does not wait for it

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise UserError(f"{name} is not a model of timm" + (f"; there are {', '.join(close)} …" if close else ""))
    if weights:
        model = timm.create_model(name, pretrained=False, **options)
        state, wanted = load_weights(weights), model.state_dict()
        missing = set(wanted) - set(state)
        if missing:
            raise UserError(f"{weights} is not for {name}: {len(missing)} weights are missing, {min(missing)} first")
        for key, tensor in wanted.items():
            if tensor.ndim == 4 and tensor.shape[1] == 1 and state[key].shape[1] == 3:
                state[key] = state[key].sum(dim=1, keepdim=True)
        try:
            model.load_state_dict({key: state[key] for key in wanted})
        except RuntimeError as error:
            raise UserError(f"{weights} is not for {name}: some weights have other shapes") from error
        return model
    # timm lists weights that a headless model does not use, a page of names, as unexpected.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors
        if not pretrained:
            raise
        hub = timm.get_pretrained_cfg(name).hf_hub_id
        raise UserError(
            f"cannot fetch the ImageNet weights of {name} ({type(error).__name__}). Offline: download "
            f"model.safetensors of {hub} elsewhere and give it as --backbone_weights FILE, or start from random "
            "weights with --no-pretrained"
        ) from error
