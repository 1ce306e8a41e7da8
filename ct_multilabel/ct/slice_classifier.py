"""A classifier of CT slices: backbone -> attention -> pooling -> head, and gated attention over the slices of a volume.

Backbones from timm; attention blocks: `core.attention`; gated attention: Ilse et al. 2018, "Attention-based Deep
Multiple Instance Learning"; activation maps: Selvaraju et al. 2017, "Grad-CAM".
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import attention as attention_block
from core.backbones import timm_backbone
from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold
from core.unfreezing import UnfreezingSchedule, frozen_context

KIND = "slice classifier"  # in config.json
POOLINGS = {"avg": "avg", "max": "max", "avgmax": "catavgmax"}  # of a feature map, as timm calls them
SCALES = 3  # stages that `multiscale` fuses: strides 8, 16 and 32 of the usual backbone


class SliceClassifier(nn.Module):
    """Slices (B, S, 3, H, W) uint8 of B volumes to the logits of `n_labels` labels, a dict:

    - `slices` (B, S, labels), logits of each slice by itself
    - with `gated_attention` also `weights` (B, S, labels), which add up to 1 over S, and `volume` (B, labels), the
      logits of the whole: the slices' logits, averaged with these weights

    `backbone` is any timm model that gives feature maps, with ImageNet weights if `pretrained`, or with those of the
    file `backbone_weights`. `attention` (none, se, cbam) works on its last feature map. `multiscale` adds the two
    stages before, each pooled and given its own attention. `pooling` (avg, max, avgmax = both, side by side) makes one
    vector of a map: a mean dilutes what is small, a maximum keeps it. `image_size` is that of the slices in px.
    """

    def __init__(
        self,
        n_labels: int,
        backbone: str = "efficientnet_b0",
        attention: str = "none",
        multiscale: bool = False,
        gated_attention: bool = False,
        pooling: str = "avg",
        dropout: float = 0.2,
        image_size: int = 224,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
    ):
        import timm
        from timm.layers import SelectAdaptivePool2d

        super().__init__()
        self.arguments = {"backbone": backbone, "attention": attention, "multiscale": multiscale}
        self.arguments |= {"gated_attention": gated_attention, "pooling": pooling}
        self.arguments |= {"dropout": dropout, "image_size": image_size}
        pretraining = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
        size = {"img_size": image_size} if pretraining and pretraining.fixed_input_size else {}
        self.backbone = timm_backbone(backbone, pretrained, backbone_weights, num_classes=0, **size)
        self.backbone.to(memory_format=torch.channels_last)  # what tensor cores want; CPUs gain a little
        if not hasattr(self.backbone, "forward_intermediates"):
            raise UserError(f"--model {backbone} gives no feature maps in timm; take resnet50 or efficientnet_b0")
        self.n_scales = SCALES if multiscale else 1
        with torch.no_grad():
            self.eval()
            maps = self._feature_maps(torch.zeros(1, 3, image_size, image_size))
            self.train()
        self.attention = nn.ModuleList(attention_block(attention, x.shape[1]) for x in maps)
        self.global_pool = SelectAdaptivePool2d(pool_type=POOLINGS[pooling], flatten=True)
        width = sum(x.shape[1] for x in maps) * self.global_pool.feat_mult()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_labels)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.gate = GatedAttention(width, n_labels) if gated_attention else None
        # Normalisation in the model: uint8 slices are a quarter of the bytes to move, and no caller can forget it.
        for name in ("mean", "std"):
            value = getattr(pretraining, name) if pretraining else (0.5, 0.5, 0.5)
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1))

    def forward(self, slices: Tensor) -> dict[str, Tensor]:
        return self.classify(self.encode(slices))

    def encode(self, slices: Tensor) -> Tensor:
        """Features (B, S, D) of slices (B, S, 3, H, W) uint8."""
        features = self.pool(self.feature_maps(slices.flatten(0, 1)))
        return features.unflatten(0, slices.shape[:2])

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """The prediction, as `forward` gives it, from features (B, S, D)."""
        prediction = {"slices": self.head(self.dropout(features))}
        if self.gate:
            weights = self.gate(features)
            # A weighted mean of features, then the head, is the weighted mean of the slices' logits: the head is
            # linear and the weights add up to 1. So every slice keeps a logit of its own to look at.
            volume = (weights * prediction["slices"]).sum(dim=1)
            prediction |= {"weights": weights, "volume": volume}
        return prediction

    def feature_maps(self, slices: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) after attention, coarsest last, of slices (B, 3, H, W) uint8."""
        with frozen_context(self.backbone):
            image = slices.contiguous(memory_format=torch.channels_last).float()
            maps = self._feature_maps((image / 255 - self.mean) / self.std)
        return [attend(x) for attend, x in zip(self.attention, maps, strict=True)]

    def pool(self, maps: list[Tensor]) -> Tensor:
        """(B, D) of the feature maps, one after the other."""
        return torch.cat([self.global_pool(x) for x in maps], dim=1)

    def _feature_maps(self, image: Tensor) -> list[Tensor]:
        final, stages = self.backbone.forward_intermediates(image, indices=self.n_scales, norm=True)
        # A convolutional network ends with a map of its own, often wider than the last stage (EfficientNet: 1280
        # against 320 channels); a transformer ends with tokens, of which the last stage is the map.
        if final.ndim == 4 and final.shape[1] == self.backbone.num_features:
            return [*stages[:-1], final]
        return stages

    def start_at(self, prevalence: np.ndarray) -> None:
        """Sets the head's biases so that the first answers are the prevalence (labels,) and not one half.

        Without it the first epochs are spent on learning what is rare (Lin et al. 2017, section 4.1).
        """
        prior = torch.from_numpy(prevalence).clamp(0.01, 0.99)
        with torch.no_grad():
            self.head.bias.copy_(prior.logit())

    def stages(self) -> list[list[nn.Module]]:
        """The backbone in at most five parts from input to output, to be unfrozen from the end."""
        info = self.backbone.feature_info
        ends = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
        containers = {end.split(".")[0] for end in ends if "." in end}
        parts, stage = [], []
        for name, module in self.backbone.named_children():
            inner = module.named_children() if name in containers else [("", module)]
            for child_name, child in inner:
                if any(True for _ in child.parameters()):
                    stage.append(child)
                if ".".join(filter(None, (name, child_name))) in ends and stage:
                    parts.append(stage)
                    stage = []
        direct = list(self.backbone.parameters(recurse=False))  # position embedding, class token
        if direct:
            parts[0].insert(0, nn.ParameterList(direct))
        parts[-1] += stage
        groups = np.array_split(range(len(parts)), min(5, len(parts)))
        return [[module for i in group for module in parts[i]] for group in groups]

    def unfreezing(self, first_epoch: int, every: int = 2) -> UnfreezingSchedule:
        """The backbone's last part learns from epoch `first_epoch` on, one more part every `every` epochs."""
        parts = reversed(self.stages())
        return UnfreezingSchedule([(first_epoch + i * every, part) for i, part in enumerate(parts)])

    def grad_cam(self, slices: Tensor, label: int) -> Tensor:
        """Class activation maps (B, H, W) in 0-1 of slices (B, 3, H, W) for a label: where the evidence is.

        Feature maps times the gradients of the slice's logit, place by place, summed over channels and scales,
        negative parts cut off, scaled to the largest value of the batch. For average pooling this is Grad-CAM; for
        maxima it is what Grad-CAM means to be (Draelos & Carin 2020, "HiResCAM"): the map adds up to the logit.
        """
        size = slices.shape[-2:]
        with torch.enable_grad():
            maps = [x.detach().requires_grad_() for x in self.feature_maps(slices)]
            logits = self.head(self.pool(maps))[:, label]
            gradients = torch.autograd.grad(logits.sum(), maps)
        heat = 0
        for x, gradient in zip(maps, gradients, strict=True):
            share = (gradient * x.detach()).sum(dim=1, keepdim=True) * x.shape[-2:].numel()  # a pixel of a coarse map
            heat = heat + F.interpolate(share, size=size, mode="bilinear", align_corners=False)  # stands for many
        heat = F.relu(heat[:, 0])
        return heat / heat.max().clamp_min(1e-12)

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["SliceClassifier", dict]:
        """(model in eval mode, config) of a `best/` folder. Raises UserError if it is another model's, or has outputs
        that were not taught."""
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, labels=list, taught=dict, prevalence=dict, calibration=dict)
            must_hold(config, slices=dict, tune_fraction=int | float)
            if untaught := [label for label in config["labels"] if not config["taught"]["labels"][label]]:
                raise UserError(f"{folder} has labels that were not taught: {', '.join(untaught)}; train again")
            model = cls(len(config["labels"]), **config["model"])
            model.load_state_dict(state)
            return model.eval(), config


class GatedAttention(nn.Module):
    """Weights (B, S, labels) over the slices of features (B, S, D): softmax of `w · (tanh(V h) ⊙ σ(U h))`.

    One w a label, because findings lie in different slices; V and U are shared. Equation 9 of Ilse et al. 2018.
    """

    def __init__(self, width: int, labels: int, hidden: int = 128):
        super().__init__()
        self.tanh, self.sigmoid = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weights = nn.Linear(hidden, labels, bias=False)  # a bias would cancel in the softmax

    def forward(self, features: Tensor) -> Tensor:
        gated = torch.tanh(self.tanh(features)) * torch.sigmoid(self.sigmoid(features))
        return self.weights(gated).float().softmax(dim=1)
