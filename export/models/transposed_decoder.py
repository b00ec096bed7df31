"""A decoder for dense prediction that enlarges a backbone's patch features by transposed convolutions.

Each step is a transposed convolution of stride 2 (Zeiler et al., "Deconvolutional Networks", 2010), batch norm and
ReLU; a 1x1 convolution gives the logits. It is SETR's progressive upsampling with learned interpolation.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class Step(nn.Sequential):
    """(N,D,h,w) -> (N,D',2h,2w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


class TransposedDecoder(nn.Module):
    """Patch features (N,D,h,w) -> logits (N,C,h',w'), h' and w' twice as large for each of `channels`."""

    def __init__(self, inputs: int, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (inputs, *channels)
        self.stages = nn.ModuleList(Step(before, after) for before, after in pairwise(widths))
        self.classifier = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            features = stage(features)
        logits: torch.Tensor = self.classifier(features)
        return logits
