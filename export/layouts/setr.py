"""SETR as MMSegmentation publishes it: naive, PUP and MLA, ViT-L and DeiT backbones.

Read for names and shapes: open-mmlab/mmsegmentation (`mmseg/models/backbones/vit.py`, `necks/mla_neck.py`,
`decode_heads/setr_up_head.py`, `decode_heads/setr_mla_head.py`, `configs/setr`). Auxiliary heads are for training.
What no tensor tells is that of the published configs: heads of 64 channels, a class token for all but MLA, MLA's layers
at every quarter of the depth, positions interpolated bilinearly, and windows and the scale of test images by the size
trained for (`configs/_base_/datasets`). The names of the classes are read from the file's `meta`.
"""

from __future__ import annotations

import math
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all, numbered
from edgevtx.export.layouts.timm import IMAGENET

# side of the image trained for -> stride of the windows, the shortest and longest edge of test images: Cityscapes,
# ADE20K, Pascal Context, whose images are smaller than its windows unless they are nearly square
PUBLISHED = {768: (512, 1025, 2049), 512: (341, 512, 2048), 480: (320, 520, 520)}

_BACKBONE = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.projection.@": "patch_embed.@",
    "layers.#.ln1.@": "layers.#.norm1.@",
    "layers.#.attn.attn.out_proj.@": "layers.#.o_proj.@",
    "layers.#.ln2.@": "layers.#.norm2.@",
    "layers.#.ffn.layers.0.0.@": "layers.#.fc1.@",
    "layers.#.ffn.layers.1.@": "layers.#.fc2.@",
}
_FUSED = ("q_proj", "k_proj", "v_proj")
_UPSAMPLING = {
    "decode_head.norm.@": "decoder.norm.@",
    "decode_head.up_convs.#.0.conv.weight": "decoder.stages.#.conv.weight",
    "decode_head.up_convs.#.0.bn.@": "decoder.stages.#.norm.@",
    "decode_head.conv_seg.@": "decoder.classifier.@",
}
_AGGREGATING = {
    "neck.norm.#.@": "decoder.norms.#.@",
    "neck.mla.channel_proj.#.conv.weight": "decoder.projections.#.conv.weight",
    "neck.mla.channel_proj.#.bn.@": "decoder.projections.#.norm.@",
    "neck.mla.feat_extract.#.conv.weight": "decoder.outputs.#.conv.weight",
    "neck.mla.feat_extract.#.bn.@": "decoder.outputs.#.norm.@",
    "decode_head.up_convs.#.#.conv.weight": "decoder.branches.#.#.conv.weight",
    "decode_head.up_convs.#.#.bn.@": "decoder.branches.#.#.norm.@",
    "decode_head.conv_seg.@": "decoder.classifier.@",
}
_AUXILIARY = ("norm.@", "up_convs.#.0.conv.weight", "up_convs.#.0.bn.@", "convs.#.conv.weight", "convs.#.bn.@")


def _read(source: Source) -> Reading:
    width, _, patch, _ = source.shape("backbone.patch_embed.projection.weight")
    depth = source.count("backbone.layers.")
    decoder = _decoder(source)
    size = _image_size(source, patch)
    published = {1024: 16, 768: 12, 384: 6, 192: 3}.get(width)
    classes = source.shape("decode_head.conv_seg.weight")[0]
    config: dict[str, Any] = {
        "model_type": "setr",
        "decoder": decoder,
        "image_size": list(size),
        "patch_size": patch,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": source.told("num_attention_heads", published, "does not tell how its heads are split"),
        "intermediate_size": source.shape("backbone.layers.0.ffn.layers.0.0.weight")[0],
        "class_token": decoder != "mla",
        "id2label": numbered(classes),
    }
    if decoder == "mla":
        config["out_indices"] = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        config["decoder_channels"] = source.shape("neck.mla.channel_proj.0.conv.weight")[0]
        config["head_channels"] = source.shape("decode_head.up_convs.0.0.conv.weight")[0]
    else:
        config["decoder_channels"] = source.shape("decode_head.up_convs.0.0.conv.weight")[0]
    processor, window = _inference(size)
    if window:
        config["window"] = window
    rules = (
        *Rule.table(_BACKBONE, prefix="backbone.", target="backbone."),
        *(
            Rule(
                f"backbone.layers.#.attn.attn.in_proj_{part}",
                tuple(f"backbone.layers.#.{one}.{part}" for one in _FUSED),
            )
            for part in ("weight", "bias")
        ),
        *Rule.table(_AGGREGATING if decoder == "mla" else _UPSAMPLING),
        *(Rule(f"auxiliary_head.{name}") for name in (*_AUXILIARY, "conv_seg.@")),
        *(Rule(f"auxiliary_head.#.{name}") for name in (*_AUXILIARY, "conv_seg.@")),
    )
    assumed = "assumed as published: attention heads, class token, layers taken, windows, image processor"
    notes = [f"{assumed}; --config replaces them"]
    if len(source.classes) == classes:
        config["id2label"] = {str(index): name for index, name in enumerate(source.classes)}
    elif source.classes:
        notes.append(f"the file names {len(source.classes)} classes and has {classes}, so they are numbered")
    return Reading(config, processor, rules, tuple(notes))


def _decoder(source: Source) -> str:
    """The kind of decoder, by its tensors."""
    if "neck.mla.channel_proj.0.conv.weight" in source:
        return "mla"
    kernel = source.shape("decode_head.up_convs.0.0.conv.weight")[2]
    found = source.count("decode_head.up_convs."), kernel
    kinds = {(1, 1): "naive", (4, 3): "pup"}
    if found not in kinds:
        raise CheckpointError(
            f"{source.file} has a decoder of {found[0]} convolutions of {kernel}x{kernel}; expected SETR's one of 1x1 "
            "(naive), four of 3x3 (PUP), or a neck.mla (MLA)"
        )
    return kinds[found]


def _image_size(source: Source, patch: int) -> tuple[int, int]:
    """(height, width) that the position table was trained for: the user's, or a square."""
    patches = source.shape("backbone.pos_embed")[1] - 1
    given = source.config.get("image_size")
    if given is not None:
        height, width = (given, given) if isinstance(given, int) else given
        return int(height), int(width)
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(
            f"{source.file} has positions for {patches} patches, which is no square; give a config.json with the "
            "image_size [height, width] with --config"
        )
    return side * patch, side * patch


def _inference(size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The image processor, and the windows where the published config of that size has some."""
    mean, std = IMAGENET
    edges: dict[str, int] = {"height": size[0], "width": size[1]}
    window = None
    if size[0] == size[1] and size[0] in PUBLISHED:
        stride, shortest, longest = PUBLISHED[size[0]]
        edges = {"shortest_edge": shortest, "longest_edge": longest}
        window = {"size": list(size), "stride": [stride, stride]}
    processor = {"image_processor_type": "MMSegImageProcessor", "size": edges}
    return {**processor, "image_mean": list(mean), "image_std": list(std)}, window


LAYOUTS = (
    Layout(
        "MMSegmentation SETR",
        ("setr",),
        "https://github.com/open-mmlab/mmsegmentation",
        has_all(
            "backbone.patch_embed.projection.weight",
            "backbone.layers.0.attn.attn.in_proj_weight",
            "decode_head.conv_seg.weight",
        ),
        _read,
    ),
)
