"""DINOv2, with and without registers, as facebookresearch/dinov2 and timm publish it.

Read for names and shapes: facebookresearch/dinov2 (`dinov2/models/vision_transformer.py`, `dinov2/layers`) and
huggingface/pytorch-image-models (`timm/models/vision_transformer.py`). Training checkpoints put layers in chunks,
`blocks.2.17.` for layer 17. timm calls the registers `reg_token` and adds the class token's position to the token.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import timm
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all
from edgevtx.export.layouts.timm_vit import qkv, sizes

# hidden size -> attention heads of the published S, B, L and g
HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}

_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj.@": "embeddings.patch_embeddings.projection.@",
    "norm.@": "layernorm.@",
}
_LAYER = {
    "norm1.@": "norm1.@",
    "attn.proj.@": "attention.output.dense.@",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.@": "norm2.@",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12.@": "mlp.weights_in.@",
    "mlp.w3.@": "mlp.weights_out.@",
}
_MLP = {"mlp.fc1.@": "mlp.fc1.@", "mlp.fc2.@": "mlp.fc2.@"}
_SWIGLU = {"mlp.fc1.@": "mlp.weights_in.@", "mlp.fc2.@": "mlp.weights_out.@"}
# heads of the training that features do not use
_TRAINING = ("dino_head.mlp.#.@", "dino_head.last_layer.@", "ibot_head.mlp.#.@", "ibot_head.last_layer.@")


def _read(source: Source) -> Reading:
    source = replace(source, tensors={_unchunked(name): tensor for name, tensor in source.tensors.items()})
    registers = next((source.shape(name)[1] for name in ("register_tokens", "reg_token") if name in source), 0)
    # timm gives registers and class token no place of their own
    placed = "reg_token" not in source
    config: dict[str, Any] = sizes(source, 1 if placed else 0, HEADS)
    swiglu, ratio = _mlp(source, config["hidden_size"])
    config |= {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "mlp_ratio": ratio,
        "use_swiglu_ffn": swiglu,
    }
    if registers:
        config["num_register_tokens"] = registers
    rules = (
        Rule("pos_embed", ("embeddings.position_embeddings",), None if placed else _with_class_token),
        *Rule.table(_NAMES),
        *_layers("blocks.#.", swiglu),
        *_layers("blocks.~.#.", swiglu),
        *(Rule(name) for name in _TRAINING),
    )
    size = int(config["image_size"])
    processor = timm.processor(source.timm, size) if source.timm else timm.shortest_then_crop(224, 256, *timm.IMAGENET)
    # only training masks patches
    mask = {} if "mask_token" in source else {"embeddings.mask_token": torch.zeros(1, config["hidden_size"])}
    return Reading(config, processor, rules, added=mask)


def _layers(prefix: str, swiglu: bool) -> tuple[Rule, ...]:
    target = "encoder.layer.#."
    names = {**_LAYER, **(_SWIGLU if swiglu else _MLP)}
    return (
        qkv(prefix + "attn.qkv.@", target + "attention.attention.{}.@"),
        *Rule.table(names, prefix=prefix, target=target),
    )


def _unchunked(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def _mlp(source: Source, width: int) -> tuple[bool, int]:
    """Whether the MLP is a SwiGLU, and the config's ratio, which such an MLP rounds in its own way."""
    packed = "blocks.0.mlp.w12.weight" in source
    inner = source.shape("blocks.0.mlp.w12.weight" if packed else "blocks.0.mlp.fc1.weight")[0]
    if not packed and source.shape("blocks.0.mlp.fc2.weight")[1] == inner:
        return False, inner // width
    for ratio in range(1, 9):
        if inner == 2 * ((int(width * ratio * 2 / 3) + 7) // 8 * 8):
            return True, ratio
    raise CheckpointError(
        f"{source.file} has a gated MLP {inner} wide on {width} channels, which no DINOv2 has; is it another model?"
    )


def _with_class_token(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)


_DINOV2 = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight")
_CHUNKED = has_all(*_DINOV2, "blocks.0.0.ls1.gamma", but=("head.weight",))
_PLAIN = has_all(*_DINOV2, "blocks.0.ls1.gamma", but=("head.weight",))

LAYOUTS = (
    Layout(
        "facebookresearch DINOv2",
        ("dino",),
        "https://github.com/facebookresearch/dinov2",
        lambda tensors: _PLAIN(tensors) or _CHUNKED(tensors),
        _read,
    ),
    Layout(
        "timm DINOv2",
        ("dino",),
        "https://github.com/huggingface/pytorch-image-models",
        _PLAIN,
        _read,
        timm=True,
    ),
)
