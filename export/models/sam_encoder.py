"""SAM's image encoder with the weights of transformers' `SamVisionEncoder`, in a form that runtimes compile well.

Kirillov et al., "Segment Anything", 2023, appendix A; attention in windows and relative positions decomposed into rows
and columns: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, and "MViTv2", 2022,
eq. 4. What differs from the library's forward pass, and does not change what is computed:

- queries, keys and values are made of the tokens before windows are padded: a padding token is zero, so that its
  query, key and value are the biases, and 4096 rows are multiplied instead of 4900;
- the relative positions' tables are gathered once, here, and applied as matrix products in the layout that the tokens
  have, without a transpose;
- over a whole image attention is computed four heads at a time: 268 MB of position terms are in memory and not 805.
  One at a time would need less, but ONNX Runtime divides attention among its threads by heads, so that all but one
  of them would wait.

Tried and left out: the position terms as further columns of query and key, [q, q Rh, q Rw] . [k, row, column] with row
and column one-hot, which needs no bias at all. It is exact, and slower: it widens the product of queries and keys by
half in windows, and threefold over the image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HEADS = 4
"""So many heads at a time have their position terms in memory."""


class Encoder(nn.Module):
    """Normalised pixels (N,3,S,S) -> the embedding (N,C,S/16,S/16) float32."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        config = encoder.config
        self.patches = encoder.patch_embed.projection
        self.positions = encoder.pos_embed
        grid = config.image_size // config.patch_size
        self.layers = nn.ModuleList(Layer(layer, grid) for layer in encoder.layers)
        self.neck = encoder.neck

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(pixel_values).permute(0, 2, 3, 1)
        if self.positions is not None:
            tokens = tokens + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        embedding: torch.Tensor = self.neck(tokens)
        return embedding


class Layer(nn.Module):
    """A pre-norm transformer layer over (N,grid,grid,D), its attention over everything or within windows."""

    def __init__(self, layer: Any, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp
        self.out = layer.attn.proj
        self.grid, self.window = grid, int(layer.window_size) or grid
        self.padding = -grid % self.window
        self.attention = Attention(layer.attn, self.window, whole=self.window == grid)
        self.qkv = nn.Linear(layer.attn.qkv.in_features, layer.attn.qkv.out_features)
        self.qkv.weight, self.qkv.bias = self.attention.scaled(layer.attn.qkv)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.attention(self._partition(self.qkv(self.norm1(tokens))))
        tokens = tokens + self.out(self._unpartition(mixed))
        fed: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return fed

    def _partition(self, qkv: torch.Tensor) -> torch.Tensor:
        """(N,grid,grid,3D) -> (N * windows,window,window,3D), padding filled with the biases."""
        if self.window == self.grid:
            return qkv
        batch, padding, side = qkv.shape[0], self.padding, self.grid + self.padding
        if padding:
            qkv = torch.cat((qkv, self.qkv.bias.expand(batch, self.grid, padding, -1)), 2)
            qkv = torch.cat((qkv, self.qkv.bias.expand(batch, padding, side, -1)), 1)
        count = side // self.window
        cut = torch.unflatten(torch.unflatten(qkv, 1, (count, self.window)), 3, (count, self.window))
        return cut.transpose(2, 3).flatten(0, 2)

    def _unpartition(self, mixed: torch.Tensor) -> torch.Tensor:
        """(N * windows,window,window,D) -> (N,grid,grid,D)."""
        if self.window == self.grid:
            return mixed
        count = (self.grid + self.padding) // self.window
        whole = torch.unflatten(mixed, 0, (-1, count, count)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole[:, : self.grid, : self.grid] if self.padding else whole


class Attention(nn.Module):
    """Queries, keys and values (B,n,n,3D) of a square -> (B,n,n,D), with decomposed relative positions.

    `whole`: a square that is the image and not a window, some heads at a time; see the module.
    """

    row_table: torch.Tensor
    column_table: torch.Tensor

    def __init__(self, attention: Any, size: int, *, whole: bool) -> None:
        super().__init__()
        self.size, self.whole = size, whole
        self.heads = int(attention.num_attention_heads)
        self.scale = float(attention.scale)
        self.relative = bool(attention.use_rel_pos)
        if not self.relative:
            return
        # the query is scaled before, and the position terms are of the query without the scale
        tables = [
            attention.get_rel_pos(size, size, table).transpose(1, 2) / self.scale
            for table in (attention.rel_pos_h, attention.rel_pos_w)
        ]
        self.register_buffer("row_table", tables[0].contiguous())  # (query row, d, key row)
        self.register_buffer("column_table", tables[1].contiguous())

    def scaled(self, qkv: nn.Linear) -> tuple[nn.Parameter, nn.Parameter]:
        """The weight and bias of `qkv` with the attention's scale in those of the query."""
        width = qkv.in_features
        factor = torch.ones(3 * width, 1)
        factor[:width] = self.scale
        bias = torch.zeros(3 * width) if qkv.bias is None else qkv.bias
        return (
            nn.Parameter(qkv.weight * factor, requires_grad=False),
            nn.Parameter(bias * factor[:, 0], requires_grad=False),
        )

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        parts = torch.unflatten(qkv.flatten(1, 2), -1, (3, self.heads, -1))
        query, key, value = parts.unbind(2)  # (B,n * n,heads,d)
        if not self.relative:
            mixed = attend(query, key, value)
        else:
            terms = (query, key, value, *self._positions(query))
            if self.whole:
                heads = zip(*(torch.split(term, HEADS, 2) for term in terms), strict=True)
                mixed = torch.cat([_attend_with_bias(*some) for some in heads], 2)
            else:
                mixed = _attend_with_bias(*terms)
        return torch.unflatten(mixed.flatten(2), 1, (self.size, self.size))

    def _positions(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each query (B,n * n,heads,d) with the places of the n key rows and the n key columns: (B,n * n,heads,n)."""
        size, width = self.size, query.shape[3]
        # in one step, not from the square: where a side is as long as another, onnxscript (0.7) takes away the
        # reshapes around the product as if it could be broadcast, and multiplies rows by the columns' tables
        rows = query.reshape(-1, size, size * self.heads, width) @ self.row_table
        columns = query.reshape(-1, size, size, self.heads, width) @ self.column_table
        shape = (-1, size * size, self.heads, size)
        return rows.reshape(shape), columns.reshape(shape)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of scaled queries: (B,T,heads,d) each, bias (B,heads,T,T) -> (B,T,heads,d)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0).transpose(1, 2)


def _attend_with_bias(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """`rows` and `columns` (B,T,heads,n) are the position terms of the key's row and column."""
    rows, columns = rows.transpose(1, 2), columns.transpose(1, 2)
    return attend(query, key, value, (rows[..., :, None] + columns[..., None, :]).flatten(3))
