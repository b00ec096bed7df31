"""DETR checkpoints whose config asks for timm's ResNet, read with transformers' own ResNet and without timm.

The published DETR weights name their backbone as timm and torchvision do (`layer1.0.conv1`, `bn1`,
`downsample.0`). The architecture is the same ResNet v1.5, so only names change. The dilated variants (DC5) replace
the last stage's stride by dilation, as torchvision's `replace_stride_with_dilation` does; transformers' ResNet has
no such option, so the convolutions are changed after loading.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgevtx.errors import CheckpointError

_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)
# timm's name -> layer type, blocks per stage, channels per stage
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2), _BASIC),
    "resnet34": ("basic", (3, 4, 6, 3), _BASIC),
    "resnet50": ("bottleneck", (3, 4, 6, 3), _BOTTLENECK),
    "resnet101": ("bottleneck", (3, 4, 23, 3), _BOTTLENECK),
    "resnet152": ("bottleneck", (3, 8, 36, 3), _BOTTLENECK),
}
# keys of a config that speak of timm, and of weights to be fetched for it
_TIMM_KEYS = ("use_timm_backbone", "backbone", "backbone_config", "backbone_kwargs", "use_pretrained_backbone")


def asks_for_timm(config: dict[str, Any]) -> bool:
    """Whether a DETR config wants its backbone from timm, as transformers reads that config."""
    backbone = config.get("backbone_config")
    if backbone is not None:
        return str(backbone.get("model_type")) == "timm_backbone"
    return bool(config.get("use_timm_backbone", True))


def is_dilated(config: dict[str, Any]) -> bool:
    """Whether the timm backbone has a dilated last stage (DC5): `dilation`, or an output stride of 16."""
    nested = config.get("backbone_config") or config.get("backbone_kwargs") or {}
    return bool(config.get("dilation")) or nested.get("output_stride", 32) == 16


def without_timm(config: dict[str, Any]) -> dict[str, Any]:
    """The same DETR config with transformers' ResNet; raises `CheckpointError` for a backbone that is no ResNet."""
    nested = config.get("backbone_config") or {}
    name = nested.get("backbone") or config.get("backbone") or "resnet50"
    layer_type, depths, channels = RESNETS.get(str(name).split(".")[0], (None, (), ()))
    if layer_type is None:
        raise CheckpointError(f"the backbone {name} is not known here; expected one of {', '.join(RESNETS)}")
    native = {key: value for key, value in config.items() if key not in _TIMM_KEYS}
    native["backbone_config"] = {
        "model_type": "resnet",
        "layer_type": layer_type,
        "depths": list(depths),
        "hidden_sizes": list(channels),
        "embedding_size": 64,
        "num_channels": config.get("num_channels", 3),
        "out_features": ["stage4"],
    }
    return native


def timm_to_native() -> dict[str, str]:
    """Regular expressions of timm's tensor names -> transformers' names, for `Checkpoint.load`."""
    stem = r"backbone(?:\.conv_encoder)?\.model\."
    names = {
        stem + r"conv1\.": "backbone.model.embedder.embedder.convolution.",
        stem + r"bn1\.": "backbone.model.embedder.embedder.normalization.",
    }
    for stage in range(4):
        block = rf"encoder.stages.{stage}.layers.\1."
        for layer in range(3):
            names[rf"layer{stage + 1}\.(\d+)\.conv{layer + 1}\."] = f"{block}layer.{layer}.convolution."
            names[rf"layer{stage + 1}\.(\d+)\.bn{layer + 1}\."] = f"{block}layer.{layer}.normalization."
        names[rf"layer{stage + 1}\.(\d+)\.downsample\.0\."] = f"{block}shortcut.convolution."
        names[rf"layer{stage + 1}\.(\d+)\.downsample\.1\."] = f"{block}shortcut.normalization."
    return names


def dilate_last_stage(backbone: Any) -> None:
    """Replace the stride of a ResNet's last stage by dilation 2, in place.

    The convolution that had the stride keeps the dilation of the stage before it, 1; every 3x3 after it gets 2.
    Reference: torchvision's `ResNet._make_layer` (`previous_dilation`).
    """
    for block in backbone.encoder.stages[-1].layers:
        for convolution in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            if convolution.stride != (1, 1):
                convolution.stride = (1, 1)
            elif convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)
