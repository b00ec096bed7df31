"""Attention of every position of a feature map to the window around it, in place of a convolution.

Ramachandran et al., "Stand-Alone Self-Attention in Vision Models", 2019 (SASA); Hu et al., "Local Relation Networks for
Image Recognition", 2019. Beyond the edge of a map both see zeros, as a convolution does.

Each layer computes in two ways. The plain one follows its paper: every window is unfolded. It copies the map once for
every position of the window, and exporters spell it out as gathering by index. With `tiled` set, as graphs are traced,
the map is cut into tiles about as large as the window instead, each with the margin that its windows reach into: slices
and matrix products of a tile with its surroundings, in which what lies outside a position's own window is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

OUTSIDE = -1e4
"""Added to the logit of a position outside the window: its weight is exactly 0, and it fits into a half float."""

Composability = Literal["squared", "absolute", "product"]


class StandaloneAttention(nn.Module):
    """x (N,C,H,W) -> (N,D,H,W), or half of H and W with `stride` 2, which average pooling does afterwards.

    Section 3: `heads` groups of channels, each with query, key and value of its own (grouped 1x1 convolutions), and
    relative position embeddings, half of a head's channels for the row and half for the column, shared by the heads.
    Raises `ValueError` for an even window, or channels that the heads do not divide into even numbers.
    """

    def __init__(self, channels: int, out_channels: int, *, heads: int = 8, window: int = 7, stride: int = 1) -> None:
        super().__init__()
        _check_window(window)
        if heads < 1 or channels % heads or out_channels % (2 * heads):
            raise ValueError(f"{channels} and {out_channels} channels do not divide into {heads} heads of even width")
        self.query = nn.Conv2d(channels, out_channels, 1, groups=heads, bias=False)
        self.key = nn.Conv2d(channels, out_channels, 1, groups=heads, bias=False)
        self.value = nn.Conv2d(channels, out_channels, 1, groups=heads, bias=False)
        half = out_channels // heads // 2
        self.rows = nn.Parameter(torch.randn(window, half) * half**-0.5)
        self.columns = nn.Parameter(torch.randn(window, half) * half**-0.5)
        self.heads, self.window, self.stride = heads, window, stride
        self.tiled = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            part.unflatten(1, (self.heads, -1)).flatten(0, 1) for part in (self.query(x), self.key(x), self.value(x))
        ]
        found = (self._tiled if self.tiled else self._plain)(*parts)
        return _reduce(torch.unflatten(found, 0, (-1, self.heads)).flatten(1, 2), self.stride)

    def _plain(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Each (B,d,H,W) -> (B,d,H,W), B being frames times heads."""
        window = self.window
        rows, columns = self.rows[:, None], self.columns[None]
        relative = torch.cat([rows.expand(window, window, -1), columns.expand(window, window, -1)], -1)
        keys = windows(key, window) + relative.flatten(0, 1).T[:, :, None]
        logits = (query.flatten(2)[:, :, None] * keys).sum(1)
        found = (logits.softmax(1)[:, None] * windows(value, window)).sum(2)
        return found.reshape(query.shape)

    def _tiled(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As `_plain`. The relative part of a logit is a row's and a column's: two products with small tables."""
        size, window = query.shape[2:], self.window
        edge = tile_edge(size, window)
        queries = tiles(query, edge)  # (B,T,h,w,d)
        half = self.rows.shape[1]
        row_table, row_mask = _shifted(self.rows, edge[0])
        column_table, column_mask = _shifted(self.columns, edge[1])
        row = queries[..., :half] @ row_table + row_mask[:, None]
        column = ((queries[..., half:].transpose(2, 3) @ column_table) + column_mask[:, None]).transpose(2, 3)
        reach = row.shape[-1], column.shape[-1]
        # every pair (row, column) of the surroundings gets the sum of both: a product with zeros and ones
        pairs = torch.cat(
            [torch.eye(reach[0]).repeat_interleave(reach[1], 1), torch.eye(reach[1]).repeat(1, reach[0])]
        ).to(query)
        relative = torch.cat([row, column], -1).flatten(2, 3) @ pairs
        logits = queries.flatten(2, 3) @ surroundings(key, edge, window) + relative
        found = logits.softmax(-1) @ surroundings(value, edge, window).transpose(-1, -2)
        return untile(found, edge, size)


class LocalRelation(nn.Module):
    """x (N,C,H,W) -> (N,C,H,W), or half of H and W with `stride` 2, which average pooling does afterwards.

    Section 4: `share` channels are aggregated with the same weights. A weight is the softmax, over the window, of how
    well a position's scalar key goes with the centre's scalar query (`composability`: minus the squared or the absolute
    difference, or the product) plus a geometry prior, a small network of the relative position: rows and columns from
    -1 to 1, twice a 1x1 convolution with ReLU between. Raises `ValueError` for an even window, or channels that
    `share` does not divide.
    """

    positions: torch.Tensor

    def __init__(
        self,
        channels: int,
        *,
        share: int = 8,
        window: int = 7,
        stride: int = 1,
        composability: Composability = "squared",
    ) -> None:
        super().__init__()
        _check_window(window)
        if share < 1 or channels % share:
            raise ValueError(f"{channels} channels do not divide into groups of {share}")
        groups = channels // share
        self.query = nn.Conv2d(channels, groups, 1)
        self.key = nn.Conv2d(channels, groups, 1)
        self.prior = nn.Sequential(nn.Conv2d(2, groups, 1), nn.ReLU(), nn.Conv2d(groups, groups, 1))
        steps = torch.linspace(-1, 1, window)
        self.register_buffer("positions", torch.stack(torch.meshgrid(steps, steps, indexing="ij"))[None], False)
        self.groups, self.window, self.stride = groups, window, stride
        self.compose = COMPOSE[composability]
        self.tiled = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _reduce((self._tiled if self.tiled else self._plain)(x, self.query(x), self.key(x)), self.stride)

    def _plain(self, x: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        keys = windows(key, self.window)
        logits = self.compose(query.flatten(2)[:, :, None], keys) + self.prior(self.positions)[0].flatten(1)[..., None]
        values = torch.unflatten(windows(x, self.window), 1, (self.groups, -1))
        found: torch.Tensor = (logits.softmax(2)[:, :, None] * values).sum(3)
        return found.reshape(x.shape)

    def _tiled(self, x: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        edge = tile_edge(size, self.window)
        queries, keys, values = (torch.unflatten(part, 1, (self.groups, -1)).flatten(0, 1) for part in (query, key, x))
        mine, theirs = tiles(queries, edge).flatten(2, 3), surroundings(keys, edge, self.window)
        logits = torch.unflatten(self.compose(mine, theirs), 0, (-1, self.groups)) + self._table(edge)[:, None]
        found = logits.softmax(-1).flatten(0, 1) @ surroundings(values, edge, self.window).transpose(-1, -2)
        return untile(found, edge, size).reshape(x.shape)

    def _table(self, edge: tuple[int, int]) -> torch.Tensor:
        """The prior of each position of the surroundings for each of a tile, masked: (groups, h*w, reach)."""
        prior: torch.Tensor = self.prior(self.positions)[0]
        row, rows_inside = _offsets(edge[0], self.window)
        column, columns_inside = _offsets(edge[1], self.window)
        table = prior[:, row[:, None, :, None], column[None, :, None, :]]
        inside = rows_inside[:, None, :, None] & columns_inside[None, :, None, :]
        return table.masked_fill(~inside, OUTSIDE).flatten(3).flatten(1, 2)


COMPOSE: dict[Composability, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "squared": lambda query, key: -((query - key) ** 2),
    "absolute": lambda query, key: -(query - key).abs(),
    "product": lambda query, key: query * key,
}


def windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """(B,d,H,W) -> (B,d,window*window,H*W): what each position sees around it, row by row, zeros beyond the edge."""
    return torch.unflatten(F.unfold(x, window, padding=window // 2), 1, (x.shape[1], -1))


# -- tiles: all sizes are numbers when a graph is traced -----------------------------------------------------------


def tile_edge(size: tuple[int, ...], window: int) -> tuple[int, int]:
    """(height, width) of the tiles that cut a map evenly into the fewest not larger than the window."""
    height, width = (math.ceil(length / math.ceil(length / window)) for length in size)
    return height, width


def tiles(x: torch.Tensor, edge: tuple[int, int]) -> torch.Tensor:
    """(B,d,H,W) -> (B,T,h,w,d): T tiles of `edge` (h,w), row by row; the last ones are filled with zeros."""
    rows, columns = (math.ceil(length / step) for length, step in zip(x.shape[2:], edge, strict=True))
    x = F.pad(x, (0, columns * edge[1] - x.shape[3], 0, rows * edge[0] - x.shape[2]))
    x = x.reshape(-1, x.shape[1], rows, edge[0], columns, edge[1])
    return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)


def surroundings(x: torch.Tensor, edge: tuple[int, int], window: int) -> torch.Tensor:
    """(B,d,H,W) -> (B,T,d,reach): each tile of `tiles` with the margin that its windows reach into, flattened."""
    rows, columns = (math.ceil(length / step) for length, step in zip(x.shape[2:], edge, strict=True))
    margin, (height, width) = window // 2, edge
    right, bottom = columns * width - x.shape[3] + margin, rows * height - x.shape[2] + margin
    x = F.pad(x, (margin, right, margin, bottom))
    x = torch.stack([x[:, :, i * height : (i + 1) * height + 2 * margin] for i in range(rows)], 1)
    x = torch.stack([x[..., j * width : (j + 1) * width + 2 * margin] for j in range(columns)], 2)
    return x.flatten(1, 2).flatten(3)


def untile(x: torch.Tensor, edge: tuple[int, int], size: tuple[int, ...]) -> torch.Tensor:
    """(B,T,h*w,d) -> (B,d,H,W): the inverse of `tiles`, cut to `size`."""
    rows, columns = (math.ceil(length / step) for length, step in zip(size, edge, strict=True))
    x = x.reshape(-1, rows, columns, *edge, x.shape[-1]).permute(0, 5, 1, 3, 2, 4)
    return x.flatten(2, 3).flatten(3)[:, :, : size[0], : size[1]]


def _offsets(edge: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each position of a tile's edge and each of its surroundings: which place of the window that is (clamped to
    it), and whether it is inside; both (edge, edge + window - 1)."""
    place = torch.arange(edge + window - 1)[None] - torch.arange(edge)[:, None]
    return place.clamp(0, window - 1), (place >= 0) & (place < window)


def _shifted(table: torch.Tensor, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(window,d) -> one table for each position of a tile's edge (edge,d,reach), zero outside the window, and what
    masks the outside (edge,reach)."""
    place, inside = _offsets(edge, len(table))
    shifted = torch.where(inside[..., None], table[place], 0).transpose(1, 2)
    return shifted, torch.where(inside, 0.0, OUTSIDE).to(table)


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window is {window}; an odd number is expected")


def _reduce(x: torch.Tensor, stride: int) -> torch.Tensor:
    return x if stride == 1 else F.avg_pool2d(x, stride, ceil_mode=True)
