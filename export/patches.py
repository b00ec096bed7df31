"""What plain vision transformers share: the patch grid and a position table folded for one input size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgevtx.errors import CheckpointError


def pair(value: Any) -> tuple[int, int]:
    """A size of a config as (height, width): configs write one number or two."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def patch_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of whole patches in an input of `size`; pixels beyond them are not looked at."""
    patch = pair(config.patch_size)
    grid = size[0] // patch[0], size[1] // patch[1]
    if 0 in grid:
        raise CheckpointError(f"an input of {size[0]}x{size[1]} holds no patch of {patch[0]}x{patch[1]}")
    return grid


def fold_positions(embeddings: Any, config: Any, size: tuple[int, int]) -> None:
    """Replace the position table of `embeddings` by the one interpolated for inputs of `size` (height, width).

    The model's own bicubic interpolation is used once, here, so that the graph holds a constant. Raises
    `CheckpointError` for another size than the trained one where that was not square.
    """
    trained = pair(config.image_size)
    if size != trained:
        if trained[0] != trained[1]:
            raise CheckpointError(
                f"the position table was trained for {trained[0]}x{trained[1]}, the image processor gives "
                f"{size[0]}x{size[1]}: only square tables can be interpolated; make the two sizes equal"
            )
        rows, columns = patch_grid(config, size)
        special = embeddings.position_embeddings.shape[1] - math.prod(patch_grid(config, trained))
        tokens = torch.zeros(1, special + rows * columns, embeddings.position_embeddings.shape[2])
        table = embeddings.interpolate_pos_encoding(tokens, *size).detach()
        embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)
    embeddings.image_size = embeddings.patch_embeddings.image_size = size
    folded = embeddings.position_embeddings
    embeddings.interpolate_pos_encoding = lambda *_: folded
