"""ViViT video classifiers: a clip in, the best classes out.

Arnab et al., "ViViT: A Video Vision Transformer", 2021. Model 1 (spatio-temporal attention) is transformers' module and
checkpoint layout; models 2 to 4 are `edgevtx.export.models.vivit`'s, and `attention` in their config.json names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.classes import Classes, Classifier, choose_classes, logits_of
from edgevtx.export.frames import Frames, traced_copy
from edgevtx.export.models.vivit import Settings, make
from edgevtx.export.processor import fixed_size, load_processor, preprocess_of
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, check_batch, check_model_type, needless_frame, pixels_spec
from edgevtx.preprocess import sample_clip
from edgevtx.results import Classification
from edgevtx.rules import Clip, Preprocess
from edgevtx.runtimes.base import Array

KINETICS_FPS = 12.5
"""Every second frame of 25 a second: what the paper's Kinetics models were trained on (section 4.1)."""


def build(checkpoint: Checkpoint, options: BuildOptions) -> Traceable:
    """The classifier of a checkpoint; see `BuildOptions`. `top_k` defaults to 5 or the number of classes."""
    check_model_type(checkpoint, RECIPE)
    check_batch(options.batch)
    settings = read_settings(checkpoint)
    model = _load(checkpoint, settings)
    processor, preprocess = _preprocess(checkpoint, settings, options)

    classes = choose_classes(_named(model, settings), options)

    prefix = "vivit.embeddings." if settings.attention == "spatio_temporal" else ""
    traced = traced_copy(model, f"{prefix}patch_embeddings.projection", preprocess)
    return Traceable(
        family=RECIPE.family,
        task=RECIPE.task,
        module=Classifier(traced, Frames(preprocess), classes).eval(),
        inputs=(pixels_spec(options.batch, settings.size, settings.num_frames),),
        outputs=classes.outputs(options.batch),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=settings.size,
        other_size=settings.size,
        preprocess=preprocess,
        decode=classes.decode,
        labels=classes.labels,
        reference=partial(_reference, model, processor, classes, settings.num_frames),
        notes=(*needless_frame(options.frame, settings.size), *_assumed_rate(settings, options)),
    )


def read_settings(checkpoint: Checkpoint) -> Settings:
    """The config of a ViViT checkpoint; raises `CheckpointError` where its numbers do not fit each other."""
    from transformers import VivitConfig

    # a config of transformers' own may have fields of its older versions
    also = VivitConfig().to_dict() if "attention" in checkpoint.config else None
    settings = checkpoint.settings(Settings, also)
    try:
        settings.check()
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path / 'config.json'} is not a usable config: {error}; mend it") from None
    if settings.attention != "spatio_temporal" and not settings.id2label:
        raise CheckpointError(f"{checkpoint.path / 'config.json'} names no classes; give them as id2label")
    return settings


def _load(checkpoint: Checkpoint, settings: Settings) -> nn.Module:
    if settings.attention == "spatio_temporal":
        import transformers

        return checkpoint.load(transformers.VivitForVideoClassification, unused=("pooler.", "vivit.pooler."))
    return checkpoint.load_module(partial(make, settings))


def _named(model: Any, settings: Settings) -> Any:
    """What has the classes' names by number as `id2label`, and `problem_type`."""
    if hasattr(model, "config"):
        return model.config
    return SimpleNamespace(
        id2label={int(key): name for key, name in settings.id2label.items()}, problem_type=settings.problem_type
    )


def _preprocess(checkpoint: Checkpoint, settings: Settings, options: BuildOptions) -> tuple[Any, Preprocess]:
    """The processor and what it does; without a config transformers' default, scaled to the model's size."""
    height, width = settings.size
    default = {"size": {"shortest_edge": round(max(height, width) * 256 / 224)}, "crop_size": [height, width]}
    processor = load_processor(checkpoint, "Vivit", default)
    preprocess = preprocess_of(processor, options.resize)
    size = fixed_size(preprocess)
    if size != settings.size:
        gives = "no fixed size" if size is None else f"{size[0]}x{size[1]}"
        raise CheckpointError(
            f"the model of {checkpoint.path} takes frames of {height}x{width} (height x width), its image processor "
            f"gives {gives}; set the processor's crop_size to image_size"
        )
    fps = options.clip_fps or settings.frame_rate or KINETICS_FPS
    if options.clip_fps is not None and not 0 < options.clip_fps < 1000:
        raise InputError(f"clip_fps is {options.clip_fps}; give the frames a second that the model was trained at")
    clip = Clip(frames=settings.num_frames, fps=fps, stride=max(1, settings.num_frames // 2))
    return processor, msgspec.structs.replace(preprocess, clip=clip)


def _assumed_rate(settings: Settings, options: BuildOptions) -> tuple[str, ...]:
    if options.clip_fps is not None or settings.frame_rate is not None:
        return ()
    return (
        f"the checkpoint does not say at which frame rate it was trained: {KINETICS_FPS:g} frames a second are "
        "assumed, as in the paper; choose another with --clip-fps",
    )


def _reference(
    model: nn.Module, processor: Any, classes: Classes, frames: int, clip: Array | Sequence[Array]
) -> Classification:
    """Uniform sampling, the processor, the model and softmax (or sigmoid), as transformers' pipeline has it."""
    chosen = [clip[index][..., ::-1].copy() for index in sample_clip(len(clip), frames)]
    with torch.no_grad():
        batch = processor(chosen, return_tensors="np", input_data_format="channels_last")
        return classes.result(logits_of(model, torch.from_numpy(batch["pixel_values"])))


def _tiny_config() -> dict[str, Any]:
    tiny = {
        "model_type": "vivit",
        "architectures": ["VivitForVideoClassification"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "num_frames": 4,
        "tubelet_size": [2, 8, 8],
        "frame_rate": 10.0,
        "id2label": {str(index): f"class {index}" for index in range(10)},
    }
    return {
        "vivit": tiny,
        "vivit-factorised-encoder": {**tiny, "attention": "factorised_encoder", "num_temporal_layers": 2},
        # uniform frame sampling: every frame by itself
        "vivit-factorised-self-attention": {
            **tiny,
            "attention": "factorised_self_attention",
            "tubelet_size": [1, 8, 8],
        },
        "vivit-factorised-dot-product": {**tiny, "attention": "factorised_dot_product", "num_attention_heads": 4},
    }


RECIPE = Recipe(
    family="vivit",
    title="ViViT video classification, models 1 to 4",
    paper="https://arxiv.org/abs/2103.15691",
    task="classify",
    result="Classification",
    model_types=("vivit",),
    layouts=("Hugging Face directory", "edgevtx directory (models 2 to 4)", "config.json alone with a seed"),
    variants=(
        "model 1: spatio-temporal attention",
        "model 2: factorised encoder",
        "model 3: factorised self-attention",
        "model 4: factorised dot-product attention",
    ),
    build=build,
    tiny_config=_tiny_config,
    options=("batch", "top_k", "labels", "resize", "clip_fps"),
    clips=True,
)
