"""A ResNet classifier with attention inside: transformers' ResNet, in which layers are added or replaced.

SAGAN and non-local blocks are added before the last residual layer of chosen stages (Wang et al., 2018, section 4.1);
stand-alone self-attention and local relation layers take the place of the 3x3 convolutions of chosen stages
(Ramachandran et al., 2019, section 3.1; Hu et al., 2019, section 5). The stem stays a convolution, which both of the
latter papers found no worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from edgevtx.export.models.global_attention import NonLocalBlock, SaganAttention
from edgevtx.export.models.local_attention import Composability, LocalRelation, StandaloneAttention

ModelType = Literal["sagan_resnet", "nonlocal_resnet", "nonlocal_video_resnet", "sasa_resnet", "local_relation_resnet"]


class AttentionResNetSettings(msgspec.Struct, kw_only=True, frozen=True):
    """The fields of `config.json`; those of the ResNet are named as transformers names them.

    `attention_stages` (from 1) are the stages with attention. `num_attention_heads`: sasa; `window`: sasa and local
    relation; `reduction` (None: the paper's 8 or 2): sagan and nonlocal; `subsample`, `scaled`: nonlocal; `share`,
    `composability`: local relation. See the blocks in `edgevtx.export.models` for what they mean. `num_frames` at
    `frame_rate` frames a second (None where that is not known) is the clip that nonlocal_video takes.
    """

    model_type: ModelType
    id2label: dict[str, str]
    image_size: int = 224
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    attention_stages: tuple[int, ...] = (3,)
    num_attention_heads: int = 8
    window: int = 7
    reduction: int | None = None
    subsample: bool = True
    scaled: bool = False
    share: int = 8
    composability: Composability = "squared"
    problem_type: str | None = None
    num_frames: int = 32
    frame_rate: float | None = None


class AttentionResNet(nn.Module):
    """pixel_values (N,3,H,W) float32 -> an object with `logits` (N,classes).

    Tensor names are those of transformers' ResNet classifier and of the blocks; an added block shifts the next layer.
    `times`: how many maps of a clip each stage sees, 1 where the batch axis holds images. Raises `ValueError` for sizes
    that do not fit together.
    """

    def __init__(self, settings: AttentionResNetSettings, times: Sequence[int] = ()) -> None:
        super().__init__()
        stages = len(settings.depths)
        if len(settings.hidden_sizes) != stages:
            raise ValueError(f"hidden_sizes has {len(settings.hidden_sizes)} entries, depths has {stages}")
        if wrong := [stage for stage in settings.attention_stages if not 1 <= stage <= stages]:
            raise ValueError(f"attention_stages names stage {wrong[0]} of {stages}")
        config = ResNetConfig(
            embedding_size=settings.embedding_size,
            hidden_sizes=list(settings.hidden_sizes),
            depths=list(settings.depths),
            layer_type="bottleneck",
        )
        self.config = config
        self.resnet = ResNetModel(config)
        for stage in settings.attention_stages:
            _change(self.resnet.encoder.stages[stage - 1].layers, settings, times[stage - 1] if times else 1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(settings.hidden_sizes[-1], len(settings.id2label)))

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        features = self.resnet(pixel_values).last_hidden_state
        # a mean, and not the pooler: after a block that ends in a transposition the exporter spells that as a Gather
        logits: torch.Tensor = self.classifier(features.mean((2, 3)))
        return ImageClassifierOutputWithNoAttention(logits=logits)


def _change(layers: Any, settings: AttentionResNetSettings, times: int) -> None:
    """Put a stage's attention into it."""
    channels = layers[-1].layer[0].convolution.in_channels  # what the last layer gets
    given = {} if settings.reduction is None else {"reduction": settings.reduction}
    if settings.model_type == "sagan_resnet":
        layers.insert(len(layers) - 1, SaganAttention(channels, **given))
        return
    if settings.model_type in ("nonlocal_resnet", "nonlocal_video_resnet"):
        block = NonLocalBlock(channels, times=times, subsample=settings.subsample, scaled=settings.scaled, **given)
        layers.insert(len(layers) - 1, block)
        return
    for layer in layers:
        replaced = layer.layer[1].convolution
        width, stride = replaced.in_channels, replaced.stride[0]
        if settings.model_type == "sasa_resnet":
            heads, window = settings.num_attention_heads, settings.window
            layer.layer[1].convolution = StandaloneAttention(width, width, heads=heads, window=window, stride=stride)
        else:
            layer.layer[1].convolution = LocalRelation(
                width,
                share=settings.share,
                window=settings.window,
                stride=stride,
                composability=settings.composability,
            )
