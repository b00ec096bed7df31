"""What all classifiers share: which classes, how many of them, and how logits become scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from edgevtx.errors import InputError
from edgevtx.export.frames import Frames
from edgevtx.export.recipe import BuildOptions
from edgevtx.export.spec import class_names
from edgevtx.manifest import TensorInfo
from edgevtx.results import Classification
from edgevtx.rules import ClassifyDecode

TOP_K = 5


@dataclass(frozen=True)
class Classes:
    """The names by class id, how many of the best a graph gives, and whether classes exclude each other (softmax)."""

    labels: tuple[str, ...]
    top_k: int
    activation: Literal["softmax", "sigmoid"]

    @property
    def decode(self) -> ClassifyDecode:
        """The manifest's rule."""
        return ClassifyDecode(top_k=self.top_k, activation=self.activation)

    def outputs(self, batch: int | None) -> tuple[TensorInfo, ...]:
        """`scores` (N,K) float32 and `class_ids` (N,K) int64."""
        return (
            TensorInfo(name="scores", shape=(batch, self.top_k), dtype="float32"),
            TensorInfo(name="class_ids", shape=(batch, self.top_k), dtype="int64"),
        )

    def best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N,C) -> scores (N,K) in 0..1 and class ids (N,K), best first."""
        scores = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)
        values, ids = scores.topk(self.top_k, dim=-1)
        return values, ids

    def result(self, logits: torch.Tensor) -> Classification:
        """Logits (1,C) of the reference -> its answer, as transformers' classification pipelines have it."""
        scores, ids = (values[0].numpy() for values in self.best(logits))
        return Classification(ids, scores, tuple(self.labels[index] for index in ids))


class Classifier(nn.Module):
    """pixels (N,H,W,3), or clips (N,T,H,W,3), uint8 BGR -> scores (N,K) float32, class_ids (N,K) int64, best first."""

    def __init__(self, model: nn.Module, frames: Frames, classes: Classes) -> None:
        super().__init__()
        self.frames = frames
        self.model = model
        self.classes = classes

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classes.best(logits_of(self.model, self.frames(pixels)))


def logits_of(model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """The logits (N,C) of transformers' model, or of ours, for normalised frames (N,3,H,W) or clips (N,T,3,H,W)."""
    output = model(pixel_values=frames)
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits


def choose_classes(config: Any, options: BuildOptions) -> Classes:
    """The classes of a config with `id2label` by number and `problem_type`, as the user wants them.

    `top_k` defaults to 5, or to the number of classes. Raises `InputError` for labels or a `top_k` that do not fit.
    """
    labels = class_names(config, options.labels)
    top_k = min(TOP_K, len(labels)) if options.top_k is None else options.top_k
    if not 1 <= top_k <= len(labels):
        raise InputError(f"top_k is {top_k}, this checkpoint has {len(labels)} classes; choose 1 to {len(labels)}")
    return Classes(labels, top_k, "sigmoid" if config.problem_type == "multi_label_classification" else "softmax")
