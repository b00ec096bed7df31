"""DINO and DINOv2 backbones: a frame in; a vector of the whole image and one per patch out.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021; Oquab et al., "DINOv2: Learning
Robust Visual Features without Supervision", 2023; Darcet et al., "Vision Transformers Need Registers", 2023.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.attention import FUSED_WITH_CLS, use_attention
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.patches import fold_positions, pair, patch_grid
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, pixels_spec
from edgevtx.geometry import plan
from edgevtx.manifest import TensorInfo
from edgevtx.results import Features
from edgevtx.rules import EmbedDecode, Exact, Preprocess, ShortestEdge
from edgevtx.runtimes.base import Array

# heads and poolers that a checkpoint may carry and a backbone does not need
UNUSED = ("classifier.", "pooler.", "vit.pooler.", "decoder.", "embeddings.mask_token")


class Backbone(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> cls (N,D), patches (N,h,w,D) after the final norm, attention (N,heads,h,w)."""

    def __init__(self, model: Any, frames: Frames, grid: tuple[int, int], special: int, *, attention: bool) -> None:
        super().__init__()
        self.frames = frames
        self.model = model
        self.grid = grid
        self.special = special  # tokens before the first patch: CLS and registers
        self.attention = attention
        self.looks: list[torch.Tensor] = []
        if attention:
            last = _layers(model)[-1].attention
            last.config = copy.copy(last.config)
            use_attention(last.config, FUSED_WITH_CLS)
            last.register_forward_hook(lambda _module, _inputs, outputs: self.looks.append(outputs[1]))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.looks.clear()
        tokens = self.model(pixel_values=self.frames(pixels)).last_hidden_state
        features = tokens[:, 0], torch.unflatten(tokens[:, self.special :], 1, self.grid)
        if not self.attention:
            return features
        return *features, torch.unflatten(self.looks.pop()[:, :, self.special :], 2, self.grid)


def _layers(model: Any) -> Any:
    return model.encoder.layer if hasattr(model, "encoder") else model.layers


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The backbone of a checkpoint; `options.attention` adds the last layer's attention; see `BuildOptions`."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    if options.top_k is not None or options.labels is not None:
        raise InputError("a backbone has no classes: leave top_k and labels out")
    model = _load(checkpoint)
    config = model.config
    processor, preprocess = _preprocess(checkpoint, config, options)
    size = fixed_size(preprocess)
    assert size is not None
    grid, patch = patch_grid(config, size), pair(config.patch_size)
    if (grid[0] * patch[0], grid[1] * patch[1]) != size or patch[0] != patch[1]:
        raise CheckpointError(
            f"the input of {checkpoint.path} is {size[0]}x{size[1]}, which square patches of {patch[0]} do not fill; "
            "set the image processor's size or crop_size to a multiple of the patch, or give --frame"
        )
    special = 1 + getattr(config, "num_register_tokens", 0)
    channels, heads = int(config.hidden_size), int(config.num_attention_heads)

    traced = traced_copy(model, "embeddings.patch_embeddings.projection", preprocess)
    fold_positions(traced.embeddings, config, size)
    outputs = [
        TensorInfo(name="cls", shape=(options.batch, channels), dtype="float32"),
        TensorInfo(name="patches", shape=(options.batch, *grid, channels), dtype="float32"),
    ]
    if options.attention:
        outputs.append(TensorInfo(name="attention", shape=(options.batch, heads, *grid), dtype="float32"))
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task,
        module=Backbone(traced, Frames(preprocess), grid, special, attention=options.attention).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=tuple(outputs),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=EmbedDecode(patch_size=patch[0], attention=options.attention),
        labels=(),
        reference=partial(_reference, model, processor, preprocess, grid, special, options.attention),
    )


def _load(checkpoint: Checkpoint) -> Any:
    import transformers

    if checkpoint.model_type == "vit":
        return checkpoint.load(transformers.ViTModel, unused=UNUSED, arguments={"add_pooling_layer": False})
    if checkpoint.model_type == "dinov2":
        return checkpoint.load(transformers.Dinov2Model, unused=UNUSED)
    return checkpoint.load(transformers.Dinov2WithRegistersModel, unused=UNUSED)


def _preprocess(checkpoint: Checkpoint, config: Any, options: BuildOptions) -> tuple[Any, Preprocess]:
    """The processor, set to one size, and what it does.

    Without `--frame`: the processor's own rule. With it: the whole frame at the scale that the rule gives its
    shortest edge, both edges to the nearest multiple of the patch, nothing cropped.
    """
    height, width = pair(config.image_size)
    if checkpoint.model_type == "vit":
        processor = load_processor(checkpoint, "ViT", {"size": {"height": height, "width": width}})
    else:
        own = {"size": {"shortest_edge": min(height, width)}, "crop_size": {"height": height, "width": width}}
        imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        processor = load_processor(checkpoint, "Bit", {**own, **imagenet})
    preprocess = preprocess_of(processor, options.resize)
    if options.frame is None:
        if fixed_size(preprocess) is None:
            raise CheckpointError(
                f"the image processor of {checkpoint.path} scales the shortest edge and does not crop, so the size "
                "depends on the frame; give your camera's with --frame 1920x1080"
            )
        return processor, preprocess
    rule = preprocess.size
    shortest = rule.shortest if isinstance(rule, ShortestEdge) else min(fixed_size(preprocess) or (height, width))
    patch = pair(config.patch_size)[0]
    scale = shortest / min(options.frame)
    fixed = tuple(max(1, round(edge * scale / patch)) * patch for edge in options.frame)
    processor.size, processor.do_center_crop = {"height": fixed[0], "width": fixed[1]}, False
    sized = Preprocess(
        size=Exact(height=fixed[0], width=fixed[1]),
        interpolation=preprocess.interpolation,
        scale=preprocess.scale,
        mean=preprocess.mean,
        std=preprocess.std,
        resize=preprocess.resize,
    )
    return processor, sized


def _reference(
    model: Any,
    processor: Any,
    preprocess: Preprocess,
    grid: tuple[int, int],
    special: int,
    attention: bool,
    frame: Array,
) -> Features:
    """The processor and the model; attention from its eager implementation, which returns probabilities."""
    inputs = {"pixel_values": reference_inputs(processor, [frame])["pixel_values"]}
    if model.config.model_type == "vit":
        inputs["interpolate_pos_encoding"] = True  # type: ignore[assignment]
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state[0]
        looks = _eager_attention(model, inputs)[0, :, 0, special:] if attention else None
    return Features(
        cls=tokens[0].numpy(),
        patches=torch.unflatten(tokens[special:], 0, grid).numpy(),
        attention=None if looks is None else torch.unflatten(looks, 1, grid).numpy(),
        geometry=plan((frame.shape[0], frame.shape[1]), preprocess),
    )


def _eager_attention(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The last layer's attention probabilities (N,heads,T,T)."""
    model.set_attn_implementation("eager")
    try:
        probabilities: torch.Tensor = model(**inputs, output_attentions=True).attentions[-1]
    finally:
        model.set_attn_implementation("sdpa")
    return probabilities


def _tiny_config() -> dict[str, Any]:
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    return {
        "vit": {"model_type": "vit", "architectures": ["ViTModel"], "intermediate_size": 64, **tiny},
        "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": 2, **tiny},
        "dinov2_with_registers": {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
            "mlp_ratio": 2,
            "num_register_tokens": 3,
            **tiny,
        },
    }


RECIPE = Recipe(
    family="dino",
    title="DINO and DINOv2 image features",
    paper="https://arxiv.org/abs/2304.07193",
    task="embed",
    result="Features",
    fit={"classify": "Classification"},
    model_types=("dinov2", "dinov2_with_registers", "vit"),
    layouts=("Hugging Face directory", "config.json alone with a seed", *names_for("dino")),
    variants=(
        "DINO",
        "DINOv2",
        "DINOv2 with registers",
        "attention of the last layer (--attention)",
        "k-NN classes (edgevtx fit)",
    ),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "frame", "attention", "resize"),
)
