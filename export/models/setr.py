"""SETR: a plain vision transformer, and a convolutional decoder that turns its tokens into class logits.

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", 2021: the
naive decoder, progressive upsampling (PUP) and multi-level feature aggregation (MLA), with the sizes, normalisation
and resizing of MMSegmentation's implementation, whose checkpoints are the published ones.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import nn

Decoder = Literal["naive", "pup", "mla"]


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sliding-window inference: windows of `size` (height, width) px, `stride` (down, right) px apart."""

    size: tuple[int, int]
    stride: tuple[int, int]


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The `config.json` of a SETR checkpoint. The defaults are the published ViT-L/16.

    `image_size` (height, width) is what the position table was trained for; other input sizes interpolate it as
    `position_interpolation` says. `class_token`: whether the class token takes part (MMSegmentation drops it for
    MLA). `out_indices` are the four layers that MLA aggregates, from 0. `decoder_channels` are those of the
    decoder's convolutions (MLA: of the aggregation), `head_channels` those of MLA's branches. `activation` "sigmoid"
    is for one class, whose logit is compared with a threshold. `window` asks for sliding-window inference.
    """

    decoder: Decoder
    image_size: tuple[int, int]
    id2label: dict[str, str]
    patch_size: int = 16
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    layer_norm_eps: float = 1e-6
    class_token: bool = True
    out_indices: tuple[int, int, int, int] = (5, 11, 17, 23)
    decoder_channels: int = 256
    head_channels: int = 128
    position_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    threshold: float = 0.5
    window: Window | None = None


class Layer(nn.Module):
    """A pre-norm transformer layer (N,T,D) -> (N,T,D); Dosovitskiy et al., 2021, eq. 2 and 3."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.heads = settings.num_attention_heads
        self.norm1 = nn.LayerNorm(width, settings.layer_norm_eps)
        # three products and not one: what stands around each is folded into its weights when the graph is lowered
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, settings.layer_norm_eps)
        self.fc1 = nn.Linear(width, settings.intermediate_size)
        self.fc2 = nn.Linear(settings.intermediate_size, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(tokens)
        query, key, value = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        looked = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.o_proj(looked)
        result: torch.Tensor = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return result


class Backbone(nn.Module):
    """Pixels (N,3,H,W) -> the feature map (N,D,h,w) after each of `taken` layers (from 0), without a last norm."""

    def __init__(self, settings: Settings, taken: tuple[int, ...]) -> None:
        super().__init__()
        width, patch = settings.hidden_size, settings.patch_size
        self.taken = taken
        self.class_token = settings.class_token
        self.interpolation = settings.position_interpolation
        self.trained_grid = settings.image_size[0] // patch, settings.image_size[1] // patch
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.trained_grid[0] * self.trained_grid[1], width))
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position table for `grid` (rows, columns) patches: (1, 1 + rows * columns, D), class token first."""
        if grid == self.trained_grid:
            return self.pos_embed
        table = torch.unflatten(self.pos_embed[:, 1:].transpose(1, 2), 2, self.trained_grid)
        table = F.interpolate(table, grid, mode=self.interpolation, align_corners=False)
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)), 1)

    def fold_positions(self, grid: tuple[int, int]) -> None:
        """Replace the position table by the one for `grid`, so that a traced graph holds a constant."""
        self.pos_embed = nn.Parameter(self.positions(grid).detach(), requires_grad=False)
        self.trained_grid = grid

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        patches = self.patch_embed(pixels)
        grid = patches.shape[2], patches.shape[3]
        positions = self.positions(grid)
        tokens = patches.flatten(2).transpose(1, 2) + positions[:, 1:]
        if self.class_token:
            first = (self.cls_token + positions[:, :1]).expand(pixels.shape[0], -1, -1)
            tokens = torch.cat((first, tokens), 1)
        maps = []
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if index in self.taken:
                patches = tokens[:, 1:] if self.class_token else tokens
                maps.append(patches.transpose(1, 2).unflatten(2, grid))
        return maps


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature map (N,D,h,w)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def upsample(features: torch.Tensor, scale: int) -> torch.Tensor:
    """Bilinear, `scale` times as high and wide."""
    size = features.shape[2] * scale, features.shape[3] * scale
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


class UpsamplingDecoder(nn.Module):
    """Naive (one 1x1 convolution, 4 times upsampled) and PUP (four 3x3 ones, each upsampled twice): sec. 3.3.

    `scale` is the last upsampling, which is left to whoever takes the logits: it and the 1x1 classifier are linear
    and change places freely, and there are fewer classes than channels, and fewer pixels before than after.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        count, kernel, self.scale = (1, 1, 4) if settings.decoder == "naive" else (4, 3, 2)
        width = settings.decoder_channels
        self.norm = MapNorm(settings.hidden_size, 1e-6)
        self.stages = nn.ModuleList(
            ConvNorm(width if stage else settings.hidden_size, width, kernel) for stage in range(count)
        )
        self.classifier = nn.Conv2d(width, len(settings.id2label), 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        features = self.norm(maps[-1])
        for index, stage in enumerate(self.stages):
            features = stage(upsample(features, self.scale) if index else features)
        logits: torch.Tensor = self.classifier(features)
        return logits


class AggregatingDecoder(nn.Module):
    """MLA: four layers' maps, summed from the deepest up, each convolved, then concatenated; `scale` as above."""

    scale = 4

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        levels, width, head = len(settings.out_indices), settings.decoder_channels, settings.head_channels
        self.norms = nn.ModuleList(MapNorm(settings.hidden_size, 1e-6) for _ in range(levels))
        self.projections = nn.ModuleList(ConvNorm(settings.hidden_size, width, 1) for _ in range(levels))
        self.outputs = nn.ModuleList(ConvNorm(width, width, 3) for _ in range(levels))
        self.branches = nn.ModuleList(
            nn.Sequential(ConvNorm(width, head, 3), ConvNorm(head, head, 3)) for _ in range(levels)
        )
        self.classifier = nn.Conv2d(levels * head, len(settings.id2label), 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        sums: list[torch.Tensor] = []
        for norm, projection, features in reversed(list(zip(self.norms, self.projections, maps, strict=True))):
            projected = projection(norm(features))
            sums.append(sums[-1] + projected if sums else projected)
        # MMSegmentation gives the first branch the deepest level's sum
        branches = [
            branch(output(level)) for branch, output, level in zip(self.branches, self.outputs, sums, strict=True)
        ]
        logits: torch.Tensor = self.classifier(torch.cat(branches, 1))
        return logits


class Setr(nn.Module):
    """Normalised pixels (N,3,H,W) -> class logits (N,C,h,w) that are to be upsampled `scale` times.

    H and W are multiples of the patch size. The logits' map spans the whole input. MMSegmentation upsamples it
    `scale` times, resizes that to the input's size and that to the frame's, each time bilinearly.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        last = settings.num_hidden_layers - 1
        aggregates = settings.decoder == "mla"
        self.backbone = Backbone(settings, settings.out_indices if aggregates else (last,))
        self.decoder = AggregatingDecoder(settings) if aggregates else UpsamplingDecoder(settings)

    @property
    def scale(self) -> int:
        """How many times the logits are to be upsampled."""
        return self.decoder.scale

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.decoder(self.backbone(pixel_values))
        return logits
