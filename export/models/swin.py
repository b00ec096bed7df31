"""Swin's encoder with the weights of transformers' models, in a form that runtimes compile well.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021; Liu et al., "Swin
Transformer V2: Scaling Up Capacity and Resolution", 2022. Windows, shifts, masks and position biases are constants of
one input size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from edgevtx.errors import CheckpointError

Grid = tuple[int, int]

HIDDEN = -1e4
"""What the scores of hidden tokens are lowered by. The reference's -100 (v2: -200) leaves exp(-100) = 4e-44 of them, a
denormal number, and products with denormals take processors up to fifty times as long; of exp(-1e4) nothing is left."""


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


# -- whole networks --------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Normalised pixels (N,3,H,W) of one size -> an object with `logits` (N,classes).

    Built over a transformers SwinForImageClassification or Swinv2ForImageClassification.
    """

    def __init__(self, model: Any, size: Grid) -> None:
        super().__init__()
        backbone = getattr(model, model.base_model_prefix)
        self.encoder = Encoder(backbone, size, clamp=model.config.model_type == "swin")
        self.norm, self.classifier = backbone.layernorm, model.classifier

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        tokens = self.norm(self.encoder(pixel_values)[-1])
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(tokens.mean(1)))
