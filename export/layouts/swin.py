"""Swin and Swin v2 as microsoft/Swin-Transformer and timm publish them.

Read for names and shapes: microsoft/Swin-Transformer (`models/swin_transformer.py`, `swin_transformer_v2.py`,
`data/build.py`) and huggingface/pytorch-image-models (`timm/models/swin_transformer.py`, `swin_transformer_v2.py`).
Microsoft keeps buffers of one input size (indices, coordinates, masks of shifted windows): they are left out, and
tell the size. timm drops them, puts each downsampling before the stage that follows it, and calls the head `head.fc`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import timm
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all
from edgevtx.export.layouts.timm_vit import qkv

# window -> input side of the published models, where no mask of shifted windows and no timm config tells it
INPUTS = {1: {7: 224, 12: 384}, 2: {8: 256, 12: 192, 16: 256, 24: 384}}

_NAMES = {
    "patch_embed.proj.@": "embeddings.patch_embeddings.projection.@",
    "patch_embed.norm.@": "embeddings.norm.@",
    "absolute_pos_embed": "embeddings.position_embeddings",
    "norm.@": "layernorm.@",
}
_BLOCK = {
    "norm1.@": "layernorm_before.@",
    "norm2.@": "layernorm_after.@",
    "attn.proj.@": "attention.output.dense.@",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1.@": "intermediate.dense.@",
    "mlp.fc2.@": "output.dense.@",
    # v2: cosine attention, a bias from log-spaced coordinates, and no bias of the keys
    "attn.logit_scale": "attention.self.logit_scale",
    "attn.cpb_mlp.#.@": "attention.self.continuous_position_bias_mlp.#.@",
    "attn.q_bias": "attention.self.query.bias",
    "attn.v_bias": "attention.self.value.bias",
}
_BUFFERS = (
    "layers.#.blocks.#.attn_mask",
    "layers.#.blocks.#.attn.relative_position_index",
    "layers.#.blocks.#.attn.relative_coords_table",
    "layers.#.blocks.#.attn.k_bias",
)


def _rules(prefix: str, stages: int, shifted: int) -> tuple[Rule, ...]:
    """The table; `shifted` is by how much an author's number of a downsampling exceeds the published one."""
    block, target = "layers.#.blocks.#.", f"{prefix}encoder.layers.#.blocks.#."
    down = [
        rule
        for stage in range(stages - 1)
        for rule in Rule.table(
            {"reduction.weight": "reduction.weight", "norm.@": "norm.@"},
            prefix=f"layers.{stage + shifted}.downsample.",
            target=f"{prefix}encoder.layers.{stage}.downsample.",
        )
    ]
    return (
        *Rule.table(_NAMES, target=prefix),
        *Rule.table({"head.@": "classifier.@", "head.fc.@": "classifier.@"}),
        qkv(block + "attn.qkv.@", target + "attention.self.{}.@"),
        *Rule.table(_BLOCK, prefix=block, target=target),
        *down,
        *(Rule(name) for name in _BUFFERS),
    )


def _read_v1(source: Source) -> Reading:
    return _read(source, 1)


def _read_v2(source: Source) -> Reading:
    return _read(source, 2)


def _read(source: Source, version: int) -> Reading:
    stages = source.count("layers.")
    width, channels, patch, _ = source.shape("patch_embed.proj.weight")
    after = "layers.0.downsample.reduction.weight" in source  # downsampling at the end of a stage, as Microsoft has it
    classes = next((source.shape(name)[0] for name in ("head.fc.weight", "head.weight") if name in source), 0)
    windows, pretrained = _windows(source, version, stages)
    # in the last stage a window may be larger than the map, which bounds it
    window = max(windows)
    side = _input_side(source, version, window, patch)
    table, column = ("attn.relative_position_bias_table", 1) if version == 1 else ("attn.logit_scale", 0)
    name = "swin" if version == 1 else "swinv2"
    config: dict[str, Any] = {
        "model_type": name,
        "architectures": [("Swin" if version == 1 else "Swinv2") + ("ForImageClassification" if classes else "Model")],
        "image_size": side,
        "patch_size": patch,
        "num_channels": channels,
        "embed_dim": width,
        "depths": [source.count(f"layers.{stage}.blocks.") for stage in range(stages)],
        "num_heads": [source.shape(f"layers.{stage}.blocks.0.{table}")[column] for stage in range(stages)],
        "window_size": window,
        "mlp_ratio": source.shape("layers.0.blocks.0.mlp.fc1.weight")[0] / width,
        "qkv_bias": "layers.0.blocks.0.attn.q_bias" in source or "layers.0.blocks.0.attn.qkv.bias" in source,
        "use_absolute_embeddings": "absolute_pos_embed" in source,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    }
    if classes:
        config["id2label"] = timm.id2label(source.timm, classes)
    if version == 2:
        config["pretrained_window_sizes"] = pretrained
    if source.timm:
        processor = timm.processor(source.timm, side)
    elif side == 384:  # Microsoft evaluates its models of this size on the whole image (TEST.CROP: False)
        processor = timm.whole(side, *timm.IMAGENET)
    else:
        processor = timm.shortest_then_crop(side, side * 256 // 224, *timm.IMAGENET)
    return Reading(config, processor, _rules(f"{name}.", stages, 0 if after else 1))


def _windows(source: Source, version: int, stages: int) -> tuple[list[int], list[int]]:
    """The window of each stage, and for v2 the one that it was pretrained with (0: the same)."""
    table = "attn.relative_position_bias_table" if version == 1 else "attn.relative_coords_table"
    names = [f"layers.{stage}.blocks.0.{table}" for stage in range(stages)]
    if version == 1:
        return [(math.isqrt(source.shape(name)[0]) + 1) // 2 for name in names], []
    if names[0] in source:
        windows = [(source.shape(name)[1] + 1) // 2 for name in names]
        spans = [_pretrained(source.tensors[name], window) for name, window in zip(names, windows, strict=True)]
        return windows, spans
    # timm keeps no buffers, but its architectures are named after their windows
    found = re.search(r"window(\d+)(?:to(\d+))?", str(source.timm.get("architecture", "")) or source.file)
    window = int(found[2] or found[1]) if found else None
    window = source.told("window_size", window, "has no buffer that tells the windows")
    before = int(found[1]) if found and found[2] else 0
    # published ones were pretrained at 192 pixels, whose last map of 6 x 6 bounds the window
    return [window] * stages, [min(before, 48 >> stage) for stage in range(stages)]


def _pretrained(coordinates: torch.Tensor, window: int) -> int:
    """The window that v2's coordinates are scaled to, read off the largest; 0 where it is `window` itself.

    The table holds log2(1 + 8 * distance / (pretrained - 1)) / log2(8); its largest distance is window - 1.
    """
    largest = float(coordinates.double().max())
    found = 1 + round(8 * (window - 1) / (2 ** (3 * largest) - 1))
    return 0 if found == window else found


def _input_side(source: Source, version: int, window: int, patch: int) -> int:
    """The side of the input in pixels: the user's, timm's, of the windows that the first mask counts, or published."""
    given = source.config.get("image_size")
    side = timm.input_size(source.timm) if given is None else int(given)
    if side is None and "layers.0.blocks.1.attn_mask" in source:
        side = math.isqrt(source.shape("layers.0.blocks.1.attn_mask")[0]) * window * patch
    if side is None:
        side = INPUTS[version].get(window)
    if side is None:
        raise CheckpointError(
            f"{source.file} has windows of {window}, which no published Swin has, so its input size is unknown; give a "
            "config.json with image_size with --config"
        )
    return side


_V1 = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
_V2 = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.cpb_mlp.0.weight")
_MICROSOFT = "https://github.com/microsoft/Swin-Transformer"
_TIMM = "https://github.com/huggingface/pytorch-image-models"

LAYOUTS = (
    Layout("microsoft Swin", ("swin",), _MICROSOFT, has_all(*_V1, but=("head.fc.weight",)), _read_v1),
    Layout("microsoft Swin v2", ("swin",), _MICROSOFT, has_all(*_V2, but=("head.fc.weight",)), _read_v2),
    Layout("timm Swin", ("swin",), _TIMM, has_all(*_V1), _read_v1, timm=True),
    Layout("timm Swin v2", ("swin",), _TIMM, has_all(*_V2), _read_v2, timm=True),
)
