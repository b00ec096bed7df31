"""A decoder for dense prediction that enlarges a backbone's patch features by transposed convolutions.

Each step is a transposed convolution of stride 2 (Zeiler et al., "Deconvolutional Networks", 2010), batch norm and
ReLU; a 1x1 convolution gives the logits. It is SETR's progressive upsampling with learned interpolation.
"""

from __future__ import annotations

import torch
from torch import nn


class TransposedDecoder(nn.Module):
    """Patch features (N,D,h,w) -> logits (N,C,h',w'), h' and w' twice as large for each of `channels`."""

    def __init__(self, inputs: int, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (inputs, *channels)
        self.stages = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv": nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride=2, padding=1),
                    "norm": nn.BatchNorm2d(widths[i + 1]),
                }
            )
            for i in range(len(channels))
        )
        self.classifier = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            features = stage["norm"](stage["conv"](features)).relu()
        logits: torch.Tensor = self.classifier(features)
        return logits
