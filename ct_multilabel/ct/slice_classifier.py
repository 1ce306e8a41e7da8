"""CT slice classifier: backbone -> attention -> pooling -> head, and gated attention over the slices of a volume.

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
POOLINGS = {"avg": "avg", "max": "max", "avgmax": "catavgmax"}  # pooling of feature maps -> its name in timm
SCALES = 3  # stages of `multiscale`: strides 8, 16 and 32 of common backbones


class SliceClassifier(nn.Module):
    """Classifier of slices (B, S, 3, H, W) uint8 of B volumes; returns a dict of logits:

    - `slices` (B, S, labels), of each slice
    - with `gated_attention` also `weights` (B, S, labels) with sum 1 over S, and `volume` (B, labels), the mean of the
      slices' logits with these weights

    `backbone`: any timm model with feature maps, with ImageNet weights if `pretrained` or from the file
    `backbone_weights`. `attention` (none, se, cbam): on the last feature map; `multiscale`: also the two stages before,
    each with its own attention. `pooling` of feature maps (avg, max, avgmax = both, concatenated): an average dilutes
    small findings, a maximum keeps them. `image_size`: slice size in px. Raises UserError for a backbone without
    feature maps.
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
        self.backbone.to(memory_format=torch.channels_last)  # faster on tensor cores, and slightly on CPUs
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
        # Normalisation in the model: no caller can forget it, and uint8 slices need a quarter of the bandwidth.
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
        """Prediction, as of `forward`, from features (B, S, D)."""
        prediction = {"slices": self.head(self.dropout(features))}
        if self.gate:
            weights = self.gate(features)
            # Equal to the head on the weighted mean of features: the head is linear and the weights sum to 1.
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
        """Pooled feature maps, concatenated: (B, D)."""
        return torch.cat([self.global_pool(x) for x in maps], dim=1)

    def _feature_maps(self, image: Tensor) -> list[Tensor]:
        final, stages = self.backbone.forward_intermediates(image, indices=self.n_scales, norm=True)
        # Convolutional networks end with another map, often wider than the last stage (EfficientNet: 1280 instead of
        # 320 channels); transformers end with tokens, and their last stage is the map.
        if final.ndim == 4 and final.shape[1] == self.backbone.num_features:
            return [*stages[:-1], final]
        return stages

    def start_at(self, prevalence: np.ndarray) -> None:
        """Sets the biases of the head to the prevalence (labels,), from which training starts.

        Otherwise the first epochs are spent on the class imbalance (Lin et al. 2017, section 4.1).
        """
        prior = torch.from_numpy(prevalence).clamp(0.01, 0.99)
        with torch.no_grad():
            self.head.bias.copy_(prior.logit())

    def stages(self) -> list[list[nn.Module]]:
        """The backbone in at most five parts from input to output, for gradual unfreezing."""
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
        """Schedule: the last part trains from epoch `first_epoch`, one more part every `every` epochs."""
        parts = reversed(self.stages())
        return UnfreezingSchedule([(first_epoch + i * every, part) for i, part in enumerate(parts)])

    def grad_cam(self, slices: Tensor, label: int) -> Tensor:
        """Class activation maps (B, H, W) in [0, 1] of slices (B, 3, H, W) uint8 for the number of a label.

        Feature maps times the gradients of the slice's logit, element by element, summed over channels and scales,
        rectified, and divided by the maximum of the batch: HiResCAM (Draelos & Carin 2020), whose sum is the logit also
        for maximum pooling; equal to Grad-CAM for average pooling.
        """
        size = slices.shape[-2:]
        with torch.enable_grad():
            maps = [x.detach().requires_grad_() for x in self.feature_maps(slices)]
            logits = self.head(self.pool(maps))[:, label]
            gradients = torch.autograd.grad(logits.sum(), maps)
        heat = 0
        for x, gradient in zip(maps, gradients, strict=True):
            # Times the number of pixels of the map: equal weight of all scales.
            share = (gradient * x.detach()).sum(dim=1, keepdim=True) * x.shape[-2:].numel()
            heat = heat + F.interpolate(share, size=size, mode="bilinear", align_corners=False)
        heat = F.relu(heat[:, 0])
        return heat / heat.max().clamp_min(1e-12)

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["SliceClassifier", dict]:
        """(model in eval mode, config) of a `best/` folder. Raises UserError for other models, and for labels without
        training cases."""
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
    """Attention weights (B, S, labels) from features (B, S, D): softmax over slices of `w · (tanh(V h) ⊙ σ(U h))`.

    One w per label, as findings lie in different slices; V and U are shared. Equation 9 of Ilse et al. 2018.
    """

    def __init__(self, width: int, labels: int, hidden: int = 128):
        super().__init__()
        self.tanh, self.sigmoid = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weights = nn.Linear(hidden, labels, bias=False)  # a bias would cancel in the softmax

    def forward(self, features: Tensor) -> Tensor:
        gated = torch.tanh(self.tanh(features)) * torch.sigmoid(self.sigmoid(features))
        return self.weights(gated).float().softmax(dim=1)
