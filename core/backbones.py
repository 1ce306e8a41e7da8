"""Backbones from timm, with ImageNet weights from the Hugging Face Hub or a file."""

import logging
from pathlib import Path

from torch import nn

from core.checkpoints import load_weights
from core.errors import UserError


def timm_backbone(name: str, pretrained: bool = False, weights: Path | None = None, **options) -> nn.Module:
    """timm model `name` with ImageNet weights if `pretrained`, or with the weights of the file `weights`.

    `options` are passed to `timm.create_model`. For `in_chans=1` the weights of the three colour channels are summed,
    as in timm. Raises UserError for an unknown name, weights that do not fit, and a failed download.
    """
    import timm  # imported on use: --help does not wait for it

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise UserError(f"{name} is not a model of timm" + (f"; similar names: {', '.join(close)}" if close else ""))
    if weights:
        model = timm.create_model(name, pretrained=False, **options)
        state, wanted = load_weights(weights), model.state_dict()
        missing = set(wanted) - set(state)
        if missing:
            raise UserError(f"{weights} is not for {name}: {len(missing)} weights are missing, e.g. {min(missing)}")
        for key, tensor in wanted.items():
            if tensor.ndim == 4 and tensor.shape[1] == 1 and state[key].shape[1] == 3:
                state[key] = state[key].sum(dim=1, keepdim=True)
        try:
            model.load_state_dict({key: state[key] for key in wanted})
        except RuntimeError as error:
            raise UserError(f"{weights} is not for {name}: the shapes of some weights differ") from error
        return model
    # Without this, timm lists every weight of the unused head as unexpected.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:  # errors of the Hub are OSErrors
        if not pretrained:
            raise
        hub = timm.get_pretrained_cfg(name).hf_hub_id
        raise UserError(
            f"cannot download the ImageNet weights of {name} ({type(error).__name__}). Offline: copy model.safetensors "
            f"of {hub} to this machine and use --backbone_weights FILE, or use random weights with --no-pretrained"
        ) from error
