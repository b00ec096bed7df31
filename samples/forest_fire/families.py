"""The models that can be trained on the scenes: one row each in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    SamImageProcessorPil,
)

from .convergence import anchor_queries, dense_loss, dense_proposals, inherit_scores, local_start
from .data import Renderer
from .panoptic import PanopticDetr, mask_targets, panoptic_quality, start_from_detector
from .prompter import REMEMBERED, SIDE, Prompter, prompt_targets, remembered_iou
from .scenes import LABELS, Scene, render_dense, render_mixed, render_scene
from .segmenter import Segmenter, class_targets, mean_iou, segmenter_processor

Size = tuple[int, int]
_NAMES: dict[str, Any] = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {name: i for i, name in enumerate(LABELS)},
}


@dataclass(frozen=True)
class Family:
    """What to build and how to train it. Sizes are (height, width); ``phases`` rows are (from which share of
    the run on, input sizes); ``repeats`` is how often each object is offered to the one-to-one matching."""

    build: Callable[[], Any]
    processor: Callable[[], Any]
    render: Renderer
    kind: str  # of held-out scenes, a key of evaluate.RENDERERS
    stored: tuple[Size, ...]
    scenes: int  # of each stored size
    phases: tuple[tuple[float, tuple[Size, ...]], ...]
    batch: int
    steps: int
    rate: float
    repeats: int = 1
    half: bool = False  # store float16: loads back as the float32 that config.json asks for
    prepare: Callable[[Any], None] | None = None  # of a fresh model, before training
    extra_loss: Callable[[Any, Any, list[dict[str, Any]], Size], Any] | None = None  # model, outputs, labels, size
    hand_over: Callable[[Any], None] | None = None  # changes weights once, after hand_over_share of the run
    hand_over_share: float = 0.0
    rest_share: float = 1.0  # of the run, after which the parts named by rest are kept and denoising stops
    rest: tuple[str, ...] = ()
    warm_up: int = 200  # steps
    by_heart: bool = False  # no augmentation: what the model must show is a few scenes, and no knowledge of others
    # of scenes and processor: what the model is given and asked for, and how a checkpoint is judged; None: detection
    targets: Callable[[list[Scene], Any], tuple[Any, Any]] | None = None
    judge: Callable[[Path, Iterable[Scene]], dict[str, float]] | None = None


def rtdetr() -> RTDetrForObjectDetection:
    """RT-DETR of about a million parameters, 320 pixels square, 60 queries."""
    sizes = [16, 48, 96, 128]
    trunk = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=sizes,
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=trunk,
        freeze_backbone_batch_norms=False,  # there is no pretrained backbone whose statistics could be kept
        encoder_in_channels=sizes[1:],
        encoder_hidden_dim=64,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=128,
        decoder_in_channels=[64, 64, 64],
        decoder_ffn_dim=256,
        decoder_layers=3,
        decoder_attention_heads=8,
        num_queries=40,
        num_denoising=40,
        initializer_bias_prior_prob=0.02,
        **_NAMES,
    )
    return RTDetrForObjectDetection(config)


def detr() -> DetrForObjectDetection:
    """DETR of under a million parameters on stride-16 features, 100 queries."""
    trunk = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        # three blocks at stride 16: zero padding then tells every cell how far off the border is, and the
        # decoder has no other source of absolute position in its values
        depths=[1, 1, 3],
        layer_type="basic",
        out_features=["stage3"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        backbone_config=trunk,
        num_queries=100,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
        auxiliary_loss=True,
        eos_coefficient=0.1,
        **_NAMES,
    )
    return DetrForObjectDetection(config)


FAMILIES: dict[str, Family] = {
    "rtdetr": Family(
        build=rtdetr,
        processor=lambda: RTDetrImageProcessorPil(size={"height": 320, "width": 320}),
        render=render_scene,
        kind="forest",
        stored=((352, 352), (288, 512), (320, 426)),
        scenes=2000,
        phases=((0.0, ((256, 256),)), (0.6, ((256, 256), (320, 320))), (0.85, ((320, 320),))),
        batch=12,
        steps=6000,
        rate=7e-4,
        prepare=local_start,
        extra_loss=dense_proposals,
        hand_over=inherit_scores,
        hand_over_share=0.2,
        # the backbone settles first, and costs most of a step
        rest_share=0.6,
        rest=("model.backbone",),
    ),
    "detr": Family(
        build=detr,
        processor=lambda: DetrImageProcessorPil(size={"shortest_edge": 208, "longest_edge": 374}),
        render=render_dense,
        kind="dense",
        stored=((192, 256), (256, 192), (208, 320)),
        scenes=3000,
        phases=((0.0, ((192, 192), (160, 240), (240, 160))), (0.6, ((208, 208), (208, 288), (288, 208), (208, 336)))),
        batch=8,
        steps=4000,
        rate=6e-4,
        repeats=2,
        half=True,
        prepare=anchor_queries,
        extra_loss=dense_loss,
    ),
    "setr": Family(
        build=Segmenter,
        processor=segmenter_processor,
        render=render_mixed,
        kind="mixed",
        stored=((256, 256), (288, 384)),
        scenes=800,
        phases=((0.0, ((192, 192),)), (0.5, ((256, 256),))),
        batch=12,
        steps=1600,
        rate=1.5e-3,
        half=True,
        targets=class_targets,
        judge=mean_iou,
    ),
    "detr_panoptic": Family(
        build=PanopticDetr,
        processor=lambda: DetrImageProcessorPil(size={"shortest_edge": 208, "longest_edge": 374}),
        render=render_dense,
        kind="dense",
        stored=((192, 256), (256, 192), (208, 320)),
        scenes=600,
        phases=((0.0, ((192, 192), (160, 240), (240, 160))), (0.6, ((208, 208), (208, 288), (288, 208), (208, 336)))),
        batch=4,
        steps=5000,
        rate=4e-4,
        half=True,
        prepare=start_from_detector,
        targets=mask_targets,
        judge=panoptic_quality,
    ),
    "sam": Family(
        build=Prompter,
        processor=lambda: SamImageProcessorPil(
            size={"longest_edge": SIDE},
            mask_size={"longest_edge": SIDE // 2},
            pad_size={"height": SIDE, "width": SIDE},
            mask_pad_size={"height": SIDE // 2, "width": SIDE // 2},
        ),
        render=render_mixed,
        kind="mixed",
        stored=((SIDE, SIDE),),
        scenes=REMEMBERED,
        phases=((0.0, ((SIDE, SIDE),)),),
        batch=5,
        steps=900,
        rate=2e-3,
        warm_up=20,
        by_heart=True,
        half=True,
        targets=prompt_targets,
        judge=remembered_iou,
    ),
}
