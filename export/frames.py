"""The first nodes of every graph: uint8 BGR frames to the tensor that the model was trained on.

The host only resizes. Here the graph casts, transposes, and applies the checkpoint's scale, mean and standard
deviation as one multiply-add. The channels stay BGR: the model's first convolution is given reversed input channels
instead, which costs nothing at run time and changes a sum's order only.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.attention import use_attention
from edgevtx.rules import Preprocess


class Frames(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> normalised pixels (N,3,H,W) float32, channels in BGR order.

    Clips (N,T,H,W,3) give (N,T,3,H,W).
    With `valid_size` (N,2) int32 (height, width), normalised pixels outside it become exactly 0, which is what
    reference processors pad with.
    """

    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)
        std = torch.tensor(preprocess.std, dtype=torch.float64)
        gain, offset = preprocess.scale / std, -mean / std
        if preprocess.channel_order == "rgb":
            gain, offset = gain.flip(0), offset.flip(0)
        self.register_buffer("gain", gain.float().reshape(1, 3, 1, 1))
        self.register_buffer("offset", offset.float().reshape(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor, valid_size: torch.Tensor | None = None) -> torch.Tensor:
        # Cast first: TensorRT refuses a Transpose or Gather of uint8
        normalised = pixels.to(torch.float32).movedim(-1, -3) * self.gain + self.offset
        if valid_size is None:
            return normalised
        rows, columns = valid_rows_columns(normalised.shape[2], normalised.shape[3], valid_size)
        valid = rows[:, None, :, None] & columns[:, None, None, :]
        return normalised * valid.to(torch.float32)


def valid_rows_columns(height: int, width: int, valid_size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `height` rows and `width` columns lie inside valid_size (N,2): bool (N,height) and (N,width)."""
    rows = torch.arange(height, device=valid_size.device)[None] < valid_size[:, :1]
    columns = torch.arange(width, device=valid_size.device)[None] < valid_size[:, 1:]
    return rows, columns


def traced_copy(model: nn.Module, first_convolution: str, preprocess: Preprocess) -> Any:
    """A copy of `model` that takes BGR and may be changed for tracing, while `model` stays the reference.

    It shares every tensor with `model` except the weights of `first_convolution` (its dotted name), whose input
    channels are reversed, and computes attention as `edgevtx.export.attention` does. Raises `CheckpointError` where
    that convolution reads anything but three channels.
    """
    first: Any = model.get_submodule(first_convolution)
    if first.in_channels != 3:
        raise CheckpointError(
            f"the model reads images of {first.in_channels} channels, but frames have 3 (BGR); give a checkpoint for "
            "colour images"
        )
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    traced: Any = copy.deepcopy(model, shared)
    if hasattr(traced, "config"):  # modules of our own are written as they are to be traced
        use_attention(traced.config)
    if preprocess.channel_order == "rgb":
        convolution = traced.get_submodule(first_convolution)
        convolution.weight = nn.Parameter(convolution.weight.flip(1).contiguous(), requires_grad=False)
    return traced
