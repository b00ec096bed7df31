"""Small rules that every recipe follows: names and shapes of inputs, class names, which checkpoints it reads."""

from __future__ import annotations

from typing import Any

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.recipe import FAMILIES, Recipe, get_recipe
from edgevtx.manifest import TensorInfo


def pixels_spec(batch: int | None, size: tuple[int, int] | None, *times: int) -> TensorInfo:
    """The input `pixels` (N,H,W,3) uint8, for clips (N,T,H,W,3); `size` None leaves height and width dynamic."""
    height, width = size or (None, None)
    return TensorInfo(name="pixels", shape=(batch, *times, height, width, 3), dtype="uint8")


def batch_dimension(batch: int | None, *names: str) -> dict[str, dict[int, str]]:
    """The dynamic dimensions of inputs whose batch is dynamic; none where `batch` is a number."""
    return {name: {0: "batch"} for name in names} if batch is None else {}


def check_batch(options_batch: int | None) -> None:
    """Raise `InputError` unless the batch is None (dynamic) or at least 1."""
    if options_batch is not None and options_batch < 1:
        raise InputError(f"the batch is {options_batch}; choose 1 or more, or a dynamic batch")


def class_names(config: Any, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the model's classes in id order: `labels` where given, else those of its transformers config.

    Raises `InputError` when the number of `labels` is not the number of classes.
    """
    count = len(config.id2label)
    if labels is None:
        return tuple(str(config.id2label[index]) for index in range(count))
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels were given, but the checkpoint has {count} classes; give {count}")
    return tuple(labels)


def check_model_type(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise `CheckpointError`, naming the families that would read it, unless `recipe` reads this checkpoint."""
    if checkpoint.model_type in recipe.model_types:
        return
    readers = [family for family in FAMILIES if checkpoint.model_type in get_recipe(family).model_types]
    advice = f"export it as family {' or '.join(readers)}" if readers else "no family of edgevtx reads it"
    raise CheckpointError(
        f"{checkpoint.path} is a checkpoint of type {checkpoint.model_type}, family {recipe.family} reads "
        f"{', '.join(recipe.model_types)}; {advice}"
    )


def detect_outputs(batch: int | None, top_k: int) -> tuple[TensorInfo, ...]:
    """The outputs of every detector: `boxes` (N,K,4), `scores` (N,K) float32, `class_ids` (N,K) int64."""
    return (
        TensorInfo(name="boxes", shape=(batch, top_k, 4), dtype="float32"),
        TensorInfo(name="scores", shape=(batch, top_k), dtype="float32"),
        TensorInfo(name="class_ids", shape=(batch, top_k), dtype="int64"),
    )


def needless_frame(frame: tuple[int, int] | None, size: tuple[int, int]) -> tuple[str, ...]:
    """A note where the user fixed the camera's frame size although the input's does not depend on it."""
    if frame is None:
        return ()
    return (f"the frame size {frame[1]}x{frame[0]} changes nothing: every frame is resized to {size[1]}x{size[0]}",)
