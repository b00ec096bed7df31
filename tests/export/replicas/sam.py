"""Segment Anything (Kirillov 2023) with the attribute names of facebookresearch/segment-anything."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn


class Norm2d(nn.Module):
    """LayerNorm over the channels of (N,C,H,W)."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, maps):
        normed = F.layer_norm(maps.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention over a grid (N,S,S,C) with decomposed relative positions (paper, appendix A; Li 2022)."""

    def __init__(self, width, heads, side):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, grid):
        count, side, _, width = grid.shape
        parts = self.qkv(grid).view(count, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        looks = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        steps = torch.arange(side)[:, None] - torch.arange(side)[None] + side - 1
        cells = query.view(count, self.heads, side, side, -1)
        down = torch.einsum("nhrcd,rkd->nhrck", cells, self.rel_pos_h[steps])
        right = torch.einsum("nhrcd,ckd->nhrck", cells, self.rel_pos_w[steps])
        terms = down[..., :, None] + right[..., None, :]
        looks = (looks + terms.flatten(4).flatten(2, 3)).softmax(3)
        return self.proj((looks @ value).transpose(1, 2).reshape(count, side, side, width))


class Lin(nn.Module):
    """An MLP whose layers are lin1 and lin2."""

    def __init__(self, width, inner, activation):
        super().__init__()
        self.lin1, self.lin2, self.activation = nn.Linear(width, inner), nn.Linear(inner, width), activation

    def forward(self, tokens):
        return self.lin2(self.activation(self.lin1(tokens)))


class Block(nn.Module):
    def __init__(self, width, heads, side, window):
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = WindowAttention(width, heads, window or side)
        self.mlp = Lin(width, 4 * width, F.gelu)

    def attend(self, grid):
        if not self.window:
            return self.attn(grid)
        count, side, _, width = grid.shape
        size = self.window
        rows = -(-side // size)
        padded = F.pad(grid, (0, 0, 0, rows * size - side, 0, rows * size - side))
        windows = padded.view(count, rows, size, rows, size, width).permute(0, 1, 3, 2, 4, 5).flatten(0, 2)
        looked = self.attn(windows).view(count, rows, rows, size, size, width).permute(0, 1, 3, 2, 4, 5)
        return looked.reshape(count, rows * size, rows * size, width)[:, :side, :side]

    def forward(self, grid):
        grid = grid + self.attend(self.norm1(grid))
        return grid + self.mlp(self.norm2(grid))


class Projection(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, 16)


class Encoder(nn.Module):
    """Images (N,3,S,S) -> (N,D,S/16,S/16)."""

    def __init__(self, side, width, heads, windows, channels):
        super().__init__()
        self.patch_embed = Projection(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))
        self.blocks = nn.ModuleList([Block(width, heads, side, window) for window in windows])
        convolutions = nn.Conv2d(width, channels, 1, bias=False), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.neck = nn.Sequential(convolutions[0], Norm2d(channels), convolutions[1], Norm2d(channels))

    def forward(self, images):
        grid = self.patch_embed.proj(images).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            grid = block(grid)
        return self.neck(grid.permute(0, 3, 1, 2))


class RandomPositions(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, channels // 2))

    def forward(self, places):
        """Places (...,2) as x, y in 0..1 -> (...,D)."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], -1)


class Prompts(nn.Module):
    """Points (N,P,2) px, labels (N,P), boxes (N,4) px, masks (N,1,4S,4S) -> sparse and dense embeddings."""

    def __init__(self, side, channels):
        super().__init__()
        self.side, self.channels = side, channels
        self.pe_layer = RandomPositions(channels)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, channels) for _ in range(4)])
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, channels), nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2),
            Norm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, 2),
            Norm2d(16),
            nn.GELU(),
            nn.Conv2d(16, channels, 1),
        )

    def place(self, points):
        return self.pe_layer((points + 0.5) / (self.side * 16))

    def forward(self, points, labels, boxes=None, masks=None):
        embedded = (
            self.place(points)
            + torch.stack([self.point_embeddings[0].weight[0], self.point_embeddings[1].weight[0]])[labels]
        )
        if boxes is None:  # one more point that is none
            extra = self.not_a_point_embed.weight[None].expand(len(points), -1, -1)
        else:
            corners = torch.cat([self.point_embeddings[2].weight, self.point_embeddings[3].weight])
            extra = self.place(boxes.view(-1, 2, 2)) + corners
        sparse = torch.cat([embedded, extra], 1)
        if masks is not None:
            return sparse, self.mask_downscaling(masks)
        return sparse, self.no_mask_embed.weight.view(1, -1, 1, 1).expand(len(points), -1, self.side, self.side)

    def everywhere(self):
        """The position of every cell: (1,D,S,S)."""
        steps = (torch.arange(self.side) + 0.5) / self.side
        places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), 2)
        return self.pe_layer(places).permute(2, 0, 1)[None]


class Attention(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query, key, value):
        parts = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        return self.out_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class TwoWay(nn.Module):
    def __init__(self, width, heads, inner, *, first):
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads, width)
        self.cross_attn_token_to_image = Attention(width, heads, width // 2)
        self.cross_attn_image_to_token = Attention(width, heads, width // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.mlp = Lin(width, inner, F.relu)

    def forward(self, tokens, image, token_places, image_places):
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_places
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        there = image + image_places
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_places, there, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(there, tokens + token_places, tokens))
        return tokens, image


class Transformer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.layers = nn.ModuleList([TwoWay(width, heads, inner, first=at == 0) for at in range(2)])
        self.final_attn_token_to_image = Attention(width, heads, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image, image_places, prompts):
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, image_places)
        last = self.final_attn_token_to_image(tokens + prompts, image + image_places, image)
        return self.norm_final_attn(tokens + last), image


class Mlp(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in itertools.pairwise(widths)])

    def forward(self, tokens):
        for layer in self.layers[:-1]:
            tokens = layer(tokens).relu()
        return self.layers[-1](tokens)


class Decoder(nn.Module):
    """-> three mask logits (N,3,4S,4S) and their predicted IoU (N,3)."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.transformer = Transformer(width, heads, inner)
        self.iou_token, self.mask_tokens = nn.Embedding(1, width), nn.Embedding(4, width)
        up = nn.ConvTranspose2d(width, width // 4, 2, 2), nn.ConvTranspose2d(width // 4, width // 8, 2, 2)
        self.output_upscaling = nn.Sequential(up[0], Norm2d(width // 4), nn.GELU(), up[1], nn.GELU())
        self.output_hypernetworks_mlps = nn.ModuleList([Mlp(width, width, width, width // 8) for _ in range(4)])
        self.iou_prediction_head = Mlp(width, width, width, 4)

    def forward(self, image, places, sparse, dense):
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        prompts = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
        tokens, cells = self.transformer(
            (image + dense).flatten(2).transpose(1, 2), places.flatten(2).transpose(1, 2), prompts
        )
        maps = self.output_upscaling(cells.transpose(1, 2).view(image.shape))
        weights = torch.stack([mlp(tokens[:, 1 + at]) for at, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        masks = torch.einsum("nmd,ndhw->nmhw", weights, maps)
        return masks[:, 1:], self.iou_prediction_head(tokens[:, 0])[:, 1:]


class Sam(nn.Module):
    def __init__(self, *, side=8, width=32, heads=2, windows=(3, 0, 3), channels=32, decoder_heads=8):
        super().__init__()
        self.image_encoder = Encoder(side, width, heads, windows, channels)
        self.prompt_encoder = Prompts(side, channels)
        self.mask_decoder = Decoder(channels, decoder_heads, 64)

    def forward(self, images, points, labels, boxes=None, masks=None):
        sparse, dense = self.prompt_encoder(points, labels, boxes, masks)
        return self.mask_decoder(self.image_encoder(images), self.prompt_encoder.everywhere(), sparse, dense)
