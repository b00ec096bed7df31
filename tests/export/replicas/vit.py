"""A plain ViT with the attribute names of timm, DINO and DINOv2, written from the papers' equations.

Options follow what their authors vary: a distillation token (DeiT), layer scales, registers, a gated MLP (DINOv2),
whether the class token has a position, and layers put into chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens):
        count, length, width = tokens.shape
        query, key, value = self.qkv(tokens).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        looks = (query @ key.transpose(2, 3) / (width // self.heads) ** 0.5).softmax(3)
        return self.proj((looks @ value).transpose(1, 2).reshape(count, length, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens):
        return self.fc2(F.gelu(self.fc1(tokens)))


class Gated(nn.Module):
    """SwiGLU; facebookresearch calls its layers w12 and w3, timm fc1 and fc2."""

    def __init__(self, width, names):
        super().__init__()
        inner = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.names = names
        setattr(self, names[0], nn.Linear(width, 2 * inner))
        setattr(self, names[1], nn.Linear(inner, width))

    def forward(self, tokens):
        gate, up = getattr(self, self.names[0])(tokens).chunk(2, -1)
        return getattr(self, self.names[1])(F.silu(gate) * up)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens):
        return tokens * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, *, scaled, gated):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = Attention(width, heads)
        self.mlp = Gated(width, gated) if gated else Mlp(width)
        self.ls1, self.ls2 = (Scale(width), Scale(width)) if scaled else (nn.Identity(), nn.Identity())

    def forward(self, tokens):
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Patches(nn.Module):
    def __init__(self, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Images (N,3,S,S) -> logits (N,C) where there are classes, else the normalised tokens (N,T,D)."""

    def __init__(
        self,
        *,
        width=32,
        heads=2,
        depth=2,
        patch=8,
        side=48,
        classes=0,
        distilled=False,
        scaled=False,
        gated=(),
        registers=(),
        placed=True,
        mask=False,
        chunks=0,
    ):
        super().__init__()
        places = (side // patch) ** 2 + placed + distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.patch_embed = Patches(patch, width)
        self.registers, self.placed = registers[0] if registers else "", placed
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            setattr(self, registers[0], nn.Parameter(torch.zeros(1, registers[1], width)))
        if mask:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        layers = [Block(width, heads, scaled=scaled, gated=gated) for _ in range(depth)]
        if chunks:  # every chunk keeps its layers' own numbers, with nothing before them
            parts = [layers[start : start + chunks] for start in range(0, depth, chunks)]
            layers = [nn.ModuleList([nn.Identity()] * (at * chunks) + part) for at, part in enumerate(parts)]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width, 1e-6)
        if classes:
            self.head = nn.Linear(width, classes)
        if distilled:
            self.head_dist = nn.Linear(width, classes)

    def forward(self, images):
        tokens = self.patch_embed(images)
        special = [self.cls_token, *([self.dist_token] if hasattr(self, "dist_token") else [])]
        special = [token.expand(len(images), -1, -1) for token in special]
        if self.placed:
            tokens = torch.cat([*special, tokens], 1) + self.pos_embed
        else:
            tokens = torch.cat([*special, tokens + self.pos_embed], 1)
        if self.registers:
            registers = getattr(self, self.registers).expand(len(images), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        for block in self.blocks:
            for layer in block if isinstance(block, nn.ModuleList) else [block]:
                tokens = layer(tokens)
        tokens = self.norm(tokens)
        if hasattr(self, "head_dist"):
            return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        return self.head(tokens[:, 0]) if hasattr(self, "head") else tokens
