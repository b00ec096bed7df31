"""What all classifiers of clips share: the rate of their frames, the graph around the model, and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.classes import Classes, Classifier, choose_classes, logits_of
from edgevtx.export.frames import Frames
from edgevtx.export.processor import fixed_size
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, needless_frame, pixels_spec
from edgevtx.preprocess import sample_clip
from edgevtx.results import Classification
from edgevtx.rules import Clip, Preprocess
from edgevtx.runtimes.base import Array

KINETICS_FPS = 12.5
"""Every second frame of 25 a second: what the papers' Kinetics models were trained on (Wang et al., 2018, section 4;
Arnab et al., 2021, section 4.1)."""

_ASSUMED = (
    f"the checkpoint does not say at which frame rate it was trained: {KINETICS_FPS:g} frames a second are assumed, as "
    "in the paper; choose another with --clip-fps"
)


def clip_classifier(
    recipe: Recipe,
    options: BuildOptions,
    model: nn.Module,
    traced: nn.Module,
    processor: Any,
    preprocess: Preprocess,
    config: Any,
    *,
    frames: int,
    frame_rate: float | None,
) -> Traceable:
    """What a family of classifiers of clips builds, once its model and processor are there.

    `model(pixel_values=)` is the reference and `traced(pixel_values=)`, which takes BGR, what is exported; both take
    (N,T,3,H,W), T = `frames`, and give logits or an object with `logits`. `config` has `id2label` by number and
    `problem_type`. `frame_rate`: frames a second that the model was trained at, None where the checkpoint does not say;
    `options.clip_fps` is chosen over it. Of a stream an answer is due every half clip. Raises `InputError` for labels,
    a `top_k` or a rate that do not fit, and `CheckpointError` for such a `frame_rate`.
    """
    size = fixed_size(preprocess)
    assert size is not None
    known = frame_rate if options.clip_fps is None else options.clip_fps
    if known is not None and not 0 < known < 1000:
        error, name = (CheckpointError, "frame_rate") if options.clip_fps is None else (InputError, "clip_fps")
        raise error(f"{name} is {known}; give the frames a second that the model was trained at")
    clip = Clip(frames=frames, fps=KINETICS_FPS if known is None else known, stride=max(1, frames // 2))
    classes = choose_classes(config, options)
    return Traceable(
        family=recipe.family,
        task=recipe.task,
        module=Classifier(traced, Frames(preprocess), classes).eval(),
        inputs=(pixels_spec(options.batch, size, frames),),
        outputs=classes.outputs(options.batch),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=msgspec.structs.replace(preprocess, clip=clip),
        decode=classes.decode,
        labels=classes.labels,
        reference=partial(_reference, model, processor, classes, frames),
        notes=(*needless_frame(options.frame, size), *([] if known is not None else [_ASSUMED])),
    )


def _reference(
    model: nn.Module, processor: Any, classes: Classes, frames: int, clip: Array | Sequence[Array]
) -> Classification:
    """Uniform sampling, the processor, the model and softmax (or sigmoid), as transformers' pipeline has it."""
    chosen = [clip[index][..., ::-1].copy() for index in sample_clip(len(clip), frames)]
    with torch.no_grad():
        batch = processor(chosen, return_tensors="np", input_data_format="channels_last")
        pixels = torch.from_numpy(batch["pixel_values"])  # a processor of images gives (T,3,H,W), of clips (1,T,3,H,W)
        return classes.result(logits_of(model, pixels.reshape(1, frames, *pixels.shape[-3:])))
