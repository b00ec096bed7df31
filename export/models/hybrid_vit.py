"""ViT whose tokens come from a convolutional network's feature map.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1: the patch embedding projects patches of the
map, 1x1 ones included. The network is a BiT ResNet (GroupNorm and standardised weights: Kolesnikov et al., "Big
Transfer", 2020), of which the published models keep three stages (3, 4 and 9 layers), or a plain ResNet. Config and
tensor names are those of transformers' former `ViTHybridForImageClassification`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitBackbone, BitConfig, ResNetBackbone, ResNetConfig, ViTConfig, ViTForImageClassification
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from edgevtx.export.patches import pair

BACKBONES: dict[str, tuple[Any, Any]] = {"bit": (BitConfig, BitBackbone), "resnet": (ResNetConfig, ResNetBackbone)}
# where a config names no backbone: the published R50 of three stages
R50 = {
    "model_type": "bit",
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "hidden_sizes": [256, 512, 1024],
    "out_features": ["stage3"],
    "embedding_dynamic_padding": True,
}


def is_hybrid(config: dict[str, Any]) -> bool:
    """Whether a ViT's `config.json` asks for tokens from a feature map."""
    return config.get("model_type") == "vit_hybrid" or bool(config.get("backbone_config"))


def in_pixels(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a hybrid with `patch_size` in pixels of the image, not in cells of the map, and its backbone's.

    Raises `ValueError` for a backbone that is not one of `BACKBONES`, or of which no stage is asked for.
    """
    backbone = dict(config.get("backbone_config") or R50)
    kind = backbone.get("model_type") or "bit"
    if kind not in BACKBONES:
        raise ValueError(f"the backbone is of type {kind}, expected {' or '.join(BACKBONES)}")
    if not backbone.get("out_features") and not backbone.get("out_indices"):
        backbone["out_features"] = [f"stage{len(backbone.get('depths', (3, 4, 6, 3)))}"]
    built = BACKBONES[kind][0].from_dict(backbone)
    stage = built.stage_names.index(built.out_features[-1])
    if stage == 0:
        raise ValueError(
            f"out_features of the backbone end at the stem; expected one of {', '.join(built.stage_names[1:])}"
        )
    # a stride of 4 in the stem (of 2, where nothing pools), 2 in every stage after the first
    stride = 4 * 2 ** (stage - 1)
    if kind == "bit":
        stride = min(stride, built.output_stride)
    elif built.downsample_in_first_stage:
        stride *= 2
    rows, columns = pair(config.get("patch_size", 1))
    return {
        **config,
        "model_type": "vit",
        "patch_size": [rows * stride, columns * stride] if rows != columns else rows * stride,
        "backbone_config": {**backbone, "model_type": kind},
        "backbone_stride": stride,
    }


class HybridPatchEmbeddings(nn.Module):
    """pixel_values (N,3,H,W) -> tokens (N,T,D): patches of the last feature map that the backbone gives, projected."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        backbone_config, backbone = BACKBONES[config.backbone_config["model_type"]]
        self.backbone = backbone(backbone_config.from_dict(config.backbone_config))
        rows, columns = (edge // config.backbone_stride for edge in pair(config.patch_size))
        self.projection = nn.Conv2d(self.backbone.channels[-1], config.hidden_size, (rows, columns), (rows, columns))
        self.image_size = pair(config.image_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.backbone(pixel_values).feature_maps[-1]
        tokens: torch.Tensor = self.projection(features).flatten(2).transpose(1, 2)
        return tokens


class HybridViTForImageClassification(ViTForImageClassification):  # type: ignore[misc]
    """transformers' ViT classifier with `HybridPatchEmbeddings`; its config is what `in_pixels` gives."""

    config_class = ViTConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vit.embeddings.patch_embeddings = HybridPatchEmbeddings(config)
        self.post_init()


def fold_standardisation(model: nn.Module) -> None:
    """Replace every standardised weight by its value, in place: at run time they are plain convolutions.

    Each filter has its own mean taken off and is divided by its own standard deviation.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WeightStandardizedConv2d):
                setattr(parent, name, _plain(child))


def _plain(layer: Any) -> nn.Module:
    flat = layer.weight.detach().double().flatten(1)
    mean, variance = flat.mean(1, keepdim=True), flat.var(1, correction=0, keepdim=True)
    weight = ((flat - mean) / (variance + layer.eps).sqrt()).float().reshape(layer.weight.shape)
    convolution = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
    )
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = layer.bias
    return convolution if layer.pad is None else nn.Sequential(layer.pad, convolution)
