"""RT-DETR (Zhao 2023) and RT-DETRv2 (Lv 2024) with the attribute names of lyuwenyu/RT-DETR."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.export.replicas.detr import Mlp, Stack


class ConvNorm(nn.Module):
    def __init__(self, before, after, size, stride=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)

    def forward(self, maps):
        return self.norm(self.conv(maps))


class Block(nn.Module):
    """A residual block of a ResNet of kind d: a shortcut that must shrink pools, and then convolves."""

    def __init__(self, before, width, *, stride, first, deep):
        super().__init__()
        after = 4 * width if deep else width
        if deep:
            self.branch2a, self.branch2b = ConvNorm(before, width, 1), ConvNorm(width, width, 3, stride)
            self.branch2c = ConvNorm(width, after, 1)
        else:
            self.branch2a, self.branch2b = ConvNorm(before, width, 3, stride), ConvNorm(width, width, 3)
        if first and stride == 2:
            self.short = nn.Sequential()
            self.short.add_module("pool", nn.AvgPool2d(2, 2, 0, ceil_mode=True))
            self.short.add_module("conv", ConvNorm(before, after, 1))
        elif first:
            self.short = ConvNorm(before, after, 1)

    def forward(self, maps):
        found = self.branch2b(self.branch2a(maps).relu())
        if hasattr(self, "branch2c"):
            found = self.branch2c(found.relu())
        return (found + (self.short(maps) if hasattr(self, "short") else maps)).relu()


class Blocks(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class Backbone(nn.Module):
    def __init__(self, widths, depths, stem, *, deep):
        super().__init__()
        self.conv1 = nn.Sequential()
        for at, pair in enumerate([(3, stem // 2, 3, 2), (stem // 2, stem // 2, 3), (stem // 2, stem, 3)], 1):
            self.conv1.add_module(f"conv1_{at}", ConvNorm(*pair))
        stages, before = [], stem
        for at, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if at and not index else 1
                blocks.append(Block(before, width, stride=stride, first=not index, deep=deep))
                before = 4 * width if deep else width
            stages.append(Blocks(blocks))
        self.res_layers = nn.ModuleList(stages)
        self.channels = [4 * width if deep else width for width in widths]

    def forward(self, images):
        for step in self.conv1:
            images = step(images).relu()
        maps, found = F.max_pool2d(images, 3, 2, 1), []
        for stage in self.res_layers:
            for block in stage.blocks:
                maps = block(maps)
            found.append(maps)
        return found[1:]


class Rep(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(width, width, 3), ConvNorm(width, width, 1)

    def forward(self, maps):
        return F.silu(self.conv1(maps) + self.conv2(maps))


class Fusion(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(2 * width, inner, 1), ConvNorm(2 * width, inner, 1)
        self.bottlenecks = nn.Sequential(Rep(inner), Rep(inner), Rep(inner))
        self.conv3 = ConvNorm(inner, width, 1) if inner != width else nn.Identity()

    def forward(self, maps):
        fused = self.bottlenecks(F.silu(self.conv1(maps))) + F.silu(self.conv2(maps))
        return fused if isinstance(self.conv3, nn.Identity) else F.silu(self.conv3(fused))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens, places):
        there = tokens + places
        tokens = self.norm1(tokens + self.self_attn(there, there, tokens, need_weights=False)[0])
        return self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))


def sine(side, width):
    """The position embedding of a square map (1,S²,D): sine and cosine along one axis, then along the other."""
    omega = 10000 ** -(torch.arange(width // 4) / (width // 4))
    first, second = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (first, second)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)[None]


class Encoder(nn.Module):
    def __init__(self, channels, width, heads, *, expansion, named):
        super().__init__()
        self.width = width
        projections = []
        for before in channels:
            parts = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
            projection = nn.Sequential()
            for name, part in zip(("conv", "norm") if named else ("0", "1"), parts, strict=True):
                projection.add_module(name, part)
            projections.append(projection)
        self.input_proj = nn.ModuleList(projections)
        self.encoder = nn.ModuleList([Stack([EncoderLayer(width, heads, 40)])])
        inner, steps = int(width * expansion), range(len(channels) - 1)
        self.lateral_convs = nn.ModuleList([ConvNorm(width, width, 1) for _ in steps])
        self.fpn_blocks = nn.ModuleList([Fusion(width, inner) for _ in steps])
        self.downsample_convs = nn.ModuleList([ConvNorm(width, width, 3, 2) for _ in steps])
        self.pan_blocks = nn.ModuleList([Fusion(width, inner) for _ in steps])

    def forward(self, maps):
        maps = [project(level) for project, level in zip(self.input_proj, maps, strict=True)]
        last = maps[-1]
        tokens = last.flatten(2).transpose(1, 2)
        tokens = self.encoder[0].layers[0](tokens, sine(last.shape[2], self.width))
        down = [tokens.transpose(1, 2).view(last.shape)]
        for at, finer in enumerate(reversed(maps[:-1])):
            down[-1] = F.silu(self.lateral_convs[at](down[-1]))
            down.append(self.fpn_blocks[at](torch.cat([F.interpolate(down[-1], scale_factor=2.0), finer], 1)))
        up = [down.pop()]
        for at, coarser in enumerate(reversed(down)):
            up.append(self.pan_blocks[at](torch.cat([F.silu(self.downsample_convs[at](up[-1])), coarser], 1)))
        return up


class Deformable(nn.Module):
    def __init__(self, width, heads, levels, points, version):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)
        if version == 2:
            self.register_buffer("num_points_scale", torch.full((levels * points,), 1 / points))

    def forward(self, queries, boxes, memory, shapes):
        count, length, width = queries.shape
        value = self.value_proj(memory).view(count, -1, self.heads, width // self.heads)
        grid = count, length, self.heads, self.levels, self.points
        weights = self.attention_weights(queries).view(count, length, self.heads, -1).softmax(3).view(grid)
        offsets = self.sampling_offsets(queries).view(*grid, 2) / self.points / 2
        boxes = boxes[:, :, None, None, None]
        places = (boxes[..., :2] + offsets * boxes[..., 2:]) * 2 - 1
        total, start = 0, 0
        for level, (height, wide) in enumerate(shapes):
            part = (
                value[:, start : start + height * wide]
                .permute(0, 2, 3, 1)
                .reshape(-1, width // self.heads, height, wide)
            )
            start += height * wide
            where = places[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled = F.grid_sample(part, where, align_corners=False).view(count, self.heads, -1, length, self.points)
            total = total + torch.einsum("nhdqp,nqhp->nqhd", sampled, weights[:, :, :, level])
        return self.output_proj(total.flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, width, heads, points, version):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn = Deformable(width, heads, 3, points, version)
        self.linear1, self.linear2 = nn.Linear(width, 48), nn.Linear(48, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, tokens, places, boxes, memory, shapes):
        there = tokens + places
        tokens = self.norm1(tokens + self.self_attn(there, there, tokens, need_weights=False)[0])
        tokens = self.norm2(tokens + self.cross_attn(tokens + places, boxes, memory, shapes))
        return self.norm3(tokens + self.linear2(self.linear1(tokens).relu()))


class Projection(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, maps):
        return self.norm(self.conv(maps))


class Decoder(nn.Module):
    def __init__(self, width, heads, points, layers, classes, queries, version, used):
        super().__init__()
        self.queries, self.used = queries, used
        self.input_proj = nn.ModuleList([Projection(width) for _ in range(3)])
        self.decoder = Stack([DecoderLayer(width, heads, points, version) for _ in range(layers)])
        self.denoising_class_embed = nn.Embedding(classes + 1, width)
        self.query_pos_head = Mlp(4, 2 * width, width)
        self.enc_output = nn.Sequential()
        parts = nn.Linear(width, width), nn.LayerNorm(width)
        for name, part in zip(("0", "1") if version == 1 else ("proj", "norm"), parts, strict=True):
            self.enc_output.add_module(name, part)
        self.enc_score_head, self.enc_bbox_head = nn.Linear(width, classes), Mlp(width, width, width, 4)
        self.dec_score_head = nn.ModuleList([nn.Linear(width, classes) for _ in range(layers)])
        self.dec_bbox_head = nn.ModuleList([Mlp(width, width, width, 4) for _ in range(layers)])
        if version == 2:  # made for one input size
            self.register_buffer("anchors", torch.zeros(1, 7, 4))
            self.register_buffer("valid_mask", torch.ones(1, 7, 1, dtype=torch.bool))

    def forward(self, maps):
        maps = [project(level) for project, level in zip(self.input_proj, maps, strict=True)]
        shapes = [tuple(level.shape[2:]) for level in maps]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        anchors = torch.cat([self.grid(*shape, level) for level, shape in enumerate(shapes)], 1)
        inside = ((anchors > 0.01) & (anchors < 0.99)).all(2, keepdim=True)
        anchors = torch.where(inside, torch.logit(anchors), math.inf)
        proposals = self.enc_output(inside * memory)
        best = self.enc_score_head(proposals).amax(2).topk(self.queries, 1).indices[..., None]
        chosen = proposals.gather(1, best.expand(-1, -1, proposals.shape[2]))
        start = anchors.expand(len(memory), -1, -1).gather(1, best.expand(-1, -1, 4))
        tokens, boxes = chosen, (self.enc_bbox_head(chosen) + start).sigmoid()
        for at in range(self.used):
            tokens = self.decoder.layers[at](tokens, self.query_pos_head(boxes), boxes, memory, shapes)
            unsquashed = torch.log(boxes.clamp(min=1e-5) / (1 - boxes).clamp(min=1e-5))
            boxes = (self.dec_bbox_head[at](tokens) + unsquashed).sigmoid()
        return self.dec_score_head[self.used - 1](tokens), boxes

    @staticmethod
    def grid(height, width, level):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        size = torch.full((height * width,), 0.05 * 2**level)
        return torch.stack([(columns.flatten() + 0.5) / width, (rows.flatten() + 0.5) / height, size, size], 1)[None]


class RTDetr(nn.Module):
    """Images (N,3,S,S) -> logits (N,Q,C), boxes (N,Q,4) cxcywh in 0..1, of decoder layer `used`."""

    def __init__(
        self,
        version,
        *,
        deep=False,
        widths=(16, 24, 32, 40),
        depths=(1, 2, 1, 1),
        expansion=1.0,
        points=4,
        layers=2,
        used=None,
        classes=80,
        queries=20,
    ):
        super().__init__()
        self.backbone = Backbone(widths, depths, widths[0], deep=deep)
        self.encoder = Encoder(self.backbone.channels[1:], 32, 8, expansion=expansion, named=version == 2)
        self.decoder = Decoder(32, 8, points, layers, classes, queries, version, used or layers)

    def forward(self, images):
        return self.decoder(self.encoder(self.backbone(images)))
