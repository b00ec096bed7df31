"""Swin transformers, v1 and v2: a frame in; the best classes, or feature maps at four scales out.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021; Liu et al., "Swin
Transformer V2: Scaling Up Capacity and Resolution", 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.classes import Classes, choose_classes
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.layouts import names_for
from edgevtx.export.patches import pair
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of, reference_inputs
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.geometry import plan
from edgevtx.manifest import Preprocess, PyramidDecode, ShortestEdge, TensorInfo
from edgevtx.results import Classification, Features
from edgevtx.runtimes.base import Array

Grid = tuple[int, int]

HIDDEN = -1e4
"""What the scores of hidden tokens are lowered by. The reference's -100 (v2: -200) leaves exp(-100) = 4e-44 of them, a
denormal number, and products with denormals take processors up to fifty times as long; of exp(-1e4) nothing is left."""

# heads and tokens that a checkpoint may carry and another task does not need
UNUSED = ("classifier.", "decoder.", "embeddings.mask_token", "swin.embeddings.mask_token")


# -- where tokens lie ------------------------------------------------------------------------------------------
#
# Everything but attention and merging treats tokens one by one, so their order is free: tokens are kept window by
# window, and one Gather between two blocks takes the place of two rolls, two partitions and their way back.


def raster(grid: Grid) -> torch.Tensor:
    """The positions of a grid row by row: (height * width,) int64."""
    return torch.arange(grid[0] * grid[1])


def window_order(grid: Grid, window: int, shift: int) -> torch.Tensor:
    """The positions of a grid window by window, after a cyclic shift to the upper left: (windows * window**2,) int64.

    The grid is padded to whole windows at the right and bottom; padding has the number height * width.
    """
    height, width = grid
    rows, columns = (math.ceil(edge / window) for edge in grid)
    padded = torch.full((rows * window, columns * window), height * width)
    padded[:height, :width] = raster(grid).reshape(grid)
    shifted = padded.roll((-shift, -shift), (0, 1))
    return shifted.reshape(rows, window, columns, window).transpose(1, 2).flatten()


def merge_order(grid: Grid, coarse: torch.Tensor) -> torch.Tensor:
    """For each of the `coarse` positions of the grid of half the size: its four positions in `grid`, column by column.

    Odd grids are padded at the right and bottom; padding has the number height * width.
    """
    height, width = grid
    padded = F.pad(raster(grid).reshape(grid), (0, width % 2, 0, height % 2), value=height * width)
    four = [padded[row::2, column::2].flatten() for column in (0, 1) for row in (0, 1)]
    return torch.stack(four, 1)[coarse].flatten()


def places(order: torch.Tensor, count: int) -> torch.Tensor:
    """Where each of `count` positions stands in `order`; padding, the number `count`, stands behind all of them."""
    found = torch.full((count + 1,), len(order))
    inside = order < count
    found[order[inside]] = torch.arange(len(order))[inside]
    return found


def shift_mask(grid: Grid, window: int, shift: int) -> torch.Tensor:
    """What keeps tokens apart that a cyclic shift brought together: (windows, window**2, window**2), 0 or `HIDDEN`."""
    rows, columns = (math.ceil(edge / window) * window for edge in grid)
    regions = [
        (torch.arange(edge) >= edge - window).long() + (torch.arange(edge) >= edge - shift).long()
        for edge in (rows, columns)
    ]
    numbers = (3 * regions[0][:, None] + regions[1]).reshape(rows // window, window, columns // window, window)
    tokens = numbers.transpose(1, 2).reshape(-1, window * window)
    return torch.where(tokens[:, None] == tokens[:, :, None], 0.0, HIDDEN)


class Reorder(nn.Module):
    """Tokens (N,L,C) in one order -> another one; positions that the first does not hold become zeros."""

    index: torch.Tensor

    def __init__(self, before: torch.Tensor, after: torch.Tensor, count: int) -> None:
        super().__init__()
        self.register_buffer("index", places(before, count)[after], persistent=False)
        self.padded = bool((self.index == len(before)).any())
        self.same = torch.equal(before, after)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.same:
            return tokens
        if self.padded:
            tokens = F.pad(tokens, (0, 0, 0, 1))
        return tokens.index_select(1, self.index)


# -- attention -------------------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Tokens (N,windows*T,C), window by window -> the same, each having looked at its window.

    `bias` (1 or windows, heads, T, T) holds the relative position bias and the mask of a shifted grid as one
    constant. With `scales` (heads,1) queries and keys are compared by their cosine times the scale (v2).
    """

    bias: torch.Tensor
    scales: torch.Tensor | None

    def __init__(
        self, query: Any, key: Any, value: Any, output: Any, bias: torch.Tensor, scales: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = query, key, value, output
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        windows, heads, length = self.bias.shape[:3]
        batch, _, channels = tokens.shape
        shape = (-1, length, heads, channels // heads)
        query, key, value = (part(tokens).reshape(shape) for part in (self.query, self.key, self.value))
        if self.scales is not None:
            query, key = F.normalize(query, dim=-1) * self.scales, F.normalize(key, dim=-1)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        scale = None if self.scales is None else 1.0
        if windows == 1 or (isinstance(batch, int) and batch == 1):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias, scale=scale)
        else:
            # each window has a bias of its own, which repeats with every image: windows and heads become one axis
            many = (-1, windows * heads, length, channels // heads)
            bias = self.bias.reshape(1, windows * heads, length, length)
            query, key, value = (part.reshape(many) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
            mixed = mixed.reshape(-1, heads, length, channels // heads)
        output: torch.Tensor = self.output(mixed.transpose(1, 2).reshape(tokens.shape))
        return output


def window_attention(layer: Any, grid: Grid, window: int, shift: int) -> WindowAttention:
    """The attention of a transformers layer (v1 or v2), its bias and mask folded for a grid."""
    attention = layer.attention
    mask = shift_mask(grid, window, shift)[:, None] if shift else 0.0
    with torch.no_grad():
        if hasattr(attention, "self"):
            bias, scales = _continuous_bias(attention.self)
            parts = attention.self.query, attention.self.key, attention.self.value, attention.output.dense
            return WindowAttention(*parts, bias + mask, scales)
        parts = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        return WindowAttention(*parts, attention.relative_position_bias() + mask, None)


def _continuous_bias(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """v2's bias (1,heads,T,T), from the MLP over log-spaced coordinates, and its logit scales (heads,1)."""
    length, heads = math.prod(attention.window_size), attention.num_attention_heads
    table = attention.continuous_position_bias_mlp(attention.relative_coords_table).reshape(-1, heads)
    bias = table[attention.relative_position_index.flatten()].reshape(length, length, heads)
    scales = attention.logit_scale.clamp(max=math.log(1 / 0.01)).exp()
    return 16 * bias.permute(2, 0, 1)[None].sigmoid(), scales.reshape(heads, 1)


# -- blocks and stages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placing:
    """The window and shift of a block over a grid, and the order of tokens that its attention needs."""

    grid: Grid
    window: int
    shift: int

    @property
    def order(self) -> torch.Tensor:
        return window_order(self.grid, self.window, self.shift)

    @property
    def resting(self) -> torch.Tensor:
        """The order that tokens keep between attentions: the windows' own, or row by row where windows are padded."""
        order = self.order
        return order if len(order) == math.prod(self.grid) else raster(self.grid)


class Block(nn.Module):
    """One Swin block over tokens (N,L,C) in its placing's resting order."""

    def __init__(self, layer: Any, placing: Placing) -> None:
        super().__init__()
        count = math.prod(placing.grid)
        self.enter = Reorder(placing.resting, placing.order, count)
        self.leave = Reorder(placing.order, placing.resting, count)
        self.attention = window_attention(layer, placing.grid, placing.window, placing.shift)
        self.norms = nn.ModuleList([layer.layernorm_before, layer.layernorm_after])
        self.post_norm = hasattr(layer, "intermediate")
        if self.post_norm:
            self.mlp = nn.Sequential(
                layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense
            )
        else:
            self.mlp = nn.Sequential(layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        before, after = self.norms
        if self.post_norm:  # v2
            tokens = tokens + before(self.attend(tokens))
            out: torch.Tensor = tokens + after(self.mlp(tokens))
            return out
        tokens = tokens + self.attend(before(tokens))
        mixed: torch.Tensor = tokens + self.mlp(after(tokens))
        return mixed

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.leave(self.attention(self.enter(tokens)))
        return mixed


class Merge(nn.Module):
    """Patch merging: tokens (N,L,C) of one grid -> (N,about L/4,2C) of the next one, in the order it starts with."""

    def __init__(self, layer: Any, grid: Grid, before: torch.Tensor, coarse: torch.Tensor) -> None:
        super().__init__()
        self.gather = Reorder(before, merge_order(grid, coarse), math.prod(grid))
        self.norm, self.reduction = layer.norm, layer.reduction
        self.post_norm = self.norm.normalized_shape[0] != self.reduction.in_features

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        four = self.gather(tokens).reshape(tokens.shape[0], -1, 4 * tokens.shape[2])
        merged: torch.Tensor = self.norm(self.reduction(four)) if self.post_norm else self.reduction(self.norm(four))
        return merged


class Encoder(nn.Module):
    """Normalised pixels (N,3,H,W) of one size -> each stage's tokens (N,L,C), in the order of `orders`.

    Built over the weights of a transformers SwinModel or Swinv2Model. With `clamp`, a v1 grid that has only one window
    along an edge is not shifted (Liu 2021's rule for classification; backbones always shift).
    """

    def __init__(self, model: Any, size: Grid, *, clamp: bool) -> None:
        super().__init__()
        embeddings = model.embeddings
        self.projection, self.norm = embeddings.patch_embeddings.projection, embeddings.norm
        patch = embeddings.patch_embeddings.patch_size
        self.pad = (0, -size[1] % patch[1], 0, -size[0] % patch[0])
        self.grids: list[Grid] = []
        self.orders: list[torch.Tensor] = []
        grid = (math.ceil(size[0] / patch[0]), math.ceil(size[1] / patch[1]))
        stages: list[list[nn.Module]] = []
        order = raster(grid)
        for index, layer in enumerate(model.encoder.layers):
            placings = [_placing(block, grid, clamp) for block in layer.blocks]
            first = placings[0].resting
            if index:
                previous = model.encoder.layers[index - 1].downsample
                steps: list[nn.Module] = [Merge(previous, self.grids[-1], order, first)]
            else:
                steps = [Reorder(order, first, math.prod(grid))]
            order = first
            for block, placing in zip(layer.blocks, placings, strict=True):
                steps += [Reorder(order, placing.resting, math.prod(grid)), Block(block, placing)]
                order = placing.resting
            stages.append(steps)
            self.grids.append(grid)
            self.orders.append(order)
            grid = (math.ceil(grid[0] / 2), math.ceil(grid[1] / 2))
        self.stages = nn.ModuleList(nn.Sequential(*steps) for steps in stages)
        self.position = _positions(embeddings, size, self.grids[0])

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        if any(self.pad):
            pixels = F.pad(pixels, self.pad)
        tokens = self.norm(self.projection(pixels).flatten(2).transpose(1, 2))
        if self.position is not None:
            tokens = tokens + self.position
        found = []
        for stage in self.stages:
            tokens = stage(tokens)
            found.append(tokens)
        return found


def _placing(block: Any, grid: Grid, clamp: bool) -> Placing:
    window, shift = int(block.window_size), int(block.shift_size)
    if clamp and min(grid) < window:
        raise CheckpointError(
            f"a stage has {grid[0]}x{grid[1]} tokens, fewer than its windows of {window}; give the image processor a "
            "larger size (--frame for a backbone)"
        )
    return Placing(grid, window, 0 if clamp and min(grid) == window else shift)


def _positions(embeddings: Any, size: Grid, grid: Grid) -> torch.Tensor | None:
    """The table of absolute positions for this input size, where the model has one."""
    if embeddings.position_embeddings is None:
        return None
    tokens = torch.zeros(1, math.prod(grid), embeddings.position_embeddings.shape[2])
    with torch.no_grad():
        table: torch.Tensor = embeddings.interpolate_pos_encoding(tokens, *size)
    if table.shape[1] != tokens.shape[1]:
        raise CheckpointError(
            f"this Swin has absolute positions, which do not fit an input of {size[0]}x{size[1]}; choose a size of "
            "whole patches"
        )
    return table


# -- the traced modules ----------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> scores (N,K) float32, class_ids (N,K) int64, best first."""

    def __init__(self, model: Any, encoder: Encoder, frames: Frames, classes: Classes) -> None:
        super().__init__()
        self.frames, self.encoder = frames, encoder
        self.norm, self.classifier = getattr(model, model.base_model_prefix).layernorm, model.classifier
        self.classes = classes

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.norm(self.encoder(self.frames(pixels))[-1])
        return self.classes.best(self.classifier(tokens.mean(1)))


class Pyramid(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> [cls (N,D),] one map (N,h,w,D) float32 for each of `stages`, finest first.

    `norms` (backbones of v1) hold a layer norm for each map; `pooled` (whole models) the norm ahead of the mean over
    the last stage's tokens, which is `cls`.
    """

    def __init__(
        self, encoder: Encoder, frames: Frames, stages: tuple[int, ...], norms: list[Any], pooled: nn.Module | None
    ) -> None:
        super().__init__()
        self.frames, self.encoder, self.stages, self.pooled = frames, encoder, stages, pooled
        self.norms = nn.ModuleList(norms)
        self.rasters = nn.ModuleList(
            Reorder(encoder.orders[index], raster(encoder.grids[index]), math.prod(encoder.grids[index]))
            for index in stages
        )

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.encoder(self.frames(pixels))
        found = []
        if self.pooled is not None:
            found.append(self.pooled(tokens[-1]).mean(1))
        for at, index in enumerate(self.stages):
            ordered = self.rasters[at](tokens[index])
            if len(self.norms):
                ordered = self.norms[at](ordered)
            found.append(ordered.reshape(-1, *self.encoder.grids[index], ordered.shape[2]))
        return tuple(found)


# -- building --------------------------------------------------------------------------------------------------


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier or the backbone of a checkpoint; see `BuildOptions`.

    A checkpoint with a classification head is a classifier unless `options.task` asks for its features. The input's
    size is the image processor's, or for features the camera's (`options.frame`).
    """
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    task = options.task or ("classify" if checkpoint.architecture.endswith("ForImageClassification") else "embed")
    if task == "classify":
        return _build_classifier(checkpoint, options)
    if task == "embed":
        return _build_backbone(checkpoint, options)
    raise InputError(f"family swin has no task {task!r}; choose one of: {', '.join(RECIPE.results)}")


def _build_classifier(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    if not checkpoint.architecture.endswith("ForImageClassification"):
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture or 'checkpoint without architecture'}, which has no "
            "classes; export its features with task embed, or give a checkpoint with a classification head"
        )
    model = _load(checkpoint, "ForImageClassification", ())
    processor, preprocess, size = _preprocess(checkpoint, model.config, replace(options, frame=None))
    classes = choose_classes(model.config, options)
    prefix = model.base_model_prefix
    traced = traced_copy(model, f"{prefix}.embeddings.patch_embeddings.projection", preprocess)
    encoder = Encoder(getattr(traced, prefix), size, clamp=checkpoint.model_type == "swin")
    return Traceable(
        family=RECIPE.family,
        task="classify",
        module=Classifier(traced, encoder, Frames(preprocess), classes).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=classes.outputs(options.batch),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=classes.decode,
        labels=classes.labels,
        reference=partial(_classify_reference, model, processor, classes),
        notes=needless_frame(options.frame, size),
    )


def _build_backbone(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    if options.top_k is not None or options.labels is not None:
        raise InputError("a backbone has no classes: leave top_k and labels out")
    whole = not checkpoint.architecture.endswith("Backbone")
    model = _load(checkpoint, "Model" if whole else "Backbone", UNUSED)
    processor, preprocess, size = _preprocess(checkpoint, model.config, options)
    inner = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
    prefix = f"{inner}." if inner else ""
    traced = traced_copy(model, f"{prefix}embeddings.patch_embeddings.projection", preprocess)
    encoder = Encoder(traced.get_submodule(inner), size, clamp=whole and checkpoint.model_type == "swin")
    stages, names = _stages(model, whole)
    norms = [traced.hidden_states_norms[name] for name in names] if hasattr(traced, "hidden_states_norms") else []
    width = int(model.config.embed_dim)
    patch = pair(model.config.patch_size)
    if patch[0] != patch[1]:
        raise CheckpointError(f"the patches of {checkpoint.path} are {patch[0]}x{patch[1]}; square ones are expected")
    outputs = [
        TensorInfo(name=name, shape=(options.batch, *encoder.grids[index], width * 2**index), dtype="float32")
        for index, name in zip(stages, names, strict=True)
    ]
    if whole:
        outputs.insert(0, TensorInfo(name="cls", shape=(options.batch, width * 2 ** stages[-1]), dtype="float32"))
    return Traceable(
        family=RECIPE.family,
        task="embed",
        module=Pyramid(encoder, Frames(preprocess), stages, norms, traced.layernorm if whole else None).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=tuple(outputs),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=PyramidDecode(maps=names, strides=tuple(patch[0] * 2**index for index in stages)),
        labels=(),
        reference=partial(_backbone_reference, model, processor, preprocess, whole, stages),
    )


def _load(checkpoint: Checkpoint, kind: str, unused: tuple[str, ...]) -> Any:
    """The transformers model, `kind` the end of its class's name."""
    import transformers

    version = {"swin": "Swin", "swinv2": "Swinv2"}[checkpoint.model_type]
    config = dict(checkpoint.config)
    if config.get("use_absolute_embeddings") and version == "Swinv2":
        raise CheckpointError(f"{checkpoint.path} is a Swin v2 with absolute positions, which transformers cannot run")
    if kind == "Backbone" and not {"out_features", "out_indices"} & set(config):
        config["out_features"] = [f"stage{number}" for number in range(1, len(config.get("depths", range(4))) + 1)]
    return checkpoint.load(getattr(transformers, f"{version}{kind}"), config=config, unused=unused)


def _stages(model: Any, whole: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The stages that give maps, as numbers from 0 and as the names of their outputs."""
    if whole:
        numbers = tuple(range(len(model.config.depths)))
        return numbers, tuple(f"stage{number + 1}" for number in numbers)
    if "stem" in model.out_features:
        raise CheckpointError(
            "the backbone's out_features name the stem, which is no stage; leave it out of config.json"
        )
    return tuple(model.stage_names.index(name) - 1 for name in model.out_features), tuple(model.out_features)


def _preprocess(checkpoint: Checkpoint, config: Any, options: BuildOptions) -> tuple[Any, Preprocess, Grid]:
    """The processor, set to one size, what it does, and that size.

    With `options.frame`: the whole frame at the scale that the processor's rule gives its shortest edge, not cropped.
    """
    trained = pair(config.image_size)
    settings = {
        "size": {"height": trained[0], "width": trained[1]},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = load_processor(checkpoint, "ViT", settings)
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    if options.frame is None:
        if size is None:
            raise CheckpointError(
                f"the image processor of {checkpoint.path} scales the shortest edge and does not crop, so the size "
                "depends on the frame; give it a size with height and width, or your camera's with --frame 1920x1080 "
                "(task embed)"
            )
        return processor, preprocess, size
    rule = preprocess.size
    shortest = rule.shortest if isinstance(rule, ShortestEdge) else min(size or trained)
    scale = shortest / min(options.frame)
    fixed = (max(1, round(options.frame[0] * scale)), max(1, round(options.frame[1] * scale)))
    processor.size, processor.do_center_crop = {"height": fixed[0], "width": fixed[1]}, False
    return processor, preprocess_of(processor, options.resize), fixed


def _classify_reference(model: Any, processor: Any, classes: Classes, frame: Array) -> Classification:
    """The processor, the model and softmax (or sigmoid), as transformers' image classification pipeline has it."""
    with torch.no_grad():
        pixels = reference_inputs(processor, [frame])["pixel_values"]
        return classes.result(model(pixels, **_any_size(model)).logits)


def _backbone_reference(
    model: Any, processor: Any, preprocess: Preprocess, whole: bool, stages: tuple[int, ...], frame: Array
) -> Features:
    """The processor and the model, each stage's tokens before they are merged."""
    with torch.no_grad():
        pixels = reference_inputs(processor, [frame])["pixel_values"]
        if not whole:
            maps = model(pixels, **_any_size(model)).feature_maps
        else:
            tokens, grid = model.embeddings(pixels, **_any_size(model))
            encoded = model.encoder(
                tokens, grid, output_hidden_states=True, output_hidden_states_before_downsampling=True
            )
            maps = encoded.reshaped_hidden_states[1:]
            cls = model.layernorm(encoded.last_hidden_state).mean(1)[0].numpy()
    patch = pair(model.config.patch_size)[0]
    return Features.pyramid(
        tuple(one[0].permute(1, 2, 0).numpy() for one in maps),
        tuple(patch * 2**index for index in stages),
        plan((frame.shape[0], frame.shape[1]), preprocess),
        cls=cls if whole else None,
    )


def _any_size(model: Any) -> dict[str, bool]:
    """What lets v1 take other sizes than the trained one where it has absolute positions."""
    return {"interpolate_pos_encoding": True} if model.config.model_type == "swin" else {}


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "image_size": 96,
        "embed_dim": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 4],
        "mlp_ratio": 2.0,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    return {
        "swin": {"model_type": "swin", "architectures": ["SwinForImageClassification"], "window_size": 3, **tiny},
        "swinv2": {"model_type": "swinv2", "architectures": ["Swinv2ForImageClassification"], "window_size": 4, **tiny},
    }


RECIPE = Recipe(
    family="swin",
    title="Swin image classification and feature maps",
    paper="https://arxiv.org/abs/2103.14030",
    task="classify",
    result="Classification",
    further={"embed": "Features"},
    model_types=("swin", "swinv2"),
    layouts=("Hugging Face directory", "config.json alone with a seed", *names_for("swin")),
    variants=("Swin v1", "Swin v2", "feature maps of up to four scales (--task embed)"),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "task", "frame", "top_k", "labels", "resize"),
)
