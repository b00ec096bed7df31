"""Segment Anything as facebookresearch/segment-anything publishes it: vit_b, vit_l, vit_h and fine-tuned ones.

Read for names and shapes: `segment_anything/build_sam.py` and `segment_anything/modeling`. The file is one flat state
dict. The two-way transformer's LayerNorms have torch's epsilon of 1e-5 there; Hugging Face's config says 1e-6.
"""

from __future__ import annotations

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all
from edgevtx.export.layouts.timm import BILINEAR, IMAGENET

# the two-way transformer's heads, in every published size
DECODER_HEADS = 8

_ENCODER = {
    "pos_embed": "pos_embed",
    "patch_embed.proj.@": "patch_embed.projection.@",
    "blocks.#.norm1.@": "layers.#.layer_norm1.@",
    "blocks.#.norm2.@": "layers.#.layer_norm2.@",
    "blocks.#.attn.qkv.@": "layers.#.attn.qkv.@",
    "blocks.#.attn.proj.@": "layers.#.attn.proj.@",
    "blocks.#.attn.rel_pos_h": "layers.#.attn.rel_pos_h",
    "blocks.#.attn.rel_pos_w": "layers.#.attn.rel_pos_w",
    "blocks.#.mlp.lin1.@": "layers.#.mlp.lin1.@",
    "blocks.#.mlp.lin2.@": "layers.#.mlp.lin2.@",
    "neck.0.weight": "neck.conv1.weight",
    "neck.1.@": "neck.layer_norm1.@",
    "neck.2.weight": "neck.conv2.weight",
    "neck.3.@": "neck.layer_norm2.@",
}
_PROMPTS = {
    "point_embeddings.#.weight": "point_embed.#.weight",
    "not_a_point_embed.weight": "not_a_point_embed.weight",
    "no_mask_embed.weight": "no_mask_embed.weight",
    "mask_downscaling.0.@": "mask_embed.conv1.@",
    "mask_downscaling.1.@": "mask_embed.layer_norm1.@",
    "mask_downscaling.3.@": "mask_embed.conv2.@",
    "mask_downscaling.4.@": "mask_embed.layer_norm2.@",
    "mask_downscaling.6.@": "mask_embed.conv3.@",
}
_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
_DECODER = {
    "iou_token.weight": "iou_token.weight",
    "mask_tokens.weight": "mask_tokens.weight",
    "output_upscaling.0.@": "upscale_conv1.@",
    "output_upscaling.1.@": "upscale_layer_norm.@",
    "output_upscaling.3.@": "upscale_conv2.@",
    **{f"transformer.layers.#.{name}.@.@": f"transformer.layers.#.{name}.@.@" for name in _ATTENTIONS},
    **{f"transformer.layers.#.norm{n}.@": f"transformer.layers.#.layer_norm{n}.@" for n in (1, 2, 3, 4)},
    "transformer.layers.#.mlp.lin1.@": "transformer.layers.#.mlp.lin1.@",
    "transformer.layers.#.mlp.lin2.@": "transformer.layers.#.mlp.lin2.@",
    "transformer.final_attn_token_to_image.@.@": "transformer.final_attn_token_to_image.@.@",
    "transformer.norm_final_attn.@": "transformer.layer_norm_final_attn.@",
}


def _mlp(name: str, depth: int) -> dict[str, str]:
    """The published names of an MLP's layers: the first and the last have names of their own."""
    inner = {f"{name}.layers.{n}.@": f"{name}.layers.{n - 1}.@" for n in range(1, depth - 1)}
    return {f"{name}.layers.0.@": f"{name}.proj_in.@", **inner, f"{name}.layers.{depth - 1}.@": f"{name}.proj_out.@"}


def _read(source: Source) -> Reading:
    width, channels, patch, _ = source.shape("image_encoder.patch_embed.proj.weight")
    _, side, columns, _ = source.shape("image_encoder.pos_embed")
    if side != columns:
        raise CheckpointError(f"{source.file} has a position table of {side}x{columns} patches; SAM's are square")
    spans = [source.shape(f"image_encoder.blocks.{index}.attn.rel_pos_h") for index in range(_depth(source))]
    windows = {(span[0] + 1) // 2 for span in spans} - {side}
    if len(windows) > 1:
        raise CheckpointError(f"{source.file} has windows of {sorted(windows)} patches; one size is expected")
    output = source.shape("image_encoder.neck.0.weight")[0]
    hidden = source.shape("mask_decoder.iou_token.weight")[1]
    inner = source.shape("mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight")[0]
    image = side * patch
    depth = source.count("mask_decoder.iou_prediction_head.layers.")
    decoder = Source(source.file, source.tensors, config=source.config.get("mask_decoder_config") or {})
    config = {
        "model_type": "sam",
        "architectures": ["SamModel"],
        "vision_config": {
            "hidden_size": width,
            "output_channels": output,
            "num_hidden_layers": _depth(source),
            # a relative position table has one row for each distance, as wide as a head
            "num_attention_heads": width // spans[0][1],
            "num_channels": channels,
            "image_size": image,
            "patch_size": patch,
            "mlp_dim": source.shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
            "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in source,
            "layer_norm_eps": 1e-6,
            "use_abs_pos": True,
            "use_rel_pos": True,
            "window_size": windows.pop() if windows else 0,
            "global_attn_indexes": [index for index, span in enumerate(spans) if (span[0] + 1) // 2 == side],
            "num_pos_feats": source.shape("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")[1],
        },
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": image,
            "patch_size": patch,
            "mask_input_channels": source.shape("prompt_encoder.mask_downscaling.3.weight")[0],
            "num_point_embeddings": source.count("prompt_encoder.point_embeddings."),
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": source.shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
            "num_hidden_layers": source.count("mask_decoder.transformer.layers."),
            "num_attention_heads": decoder.told("num_attention_heads", DECODER_HEADS, "does not tell the heads"),
            "attention_downsample_rate": hidden // inner,
            "num_multimask_outputs": source.shape("mask_decoder.mask_tokens.weight")[0] - 1,
            "iou_head_depth": depth,
            "iou_head_hidden_dim": source.shape("mask_decoder.iou_prediction_head.layers.0.weight")[0],
            "layer_norm_eps": 1e-5,
        },
    }
    processor = {
        "image_processor_type": "SamImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": image},
        "resample": BILINEAR,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGENET[0]),
        "image_std": list(IMAGENET[1]),
        "do_pad": True,
        "pad_size": {"height": image, "width": image},
        "mask_size": {"longest_edge": side * 4},
        "mask_pad_size": {"height": side * 4, "width": side * 4},
    }
    heads = source.count("mask_decoder.output_hypernetworks_mlps.0.layers.")
    decoder_names = {**_DECODER, **_mlp("iou_prediction_head", depth), **_mlp("output_hypernetworks_mlps.#", heads)}
    rules = (
        *Rule.table(_ENCODER, prefix="image_encoder.", target="vision_encoder."),
        Rule(
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            ("shared_image_embedding.positional_embedding",),
        ),
        *Rule.table(_PROMPTS, prefix="prompt_encoder.", target="prompt_encoder."),
        *Rule.table(decoder_names, prefix="mask_decoder.", target="mask_decoder."),
        # the normalisation, which the processor does
        Rule("pixel_mean"),
        Rule("pixel_std"),
    )
    return Reading(config, processor, rules)


def _depth(source: Source) -> int:
    return source.count("image_encoder.blocks.")


LAYOUTS = (
    Layout(
        "facebookresearch segment-anything",
        ("sam",),
        "https://github.com/facebookresearch/segment-anything",
        has_all(
            "image_encoder.patch_embed.proj.weight",
            "image_encoder.neck.0.weight",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            "mask_decoder.iou_token.weight",
        ),
        _read,
    ),
)
