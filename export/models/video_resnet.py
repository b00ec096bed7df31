"""A ResNet classifier of clips with non-local blocks in space-time inside.

The C2D network of Wang et al., "Non-local Neural Networks", 2018 (section 4 and table 1): a 2D ResNet looks at each
frame by itself, here with the frames of a clip side by side on the batch axis, and apart from the non-local blocks only
the strides and poolings of table 1 concern time. The authors' code pools two frames where the table says three; this
is the table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from edgevtx.export.models.attention_resnet import AttentionResNet, AttentionResNetSettings


class VideoResNet(AttentionResNet):
    """pixel_values (N,T,3,H,W) float32 -> an object with `logits` (N,classes).

    Of T frames conv1 sees every second one, pool1 and pool2 (behind the first stage) halve the rest: 32, 16, 8, 4. An
    odd number is rounded up. Tensor names are those of `AttentionResNet`. Raises `ValueError` for sizes that do not fit
    together.
    """

    def __init__(self, settings: AttentionResNetSettings) -> None:
        if settings.num_frames < 1:
            raise ValueError(f"num_frames is {settings.num_frames}; a clip has 1 frame or more")
        seen = -(-settings.num_frames // 2)
        first = TemporalMaxPool(seen)
        second = TemporalMaxPool(first.left)
        super().__init__(settings, times=(first.left, *[second.left] * (len(settings.depths) - 1)))
        self.times = second.left
        embedder = self.resnet.embedder
        embedder.pooler = nn.Sequential(embedder.pooler, first)  # a maximum over 3x3x3 is one over 3x3, then over 3
        self.resnet.encoder.stages[0].layers.append(second)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        features = self.resnet(pixel_values[:, ::2].flatten(0, 1)).last_hidden_state
        clips = torch.unflatten(features, 0, (-1, self.times))
        logits: torch.Tensor = self.classifier(clips.mean((1, 3, 4)))
        return ImageClassifierOutputWithNoAttention(logits=logits)


class TemporalMaxPool(nn.Module):
    """x (N*T,C,H,W) -> (N*`left`,C,H,W): of T = `times` maps of a clip every second one, each the largest of three."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.left = times, -(-times // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = torch.unflatten(x, 0, (-1, self.times)).flatten(2).unsqueeze(1)  # (N,1,T,C*H*W)
        return F.max_pool2d(columns, (3, 1), (2, 1), (1, 0)).reshape(-1, *x.shape[1:])
