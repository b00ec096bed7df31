"""DETR, for boxes and for panoptic masks, as facebookresearch/detr publishes it.

Read for names and shapes: `models/detr.py`, `transformer.py`, `backbone.py`, `segmentation.py`, `position_encoding.py`
and `hubconf.py`. The backbone keeps torchvision's names under `backbone.0.body.`; Hugging Face publishes the same
weights with timm's, which are torchvision's. A dilated last stage (DC5) changes no tensor: the file's name tells it.
"""

from __future__ import annotations

import re
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import coco
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all
from edgevtx.export.layouts.timm import BILINEAR, IMAGENET
from edgevtx.export.resnet_keys import RESNETS

# width -> attention heads of the published models
HEADS = {256: 8}

_NAMES = {
    "class_embed.@": "class_labels_classifier.@",
    "bbox_embed.layers.#.@": "bbox_predictor.layers.#.@",
    "query_embed.weight": "model.query_position_embeddings.weight",
    "input_proj.@": "model.input_projection.@",
    "transformer.decoder.norm.@": "model.decoder.layernorm.@",
    "backbone.1.row_embed.weight": "model.position_embedding.row_embeddings.weight",
    "backbone.1.col_embed.weight": "model.position_embedding.column_embeddings.weight",
}
_BODY = (
    "conv1.@",
    "bn1.@",
    *(f"layer{stage}.#.{kind}{step}.@" for stage in (1, 2, 3, 4) for kind in ("conv", "bn") for step in (1, 2, 3)),
    *(f"layer{stage}.#.downsample.#.@" for stage in (1, 2, 3, 4)),
)
_ENCODER = {
    "linear1.@": "fc1.@",
    "linear2.@": "fc2.@",
    "norm1.@": "self_attn_layer_norm.@",
    "norm2.@": "final_layer_norm.@",
}
_DECODER = {
    "linear1.@": "fc1.@",
    "linear2.@": "fc2.@",
    "norm1.@": "self_attn_layer_norm.@",
    "norm2.@": "encoder_attn_layer_norm.@",
    "norm3.@": "final_layer_norm.@",
}
# the mask head has the same names on both sides
_MASKS = (
    "mask_head.lay#.@",
    "mask_head.gn#.@",
    "mask_head.adapter#.@",
    "mask_head.out_lay.@",
    "bbox_attention.q_linear.@",
    "bbox_attention.k_linear.@",
)


def attention(pattern: str, target: str) -> tuple[Rule, ...]:
    """torch's MultiheadAttention -> Hugging Face's four projections."""
    parts = [f"{target}.{part}_proj." for part in "qkv"]
    return (
        Rule(f"{pattern}.in_proj_weight", tuple(f"{part}weight" for part in parts)),
        Rule(f"{pattern}.in_proj_bias", tuple(f"{part}bias" for part in parts)),
        Rule(f"{pattern}.out_proj.@", (f"{target}.out_proj.@",)),
    )


def _rules(prefix: str) -> tuple[Rule, ...]:
    layer, target = prefix + "transformer.{}.layers.#.", prefix + "model.{}.layers.#."
    body = {f"backbone.0.body.{name}": f"model.backbone.conv_encoder.model.{name}" for name in _BODY}
    return (
        *Rule.table({**_NAMES, **body}, prefix=prefix, target=prefix),
        *attention(layer.format("encoder") + "self_attn", target.format("encoder") + "self_attn"),
        *Rule.table(_ENCODER, prefix=layer.format("encoder"), target=target.format("encoder")),
        *attention(layer.format("decoder") + "self_attn", target.format("decoder") + "self_attn"),
        *attention(layer.format("decoder") + "multihead_attn", target.format("decoder") + "encoder_attn"),
        *Rule.table(_DECODER, prefix=layer.format("decoder"), target=target.format("decoder")),
        *Rule.table({name: name for name in _MASKS} if prefix else {}),
        Rule(f"{prefix}backbone.0.body.bn1.num_batches_tracked"),
    )


def _read(source: Source) -> Reading:
    return _config(source, "")


def _read_panoptic(source: Source) -> Reading:
    return _config(source, "detr.")


def _config(source: Source, prefix: str) -> Reading:
    queries, width = source.shape(f"{prefix}query_embed.weight")
    heads = source.told("encoder_attention_heads", HEADS.get(width), f"is {width} wide, which no published model is")
    dilation = bool(source.config.get("dilation", "dc5" in source.file.lower()))
    encoder, decoder = f"{prefix}transformer.encoder.layers.", f"{prefix}transformer.decoder.layers."
    classes = source.shape(f"{prefix}class_embed.weight")[0] - 1  # the last one is "no object"
    config: dict[str, Any] = {
        "model_type": "detr",
        "architectures": ["DetrForSegmentation" if prefix else "DetrForObjectDetection"],
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": _resnet(source, f"{prefix}backbone.0.body."),
        "backbone_config": None,
        "dilation": dilation,
        "num_queries": queries,
        "d_model": width,
        "encoder_layers": source.count(encoder),
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": source.shape(f"{encoder}0.linear1.weight")[0],
        "decoder_layers": source.count(decoder),
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": source.shape(f"{decoder}0.linear1.weight")[0],
        "position_embedding_type": "learned" if f"{prefix}backbone.1.row_embed.weight" in source else "sine",
        "activation_function": "relu",
        "id2label": coco.id2label(classes),
    }
    if prefix and classes == coco.PANOPTIC:
        # the authors' post-processing makes one segment of all queries of a kind of stuff
        config["label_ids_to_fuse"] = list(coco.STUFF)
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if prefix else "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "resample": BILINEAR,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGENET[0]),
        "image_std": list(IMAGENET[1]),
        "do_pad": True,
    }
    stated = "dilation" in source.config
    note = "read as DC5 because of the file's name: its last stage is dilated" if dilation and not stated else ""
    return Reading(config, processor, _rules(prefix), (note,) if note else ())


def _resnet(source: Source, body: str) -> str:
    """timm's name of the ResNet with these blocks; raises `CheckpointError` for any other backbone."""
    depths = tuple(source.count(f"{body}layer{stage}.") for stage in (1, 2, 3, 4))
    kind = "bottleneck" if f"{body}layer1.0.conv3.weight" in source else "basic"
    for name, (layer_type, blocks, _) in RESNETS.items():
        if (kind, depths) == (layer_type, blocks):
            return name
    raise CheckpointError(
        f"{source.file} has a backbone of {', '.join(map(str, depths))} {kind} blocks; expected a ResNet: "
        f"{', '.join(re.sub('resnet', 'R', name) for name in RESNETS)}"
    )


_SOURCE = "https://github.com/facebookresearch/detr"
_DETR = ("class_embed.weight", "query_embed.weight", "input_proj.weight", "transformer.decoder.norm.weight")

LAYOUTS = (
    Layout("facebookresearch DETR", ("detr",), _SOURCE, has_all(*_DETR), _read),
    Layout(
        "facebookresearch DETR panoptic",
        ("detr_panoptic",),
        _SOURCE,
        has_all(*(f"detr.{name}" for name in _DETR), "mask_head.lay1.weight", "bbox_attention.q_linear.weight"),
        _read_panoptic,
    ),
)
