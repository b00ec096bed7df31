"""RT-DETR and RT-DETRv2 as lyuwenyu/RT-DETR publishes them, with its ResNets of kind "d" (PResNet).

Read for names and shapes: `rtdetr_pytorch` and `rtdetrv2_pytorch`, in both `src/zoo/rtdetr` (hybrid_encoder.py and the
decoders) and `src/nn/backbone/presnet.py`, and their `configs`. Files keep averaged weights under `ema.module`. The
number of queries is in no tensor; every published model has 300.
"""

from __future__ import annotations

from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import coco
from edgevtx.export.layouts.detr import attention
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source
from edgevtx.export.layouts.timm import BILINEAR

# the attention heads of every published model
HEADS = 8

_NORM = {"norm.@": "normalization.@", "conv.weight": "convolution.weight"}
_ENCODER = {
    "linear1.@": "fc1.@",
    "linear2.@": "fc2.@",
    "norm1.@": "self_attn_layer_norm.@",
    "norm2.@": "final_layer_norm.@",
}
_DECODER = {
    "cross_attn.num_points_scale": "encoder_attn.n_points_scale",
    **{f"cross_attn.{name}.@": f"encoder_attn.{name}.@" for name in ("sampling_offsets", "attention_weights")},
    **{f"cross_attn.{name}.@": f"encoder_attn.{name}.@" for name in ("value_proj", "output_proj")},
    "linear1.@": "fc1.@",
    "linear2.@": "fc2.@",
    "norm1.@": "self_attn_layer_norm.@",
    "norm2.@": "encoder_attn_layer_norm.@",
    "norm3.@": "final_layer_norm.@",
}
_PARTS = ("conv", "norm")
# convolutions with their norms, named alike on both sides
_FUSION = (
    "lateral_convs.#",
    "downsample_convs.#",
    *(f"{path}_blocks.#.conv{step}" for path in ("fpn", "pan") for step in (1, 2, 3)),
    *(f"{path}_blocks.#.bottlenecks.#.conv{step}" for path in ("fpn", "pan") for step in (1, 2)),
)
_HEADS = {
    "decoder.denoising_class_embed.weight": "model.denoising_class_embed.weight",
    "decoder.tgt_embed.weight": "model.weight_embedding.weight",
    "decoder.query_pos_head.layers.#.@": "model.decoder.query_pos_head.layers.#.@",
    # the first version leaves the layers of a Sequential unnamed
    "decoder.enc_output.#.@": "model.enc_output.#.@",
    "decoder.enc_output.proj.@": "model.enc_output.0.@",
    "decoder.enc_output.norm.@": "model.enc_output.1.@",
    "decoder.enc_score_head.@": "model.enc_score_head.@",
    "decoder.enc_bbox_head.layers.#.@": "model.enc_bbox_head.layers.#.@",
    "decoder.dec_score_head.#.@": "model.decoder.class_embed.#.@",
    "decoder.dec_bbox_head.#.layers.#.@": "model.decoder.bbox_embed.#.layers.#.@",
    "encoder.input_proj.#.#.@": "model.encoder_input_proj.#.#.@",
    "encoder.input_proj.#.conv.@": "model.encoder_input_proj.#.0.@",
    "encoder.input_proj.#.norm.@": "model.encoder_input_proj.#.1.@",
    "decoder.input_proj.#.conv.@": "model.decoder_input_proj.#.0.@",
    "decoder.input_proj.#.norm.@": "model.decoder_input_proj.#.1.@",
}


def _backbone(source: Source) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    """The config of the ResNet, and its rules."""
    stem = "backbone.conv1.conv1_3.conv.weight"
    if stem not in source:
        raise CheckpointError(
            f"{source.file} has a backbone that is no ResNet of kind d ({stem} is missing); RT-DETR is exported with "
            "ResNet 18, 34, 50 and 101 backbones"
        )
    stages = range(source.count("backbone.res_layers."))
    last = "branch2c" if "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in source else "branch2b"
    block = "backbone.res_layers.{}.blocks."
    config = {
        "model_type": "rt_detr_resnet",
        "layer_type": "bottleneck" if last == "branch2c" else "basic",
        "embedding_size": source.shape(stem)[0],
        "hidden_sizes": [source.shape(f"{block.format(stage)}0.{last}.conv.weight")[0] for stage in stages],
        "depths": [source.count(block.format(stage)) for stage in stages],
        "out_features": ["stage2", "stage3", "stage4"],
    }
    there = "model.backbone.model."
    layer = there + "encoder.stages.#.layers.#."
    places = {f"backbone.conv1.conv1_{step}.": f"{there}embedder.embedder.{step - 1}." for step in (1, 2, 3)}
    steps = {"branch2a": "layer.0", "branch2b": "layer.1", "branch2c": "layer.2"}
    # a shortcut that pools first is the second member of a Sequential
    steps |= {"short": "shortcut", "short.conv": "shortcut.1"}
    places |= {f"backbone.res_layers.#.blocks.#.{name}.": f"{layer}{step}." for name, step in steps.items()}
    return config, tuple(
        rule for name, place in places.items() for rule in Rule.table(_NORM, prefix=name, target=place)
    )


def _read(source: Source) -> Reading:
    second = "decoder.decoder.layers.0.cross_attn.num_points_scale" in source
    backbone, backbone_rules = _backbone(source)
    layers = source.count("decoder.decoder.layers.")
    heads = source.told("decoder_attention_heads", HEADS, "does not tell the heads")
    levels = source.count("decoder.input_proj.")
    hidden = source.shape("encoder.lateral_convs.0.conv.weight")[0]
    expansion = source.shape("encoder.fpn_blocks.0.conv1.conv.weight")[0] / hidden
    maps = range(source.count("encoder.input_proj."))
    # the second version names the layers of its projections
    convolution = "conv" if "encoder.input_proj.0.conv.weight" in source else "0"
    projection = f"encoder.input_proj.{{}}.{convolution}.weight"
    config: dict[str, Any] = {
        "model_type": "rt_detr_v2" if second else "rt_detr",
        "architectures": ["RTDetrV2ForObjectDetection" if second else "RTDetrForObjectDetection"],
        "backbone_config": backbone,
        "encoder_in_channels": [source.shape(projection.format(index))[1] for index in maps],
        "encoder_hidden_dim": hidden,
        "encoder_layers": source.count("encoder.encoder.0.layers."),
        "encoder_ffn_dim": source.shape("encoder.encoder.0.layers.0.linear1.weight")[0],
        "encoder_attention_heads": source.told("encoder_attention_heads", HEADS, "does not tell the heads"),
        "hidden_expansion": expansion,
        "d_model": source.shape("decoder.enc_score_head.weight")[1],
        "num_queries": source.told("num_queries", 300, "does not tell the queries"),
        "decoder_in_channels": [source.shape(f"decoder.input_proj.{index}.conv.weight")[1] for index in range(levels)],
        "num_feature_levels": levels,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": source.shape("decoder.decoder.layers.0.linear1.weight")[0],
        "decoder_n_points": source.shape("decoder.decoder.layers.0.cross_attn.attention_weights.weight")[0]
        // (heads * levels),
        "learn_initial_query": "decoder.tgt_embed.weight" in source,
        "id2label": coco.id2label(source.shape("decoder.dec_score_head.0.weight")[0]),
    }
    notes = []
    if second:
        discrete = "dsp" in source.file.lower()
        config |= {"decoder_n_levels": levels, "decoder_method": "discrete" if discrete else "default"}
        if discrete and "decoder_method" not in source.config:
            notes.append("read as discretely sampled because of the file's name (dsp)")
    dropped: tuple[Rule, ...] = ()
    if backbone["layer_type"] == "bottleneck" and expansion == 0.5 and layers == 6:
        # RT-DETR-R50-m: its config evaluates after the third of six trained layers (eval_idx: 2)
        config["decoder_layers"] = source.told("decoder_layers", 3, "does not tell the layers")
        kept = config["decoder_layers"]
        dropped = _without_layers(range(kept, layers))
        notes.append(f"{kept} of {layers} decoder layers are used, as RT-DETR-R50-m's authors do (decoder_layers)")
    processor = {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": 640, "width": 640},
        "resample": BILINEAR,
        "do_rescale": True,
        "do_normalize": False,
        "do_pad": False,
    }
    rules = (
        *dropped,
        *backbone_rules,
        *Rule.table(_HEADS),
        *(Rule(f"encoder.{name}.{part}.@", (f"model.encoder.{name}.{part}.@",)) for name in _FUSION for part in _PARTS),
        *attention("encoder.encoder.#.layers.#.self_attn", "model.encoder.encoder.#.layers.#.self_attn"),
        *Rule.table(_ENCODER, prefix="encoder.encoder.#.layers.#.", target="model.encoder.encoder.#.layers.#."),
        *attention("decoder.decoder.layers.#.self_attn", "model.decoder.layers.#.self_attn"),
        *Rule.table(_DECODER, prefix="decoder.decoder.layers.#.", target="model.decoder.layers.#."),
        # made for one input size; they are computed here
        Rule("decoder.anchors"),
        Rule("decoder.valid_mask"),
        Rule("encoder.pos_embed#"),
    )
    return Reading(config, processor, rules, tuple(notes))


def _without_layers(indices: range) -> tuple[Rule, ...]:
    names = (
        *_DECODER,
        "self_attn.in_proj_weight",
        "self_attn.in_proj_bias",
        "self_attn.out_proj.@",
    )
    return (
        *(Rule(f"decoder.decoder.layers.{index}.{name}") for index in indices for name in names),
        *(Rule(f"decoder.dec_score_head.{index}.@") for index in indices),
        *(Rule(f"decoder.dec_bbox_head.{index}.layers.#.@") for index in indices),
    )


LAYOUTS = (
    Layout(
        "lyuwenyu RT-DETR",
        ("rtdetr",),
        "https://github.com/lyuwenyu/RT-DETR",
        lambda tensors: (
            {"decoder.dec_score_head.0.weight", "encoder.lateral_convs.0.conv.weight"} <= set(tensors)
            and "decoder.decoder.layers.0.cross_attn.num_points_scale" not in tensors
        ),
        _read,
    ),
    Layout(
        "lyuwenyu RT-DETRv2",
        ("rtdetr",),
        "https://github.com/lyuwenyu/RT-DETR",
        lambda tensors: (
            {
                "decoder.dec_score_head.0.weight",
                "encoder.lateral_convs.0.conv.weight",
                "decoder.decoder.layers.0.cross_attn.num_points_scale",
            }
            <= set(tensors)
        ),
        _read,
    ),
)
