"""Swin (Liu 2021) and Swin v2 (Liu 2022) with the attribute names of microsoft/Swin-Transformer and of timm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.export.replicas.vit import Mlp


def into_windows(grid, window):
    """(N,H,W,C) -> (N * windows, window * window, C)."""
    count, height, width, channels = grid.shape
    cells = grid.view(count, height // window, window, width // window, window, channels)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def out_of_windows(tokens, window, height, width):
    cells = tokens.view(-1, height // window, width // window, window, window, tokens.shape[2])
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, tokens.shape[2])


def distances(window):
    """The index (window², window²) of each pair's (row, column) distance in a table of all distances."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten()[None] + window - 1
    right = columns.flatten()[:, None] - columns.flatten()[None] + window - 1
    return down * (2 * window - 1) + right


class Attention(nn.Module):
    def __init__(self, width, heads, window, pretrained, version):
        super().__init__()
        self.heads, self.version, self.window = heads, version, window
        self.proj = nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width, bias=version == 1)
        self.register_buffer("relative_position_index", distances(window))
        if version == 1:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
            return
        self.logit_scale = nn.Parameter(torch.zeros(heads, 1, 1))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        steps = torch.arange(1 - window, window) * 8 / ((pretrained or window) - 1)
        steps = steps.sign() * torch.log2(steps.abs() + 1) / 3
        self.register_buffer("relative_coords_table", torch.stack(torch.meshgrid(steps, steps, indexing="ij"), 2)[None])

    def bias(self):
        if self.version == 1:
            table = self.relative_position_bias_table
        else:
            table = 16 * self.cpb_mlp(self.relative_coords_table).view(-1, self.heads).sigmoid()
        return table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, tokens, mask):
        count, length, width = tokens.shape
        bias = None
        if self.version == 2:
            bias = torch.cat([self.q_bias, torch.zeros(width), self.v_bias])
        parts = F.linear(tokens, self.qkv.weight, self.qkv.bias if bias is None else bias)
        query, key, value = parts.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.version == 1:
            looks = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        else:
            looks = F.normalize(query, dim=3) @ F.normalize(key, dim=3).transpose(2, 3)
            looks = looks * self.logit_scale.clamp(max=math.log(100)).exp()
        looks = looks + self.bias()
        if mask is not None:
            looks = (looks.view(-1, len(mask), *looks.shape[1:]) + mask[:, None]).flatten(0, 1)
        return self.proj((looks.softmax(3) @ value).transpose(1, 2).reshape(count, length, width))


class Block(nn.Module):
    def __init__(self, width, heads, window, side, pretrained, version, shifted):
        super().__init__()
        self.version, self.side = version, side
        self.window = min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, self.window, pretrained, version)
        self.mlp = Mlp(width)
        self.register_buffer("attn_mask", self.mask() if self.shift else None)

    def mask(self):
        """Windows whose parts come from opposite edges: those parts do not look at each other."""
        bands = torch.zeros(self.side, dtype=torch.long)
        bands[-self.window : -self.shift], bands[-self.shift :] = 1, 2
        regions = into_windows((bands[:, None] * 3 + bands[None])[None, :, :, None], self.window)[..., 0]
        return torch.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)

    def attend(self, tokens):
        grid = tokens.view(len(tokens), self.side, self.side, -1).roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(into_windows(grid, self.window), self.attn_mask)
        grid = out_of_windows(windows, self.window, self.side, self.side)
        return grid.roll((self.shift, self.shift), (1, 2)).flatten(1, 2)

    def forward(self, tokens):
        if self.version == 1:
            tokens = tokens + self.attend(self.norm1(tokens))
            return tokens + self.mlp(self.norm2(tokens))
        tokens = tokens + self.norm1(self.attend(tokens))
        return tokens + self.norm2(self.mlp(tokens))


class Merging(nn.Module):
    def __init__(self, width, version):
        super().__init__()
        self.version = version
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width if version == 1 else 2 * width)

    def forward(self, tokens, side):
        grid = tokens.view(len(tokens), side, side, -1)
        parts = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = torch.cat(parts, 3).flatten(1, 2)
        return self.reduction(self.norm(merged)) if self.version == 1 else self.norm(self.reduction(merged))


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class Patches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)


class Head(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.fc = nn.Linear(width, classes)


class Swin(nn.Module):
    """Images (N,3,S,S) -> logits (N,C). `timm`: downsampling before the next stage, and the head's `fc`."""

    def __init__(self, version, *, side=64, window=4, width=16, heads=(2, 4, 8), classes=7, pretrained=(), timm=False):
        super().__init__()
        self.timm = timm
        self.patch_embed = Patches(width)
        stages = []
        for at, count in enumerate(heads):
            wide, cells = width << at, side // 4 >> at
            before = pretrained[at] if pretrained else 0
            blocks = [Block(wide, count, window, cells, before, version, shifted=odd) for odd in (False, True)]
            last = at == len(heads) - 1
            merges = (at > 0, wide // 2) if timm else (not last, wide)
            stages.append(Stage(blocks, Merging(merges[1], version) if merges[0] else None))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(width << len(heads) - 1)
        self.head = (
            Head(self.norm.normalized_shape[0], classes) if timm else nn.Linear(*self.norm.weight.shape, classes)
        )

    def forward(self, images):
        tokens = self.patch_embed.norm(self.patch_embed.proj(images).flatten(2).transpose(1, 2))
        side = images.shape[2] // 4
        for stage in self.layers:
            if self.timm and stage.downsample is not None:
                tokens, side = stage.downsample(tokens, side), side // 2
            for block in stage.blocks:
                tokens = block(tokens)
            if not self.timm and stage.downsample is not None:
                tokens, side = stage.downsample(tokens, side), side // 2
        pooled = self.norm(tokens).mean(1)
        return self.head.fc(pooled) if self.timm else self.head(pooled)


def timm_names(module):
    """The state dict as timm writes it: without buffers."""
    buffers = ("relative_position_index", "relative_coords_table", "attn_mask")
    return {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(buffers)}
