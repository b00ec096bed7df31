"""timm's plain ViT: what timm, DeiT and DINO publish under the same names.

Read for names and shapes: huggingface/pytorch-image-models (`timm/models/vision_transformer.py`, `deit.py`) and
facebookresearch/dino (`vision_transformer.py`, `eval_linear.py` for the preparation of images). LayerNorms have an
epsilon of 1e-6 in all of them; the configs that Hugging Face publishes for the same weights say 1e-12.
"""

from __future__ import annotations

import math
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import timm
from edgevtx.export.layouts.mapping import Layout, Reading, Rule, Source, has_all

# hidden size -> attention heads of the published variants (Ti, S, B, L, H, g and So400m; DINOv2's g is its own)
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16}

_LAYER = {
    "norm1.@": "layernorm_before.@",
    "attn.proj.@": "attention.output.dense.@",
    "norm2.@": "layernorm_after.@",
    "mlp.fc1.@": "intermediate.dense.@",
    "mlp.fc2.@": "output.dense.@",
}
_HEADS = {"head.@": "classifier.@"}
_TEACHER_HEADS = {"head.@": "cls_classifier.@", "head_dist.@": "distillation_classifier.@"}


def qkv(pattern: str, target: str) -> Rule:
    """A fused query, key and value -> Hugging Face's three, at `target` with `{}` for the part's name."""
    return Rule(pattern, tuple(target.format(part) for part in ("query", "key", "value")))


def rules(prefix: str, heads: dict[str, str]) -> tuple[Rule, ...]:
    """The table of a ViT whose published names begin with `prefix`, with the heads' names."""
    return (
        *Rule.table(
            {
                "cls_token": "embeddings.cls_token",
                "dist_token": "embeddings.distillation_token",
                "pos_embed": "embeddings.position_embeddings",
                "patch_embed.proj.@": "embeddings.patch_embeddings.projection.@",
                "norm.@": "layernorm.@",
            },
            target=prefix,
        ),
        qkv("blocks.#.attn.qkv.@", prefix + "encoder.layer.#.attention.attention.{}.@"),
        *Rule.table(_LAYER, prefix="blocks.#.", target=prefix + "encoder.layer.#."),
        *Rule.table(heads),
    )


def sizes(source: Source, special: int, heads: dict[int, int]) -> dict[str, Any]:
    """The entries of a config that every plain ViT's shapes tell; `special` tokens have a place before the patches."""
    width, channels, patch, _ = source.shape("patch_embed.proj.weight")
    places = source.shape("pos_embed")[1] - special
    side = math.isqrt(places)
    if side * side != places:
        raise CheckpointError(
            f"{source.file} has a position table for {places} patches, which is no square; only square inputs are read"
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": source.count("blocks."),
        "num_attention_heads": source.told(
            "num_attention_heads", heads.get(width), f"is {width} wide, which no published model is"
        ),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "qkv_bias": "blocks.0.attn.qkv.bias" in source,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }


def _classifier(source: Source) -> Reading:
    distilled = "dist_token" in source
    if distilled != ("head_dist.weight" in source):
        raise CheckpointError(f"{source.file} has one of dist_token and head_dist without the other; copy it again")
    config = sizes(source, 2 if distilled else 1, HEADS)
    config |= {
        "model_type": "deit" if distilled else "vit",
        "architectures": ["DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"],
        "intermediate_size": source.shape("blocks.0.mlp.fc1.weight")[0],
        "id2label": timm.id2label(source.timm, source.shape("head.weight")[0]),
    }
    table = rules("deit.", _TEACHER_HEADS) if distilled else rules("vit.", _HEADS)
    size = int(config["image_size"])
    if source.timm:
        timm.refuse_changes(source.timm, source.file)
        return Reading(config, timm.processor(source.timm, size), table)
    if distilled or source.wrapper:
        note = "images are prepared as DeiT's authors do: ImageNet's mean and deviation, the middle 7/8"
        return Reading(config, timm.shortest_then_crop(size, size * 256 // 224, *timm.IMAGENET), table, (note,))
    note = (
        "the file does not say how images are prepared: mean and deviation 0.5 are assumed, as of timm's own ViTs; a "
        "preprocessor_config.json beside the file of --config replaces that"
    )
    shortest = math.floor(size / 0.9) if size == 224 else size
    return Reading(config, timm.shortest_then_crop(size, shortest, *timm.HALF), table, (note,))


def _backbone(source: Source) -> Reading:
    config = sizes(source, 1, HEADS)
    config |= {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "intermediate_size": source.shape("blocks.0.mlp.fc1.weight")[0],
    }
    # DINO trains with a projection head that its features do not use
    table = (*rules("", {}), *(Rule(name) for name in ("head.mlp.#.@", "head.last_layer.@")))
    size = int(config["image_size"])
    processor = timm.processor(source.timm, size) if source.timm else None
    return Reading(config, processor or timm.shortest_then_crop(size, size * 256 // 224, *timm.IMAGENET), table)


_VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
# a layer scale makes it another architecture: DINOv2's, or DeiT III's
_SCALED = ("blocks.0.ls1.gamma", "blocks.0.0.ls1.gamma")
_TIMM = "https://github.com/huggingface/pytorch-image-models"

LAYOUTS = (
    Layout("timm ViT and DeiT", ("vit", "dino"), _TIMM, has_all(*_VIT, "head.weight"), _classifier, timm=True),
    Layout(
        "facebookresearch DINO",
        ("dino",),
        "https://github.com/facebookresearch/dino",
        has_all(*_VIT, but=("head.weight", *_SCALED)),
        _backbone,
    ),
    Layout("timm DINO", ("dino",), _TIMM, has_all(*_VIT, but=("head.weight", *_SCALED)), _backbone, timm=True),
)
