"""What the semantic segmenters share: the graph around the model, the names of classes, the reference's class map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.frames import Frames
from edgevtx.export.recipe import BuildOptions, Recipe, Traceable
from edgevtx.export.spec import batch_dimension, needless_frame, pixels_spec
from edgevtx.manifest import TensorInfo
from edgevtx.results import SemanticSegmentation
from edgevtx.rules import Preprocess, SegmentDecode
from edgevtx.runtimes.base import Array


class Segmenter(nn.Module):
    """pixels (N,H,W,3) uint8 BGR -> logits (N,C,h,w) float32, before the decoder's last upsampling."""

    def __init__(self, model: nn.Module, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(self.frames(pixels)),)


def segmenter(
    recipe: Recipe,
    options: BuildOptions,
    traced: nn.Module,
    size: tuple[int, int],
    preprocess: Preprocess,
    decode: SegmentDecode,
    labels: tuple[str, ...],
    reference: Callable[[Array], SemanticSegmentation],
) -> Traceable:
    """What a family of segmenters builds, once its model is there; `traced` takes BGR inputs or windows of `size`."""
    with torch.no_grad():
        maps = traced(torch.zeros(1, 3, *size)).shape[1:]
    return Traceable(
        family=recipe.family,
        task=recipe.task,
        module=Segmenter(traced, Frames(preprocess)).eval(),
        inputs=(pixels_spec(options.batch, size),),
        outputs=(TensorInfo(name="logits", shape=(options.batch, *maps), dtype="float32"),),
        dynamic=batch_dimension(options.batch, "pixels"),
        trace_size=size,
        other_size=size,
        preprocess=preprocess,
        decode=decode,
        labels=labels,
        reference=reference,
        notes=needless_frame(options.frame, size) if preprocess.windows is None else (),
    )


def class_labels(checkpoint: Checkpoint, activation: str, options: BuildOptions) -> tuple[str, ...]:
    """The names of the classes: the user's or the config's; of one class with a threshold, the background first.

    Raises `CheckpointError` where the config has no names, or several for one map with a threshold; `InputError` where
    the user gives another number of names, or asks for the best few classes.
    """
    labels, given = checkpoint.labels, options.labels
    if not labels or (activation == "sigmoid" and len(labels) != 1):
        raise CheckpointError(
            f"id2label of {checkpoint.path} has {len(labels or ())} classes; expected one or more, and with the "
            "activation sigmoid exactly one"
        )
    if options.top_k is not None:
        raise InputError(f"top_k is {options.top_k}, but each pixel has one class; leave it out")
    if given is not None and len(given) != len(labels):
        raise InputError(f"{len(given)} labels were given, but the checkpoint has {len(labels)} classes; give as many")
    return (("background",) if activation == "sigmoid" else ()) + (given or labels)


def reference_classes(logits: torch.Tensor, rule: SegmentDecode, labels: tuple[str, ...]) -> SemanticSegmentation:
    """Logits of the frame's size (C,H,W) -> the class of each pixel, as MMSegmentation's post-processing has it."""
    if rule.activation == "softmax":
        return SemanticSegmentation(logits.argmax(0).numpy().astype(np.int32), labels)
    scores = logits[0].sigmoid().numpy()
    return SemanticSegmentation((scores > rule.threshold).astype(np.int32), labels, scores)
