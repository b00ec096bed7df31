"""ViViT's factorised models: attention over space and over time, apart from each other.

Arnab et al., "ViViT: A Video Vision Transformer", 2021, sections 3.2 and 3.3: models 2, 3 and 4. Model 1, attention
over all tokens of space and time, is transformers' `VivitForVideoClassification`; names of tensors follow it.

The axis of tokens (N,T,S,D), T times and S places, that a layer does not attend over is folded into the batch
axis, so that every attention is a plain one over (batch, tokens, channels), which compilers run fused.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import nn

Attention = Literal["spatio_temporal", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"]
Pooling = Literal["cls", "mean"]
GELUS = {"gelu": "none", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""torch's name of the approximation, by transformers' name of the function."""


class Settings(msgspec.Struct, kw_only=True):
    """The fields of a ViViT `config.json`, transformers' own and ours.

    `attention`: model 1 to 4 in the paper's order; a config without it is transformers' and model 1. `tubelet_size`
    (frames, height, width): tubelet embedding; with one frame it is the embedding of uniform frame sampling.
    `num_frames` (T frames) at `frame_rate` frames a second is the clip that the model takes; None where the config does
    not say. Of the factorised encoder: `num_temporal_layers` layers over time follow the `num_hidden_layers` over
    space, and both summarise their tokens by `pooling`, a class token or the mean. Models 3 and 4 have no class token,
    which would belong to no place and no time (section 3.3), and classify the mean of their tokens.
    """

    attention: Attention = "spatio_temporal"
    image_size: int | tuple[int, int] = 224
    num_frames: int = 32
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    num_channels: Literal[3] = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_fast"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    num_temporal_layers: int = 4
    pooling: Pooling = "cls"
    id2label: dict[str, str] = {}
    problem_type: str | None = None
    frame_rate: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(times, rows, columns) of the tokens."""
        frames, rows, columns = self.tubelet_size
        return self.num_frames // frames, self.size[0] // rows, self.size[1] // columns

    def check(self) -> None:
        """Raise `ValueError` where the numbers do not fit each other."""
        wholes = zip((self.num_frames, *self.size), self.tubelet_size, strict=True)
        if any(part < 1 or whole < 1 or whole % part for whole, part in wholes):
            raise ValueError(
                f"{self.num_frames} frames of {self.size[0]}x{self.size[1]} px are no multiple of tubelet_size "
                f"{list(self.tubelet_size)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.attention != "spatio_temporal" and self.hidden_act not in GELUS:
            raise ValueError(f"hidden_act {self.hidden_act} is none of {', '.join(GELUS)}")
        if self.attention == "factorised_dot_product" and self.num_attention_heads % 2:
            raise ValueError(f"half of the heads look along time, but {self.num_attention_heads} heads are odd")


def make(settings: Settings) -> FactorisedEncoder | FactorisedAttention:
    """The module of a config that names model 2, 3 or 4."""
    settings.check()
    if settings.attention == "factorised_encoder":
        return FactorisedEncoder(settings)
    return FactorisedAttention(settings)


class TubeletEmbedding(nn.Module):
    """frames (N,T,3,H,W) -> tokens (N,times,rows*columns,D): one product for each tubelet (eq. 1, section 3.2)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        size = settings.tubelet_size
        self.projection = nn.Conv3d(settings.num_channels, settings.hidden_size, kernel_size=size, stride=size)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.projection(frames.transpose(1, 2))  # (N,D,times,rows,columns)
        return tokens.flatten(3).permute(0, 2, 3, 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B,tokens,D)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.head_width = width // settings.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=settings.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=settings.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=settings.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.o_proj(self.attend(tokens, slice(None)))
        return mixed

    def attend(self, tokens: torch.Tensor, part: slice) -> torch.Tensor:
        """(B,tokens,D) -> what the heads of this `part` of the channels find, before the output projection."""
        query, key, value = (
            torch.unflatten(
                F.linear(tokens, layer.weight[part], None if layer.bias is None else layer.bias[part]),
                -1,
                (-1, self.head_width),
            ).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.approximate = GELUS[settings.hidden_act]
        self.fc1 = nn.Linear(settings.hidden_size, settings.intermediate_size)
        self.fc2 = nn.Linear(settings.intermediate_size, settings.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate=self.approximate))
        return mixed


def _norm(settings: Settings) -> nn.LayerNorm:
    return nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)


class Layer(nn.Module):
    """A layer of ViT, over (B,tokens,D): pre-norm attention, then pre-norm MLP."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.layernorm_before, self.layernorm_after = _norm(settings), _norm(settings)
        self.attention, self.mlp = SelfAttention(settings), Mlp(settings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.layernorm_before(tokens))
        mixed: torch.Tensor = tokens + self.mlp(self.layernorm_after(tokens))
        return mixed


class FactorisedLayer(Layer):
    """A layer of model 3 or 4 over (N,T*S,D), all places of the first time first.

    Between the two kinds of attention the tensor has three axes too: compilers know a layer norm over three.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.times = settings.grid[0]

    def by_time(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N,T*S,D) -> (N*T,S,D), the places of every time."""
        return torch.unflatten(tokens, 1, (self.times, -1)).flatten(0, 1)

    def by_place(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N,T*S,D) -> (N*S,T,D), the times of every place."""
        return torch.unflatten(tokens, 1, (self.times, -1)).transpose(1, 2).flatten(0, 1)

    def from_time(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N*T,S,D) -> (N,T*S,D)"""
        return torch.unflatten(tokens, 0, (-1, self.times)).flatten(1, 2)

    def from_place(self, tokens: torch.Tensor, places: int) -> torch.Tensor:
        """(N*S,T,D) -> (N,T*S,D)"""
        return torch.unflatten(tokens, 0, (-1, places)).transpose(1, 2).flatten(1, 2)


class FactorisedSelfAttentionLayer(FactorisedLayer):
    """Model 3: attention along space, then along time, then the MLP (eq. 4 to 6)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.layernorm_temporal, self.temporal_attention = _norm(settings), SelfAttention(settings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        spatial = self.by_time(tokens)
        spatial = spatial + self.attention(self.layernorm_before(spatial))
        temporal = self.by_place(self.from_time(spatial))
        temporal = temporal + self.temporal_attention(self.layernorm_temporal(temporal))
        temporal = temporal + self.mlp(self.layernorm_after(temporal))
        return self.from_place(temporal, spatial.shape[1])


class FactorisedDotProductLayer(FactorisedLayer):
    """Model 4: the first half of the heads looks along space, the second along time (section 3.3)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        width = tokens.shape[2]
        normal = self.layernorm_before(tokens)
        spatial = self.attention.attend(self.by_time(normal), slice(width // 2))
        temporal = self.attention.attend(self.by_place(normal), slice(width // 2, width))
        heads = torch.cat([self.from_time(spatial), self.from_place(temporal, spatial.shape[1])], dim=-1)
        tokens = tokens + self.attention.o_proj(heads)
        mixed: torch.Tensor = tokens + self.mlp(self.layernorm_after(tokens))
        return mixed


LAYERS: dict[str, type[FactorisedLayer]] = {
    "factorised_self_attention": FactorisedSelfAttentionLayer,
    "factorised_dot_product": FactorisedDotProductLayer,
}


class Encoder(nn.Module):
    """(B,tokens,D) -> (B,D): positions, with pooling "cls" a class token ahead, layers, a norm, and the summary."""

    def __init__(self, settings: Settings, tokens: int, layers: int) -> None:
        super().__init__()
        first = int(settings.pooling == "cls")
        if first:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens + first, settings.hidden_size))
        self.pooling = settings.pooling
        self.layers = nn.ModuleList([Layer(settings) for _ in range(layers)])
        self.layernorm = _norm(settings)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self.position_embeddings
        for layer in self.layers:
            tokens = layer(tokens)
        normal: torch.Tensor = self.layernorm(tokens)
        return normal[:, 0] if self.pooling == "cls" else normal.mean(1)


class FactorisedEncoder(nn.Module):
    """Model 2: pixel_values (N,T,3,H,W) -> logits (N,classes); an encoder for each time, then one over all times."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        times, rows, columns = settings.grid
        self.patch_embeddings = TubeletEmbedding(settings)
        self.spatial = Encoder(settings, rows * columns, settings.num_hidden_layers)
        self.temporal = Encoder(settings, times, settings.num_temporal_layers)
        self.classifier = nn.Linear(settings.hidden_size, len(settings.id2label))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embeddings(pixel_values)
        frames = self.spatial(tokens.flatten(0, 1))
        logits: torch.Tensor = self.classifier(self.temporal(torch.unflatten(frames, 0, (-1, tokens.shape[1]))))
        return logits


class FactorisedAttention(nn.Module):
    """Models 3 and 4: pixel_values (N,T,3,H,W) -> logits (N,classes), from the mean of the tokens."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        times, rows, columns = settings.grid
        layer = LAYERS[settings.attention]
        self.patch_embeddings = TubeletEmbedding(settings)
        self.position_embeddings = nn.Parameter(torch.zeros(1, times * rows * columns, settings.hidden_size))
        self.layers = nn.ModuleList([layer(settings) for _ in range(settings.num_hidden_layers)])
        self.layernorm = _norm(settings)
        self.classifier = nn.Linear(settings.hidden_size, len(settings.id2label))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embeddings(pixel_values).flatten(1, 2) + self.position_embeddings
        for layer in self.layers:
            tokens = layer(tokens)
        logits: torch.Tensor = self.classifier(self.layernorm(tokens).mean(1))
        return logits
