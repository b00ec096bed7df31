"""Attention of every position of a feature map to every other, added to a convolutional network.

Zhang et al., "Self-Attention Generative Adversarial Networks", 2019 (SAGAN), section 3; Wang et al., "Non-local Neural
Networks", 2018, section 3.3, in its embedded Gaussian form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def bottleneck(channels: int, reduction: int) -> int:
    """Channels / reduction, rounded down; raises `ValueError` where nothing would be left."""
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction is {reduction} for a stage of {channels} channels; choose 1 to {channels}")
    return channels // reduction


class SaganAttention(nn.Module):
    """x (N,C,H,W) -> gamma * attention(x) + x, of the same shape.

    `reduction`: the bottleneck has C / reduction channels (8 in the paper). `gamma` starts at 0, so that a network
    begins with what it knew. The paper's spectral normalisation belongs to training: publish normalised weights.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = bottleneck(channels, reduction)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, inner, 1, bias=False)
        self.output = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.output(attend(self.query(x), self.key(x), self.value(x)))
        return self.gamma * found + x


class NonLocalBlock(nn.Module):
    """x (N*T,C,H,W) -> z(attention(x)) + x, of the same shape.

    In space-time a position looks at all positions of the T = `times` frames of its clip, which follow one another; the
    paper's 1x1x1 convolutions and its pooling treat every frame alike. `theta`, `phi`, `g` have C / reduction channels
    (2 in the paper). `subsample` halves height and width of what is looked at by max pooling after `phi` and `g`; time
    keeps its length. `scaled` divides the similarities by the square root of the inner channels, which the paper's
    formula does not and its published code does. The norm after `z` starts with a weight of 0.
    """

    def __init__(
        self, channels: int, *, times: int = 1, reduction: int = 2, subsample: bool = True, scaled: bool = False
    ) -> None:
        super().__init__()
        inner = bottleneck(channels, reduction)
        self.times = times
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.z = nn.Conv2d(inner, channels, 1)
        self.normalization = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.normalization.weight)
        self.pool: nn.Module = nn.MaxPool2d(2) if subsample else nn.Identity()
        self.scale = inner**-0.5 if scaled else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = attend(self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x)), self.scale, self.times)
        z: torch.Tensor = self.normalization(self.z(found)) + x
        return z


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float = 1.0, times: int = 1
) -> torch.Tensor:
    """query (N*T,c,H,W), key (N*T,c,h,w) and value (N*T,d,h,w) over all positions of T = `times` maps -> (N*T,d,H,W)"""
    q, k, v = (
        part.flatten(2).transpose(1, 2).reshape(-1, 1, times * math.prod(part.shape[2:]), part.shape[1])
        for part in (query, key, value)
    )
    found = F.scaled_dot_product_attention(q, k, v, scale=scale)
    positions, channels = math.prod(query.shape[2:]), value.shape[1]
    return found.reshape(-1, positions, channels).transpose(1, 2).reshape(-1, channels, *query.shape[2:])
