"""DETR (Carion 2020) with the attribute names of facebookresearch/detr, over torchvision's names of a ResNet."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn


class FrozenNorm(nn.Module):
    """Batch norm in eval mode; it has no counter of batches."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, maps):
        return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck of 1x1, 3x3 and 1x1."""

    def __init__(self, before, width, *, stride, dilation, deep):
        super().__init__()
        after = 4 * width if deep else width
        middle = {"kernel_size": 3, "stride": stride, "padding": dilation, "dilation": dilation, "bias": False}
        if deep:
            self.conv1, self.conv2 = nn.Conv2d(before, width, 1, bias=False), nn.Conv2d(width, width, **middle)
            self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), FrozenNorm(after)
        else:
            self.conv1, self.conv2 = nn.Conv2d(before, width, **middle), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = FrozenNorm(width), FrozenNorm(width)
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), FrozenNorm(after))

    def forward(self, maps):
        found = self.bn2(self.conv2(self.bn1(self.conv1(maps)).relu()))
        if hasattr(self, "conv3"):
            found = self.bn3(self.conv3(found.relu()))
        return (found + (self.downsample(maps) if hasattr(self, "downsample") else maps)).relu()


class Body(nn.Module):
    """A ResNet's four maps; `dilated` replaces the last stride, and its first block keeps dilation 1."""

    def __init__(self, depths, *, deep, dilated):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), FrozenNorm(64)
        before = 64
        for at, depth in enumerate(depths):
            width, holes = 64 << at, dilated and at == 3
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and at > 0 and not holes else 1
                blocks.append(Block(before, width, stride=stride, dilation=2 if holes and index else 1, deep=deep))
                before = 4 * width if deep else width
            setattr(self, f"layer{at + 1}", nn.Sequential(*blocks))
        self.channels = before

    def forward(self, images):
        maps = F.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        found = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
            found.append(maps)
        return found


class Backbone(nn.Module):
    def __init__(self, *arguments, **options):
        super().__init__()
        self.body = Body(*arguments, **options)


class Learned(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.row_embed, self.col_embed = nn.Embedding(50, channels), nn.Embedding(50, channels)

    def forward(self, height, width):
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        columns = self.col_embed.weight[None, :width].expand(height, -1, -1)
        return torch.cat([columns, rows], 2).flatten(0, 1)[None]


class Sine(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, height, width):
        period = 10000 ** (2 * (torch.arange(self.channels) // 2) / self.channels)
        halves = []
        for cells in (height, width):
            angle = torch.arange(1, cells + 1)[:, None] / (cells + 1e-6) * 2 * math.pi / period
            halves.append(torch.stack([angle[:, ::2].sin(), angle[:, 1::2].cos()], 2).flatten(1))
        rows, columns = halves[0][:, None].expand(-1, width, -1), halves[1][None].expand(height, -1, -1)
        return torch.cat([rows, columns], 2).flatten(0, 1)[None]


class Layer(nn.Module):
    """A layer of the encoder, or with `cross` of the decoder."""

    def __init__(self, width, heads, inner, *, cross):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
            self.norm3 = nn.LayerNorm(width)

    def forward(self, tokens, places, memory=None, memory_places=None):
        there = tokens + places
        tokens = self.norm1(tokens + self.self_attn(there, there, tokens, need_weights=False)[0])
        if memory is None:
            return self.norm2(tokens + self.linear2(self.linear1(tokens).relu()))
        looked = self.multihead_attn(tokens + places, memory + memory_places, memory, need_weights=False)[0]
        tokens = self.norm2(tokens + looked)
        return self.norm3(tokens + self.linear2(self.linear1(tokens).relu()))


class Stack(nn.Module):
    def __init__(self, layers, norm=None):
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm


class Transformer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.encoder = Stack([Layer(width, heads, inner, cross=False) for _ in range(2)])
        self.decoder = Stack([Layer(width, heads, inner, cross=True) for _ in range(2)], nn.LayerNorm(width))

    def forward(self, tokens, places, queries):
        for layer in self.encoder.layers:
            tokens = layer(tokens, places)
        answers = torch.zeros_like(queries)
        for layer in self.decoder.layers:
            answers = layer(answers, queries, tokens, places)
        return self.decoder.norm(answers), tokens


class Mlp(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in itertools.pairwise(widths)])

    def forward(self, tokens):
        for layer in self.layers[:-1]:
            tokens = layer(tokens).relu()
        return self.layers[-1](tokens)


class Detr(nn.Module):
    """Images (N,3,H,W) without padding -> logits (N,Q,C+1), boxes (N,Q,4) cxcywh in 0..1."""

    def __init__(self, *, depths=(2, 2, 2, 2), deep=False, dilated=False, learned=False, width=32, heads=2, classes=12):
        super().__init__()
        self.backbone = nn.Sequential(
            Backbone(depths, deep=deep, dilated=dilated), (Learned if learned else Sine)(width // 2)
        )
        self.transformer = Transformer(width, heads, 48)
        self.input_proj = nn.Conv2d(self.backbone[0].body.channels, width, 1)
        self.query_embed = nn.Embedding(10, width)
        self.class_embed, self.bbox_embed = nn.Linear(width, classes + 1), Mlp(width, width, width, 4)

    def answers(self, images):
        maps = self.backbone[0].body(images)
        projected = self.input_proj(maps[-1])
        places = self.backbone[1](*projected.shape[2:])
        queries = self.query_embed.weight.expand(len(images), -1, -1)
        answers, memory = self.transformer(projected.flatten(2).transpose(1, 2), places, queries)
        return answers, memory.transpose(1, 2).view(projected.shape), projected, maps

    def forward(self, images):
        answers = self.answers(images)[0]
        return self.class_embed(answers), self.bbox_embed(answers).sigmoid()


class MaskHead(nn.Module):
    def __init__(self, width, heads, channels):
        super().__init__()
        wide = [width + heads, width // 2, width // 4, width // 8, width // 16]
        for at, (before, after) in enumerate(zip([wide[0], *wide], wide, strict=False), 1):
            setattr(self, f"lay{at}", nn.Conv2d(before, after, 3, 1, 1))
            setattr(self, f"gn{at}", nn.GroupNorm(8, after))
        for at, before in enumerate(channels, 1):
            setattr(self, f"adapter{at}", nn.Conv2d(before, wide[at], 1))
        self.out_lay = nn.Conv2d(wide[4], 1, 3, 1, 1)

    def forward(self, maps, finer):
        """maps (Q,D+heads,h,w), finer maps (1,C,H,W) from coarse to fine -> (Q,1,H,W)."""
        for at in range(1, 6):
            if at > 2:
                more = getattr(self, f"adapter{at - 2}")(finer[at - 3])
                maps = more + F.interpolate(maps, more.shape[2:])
            maps = getattr(self, f"gn{at}")(getattr(self, f"lay{at}")(maps)).relu()
        return self.out_lay(maps)


class Looks(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear, self.k_linear = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, answers, memory):
        """answers (1,Q,D), memory (1,D,h,w) -> (Q,heads,h,w), summing to 1 for each query."""
        keys = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(2, (self.heads, -1))
        queries = self.q_linear(answers).unflatten(2, (self.heads, -1)) / (keys.shape[3] ** 0.5)
        looks = torch.einsum("nqhd,nkhd->nqhk", queries, keys)
        return looks.flatten(2).softmax(2).view(-1, self.heads, *memory.shape[2:])


class Panoptic(nn.Module):
    """One image -> logits, boxes, and mask logits (1,Q,H/4,W/4)."""

    def __init__(self, **options):
        super().__init__()
        self.detr = Detr(**options)
        width, heads, last = options["width"], options["heads"], self.detr.backbone[0].body.channels
        self.bbox_attention = Looks(width, heads)
        self.mask_head = MaskHead(width, heads, [last // 2, last // 4, last // 8])

    def forward(self, images):
        answers, memory, projected, maps = self.detr.answers(images)
        looks = self.bbox_attention(answers, memory)
        masks = self.mask_head(torch.cat([projected.expand(len(looks), -1, -1, -1), looks], 1), maps[2::-1])
        return self.detr.class_embed(answers), self.detr.bbox_embed(answers).sigmoid(), masks.transpose(0, 1)
