"""What a family is: a recipe, and the registry of all recipes.

A recipe turns a checkpoint into a `Traceable`: an eval-mode torch module from uint8 frames to decoded tensors,
with its task, preprocessing and decoding as data. A new family is one file in this folder and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgevtx.errors import InputError
from edgevtx.manifest import Task, TensorInfo
from edgevtx.rules import Decode, Preprocess

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from edgevtx.geometry import Geometry
    from edgevtx.results import Result
    from edgevtx.runtimes.base import Array, Arrays

# family -> module with a constant RECIPE; modules are imported on use, since each imports torch
FAMILIES = {
    "vit": "edgevtx.export.vit",
    "dino": "edgevtx.export.dino",
    "detr": "edgevtx.export.detr",
    "detr_panoptic": "edgevtx.export.detr_panoptic",
    "rtdetr": "edgevtx.export.rtdetr",
    "sam": "edgevtx.export.sam",
    "setr": "edgevtx.export.setr",
    "dinoseg": "edgevtx.export.dinoseg",
    "vivit": "edgevtx.export.vivit",
    "onnx": "edgevtx.export.onnx_graph",
    "attention_cnn": "edgevtx.export.attention_cnn",
    "swin": "edgevtx.export.swin",
}


class Source(Protocol):
    """Where a family's weights come from: a `Checkpoint`, or for the family onnx an `OnnxFile`."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class BuildOptions:
    """What the user may choose of a family's module.

    `batch`: frames at a time, None for dynamic. `frame`: (height, width) of the one camera that the graph is
    fixed for, None to follow the checkpoint's size rule. `top_k`: rows kept by the graph, None for the family's
    own number. `attention`: add the last layer's attention (dino). `labels`: class names that replace the
    checkpoint's. `resize`: "opencv" trades Pillow's exact resize for speed, None is the family's own. `clip_fps`: at
    how many frames a second a model of clips was trained, None for what its config says. `task`: one of the family's,
    None for what the checkpoint was made for.
    """

    batch: int | None = 1
    frame: tuple[int, int] | None = None
    top_k: int | None = None
    attention: bool = False
    labels: tuple[str, ...] | None = None
    resize: str | None = None
    clip_fps: float | None = None
    task: Task | None = None


@dataclass
class Traceable:
    """A module that can be traced, and everything the manifest says about it.

    `module.forward(pixels[, valid_size])` takes pixels (N,H,W,3), or clips (N,T,H,W,3), uint8 BGR and, where padding is
    possible, valid_size (N,2) int32 (height, width), and returns a tuple of tensors in the order of `outputs`.
    `trace_size` (height, width) is the input size traced; `other_size` another one, equal where the size is
    static. `dynamic` names the dynamic dimensions: input name -> {dimension: symbol}.
    `reference(frame)` is the answer of the reference (its processor, model and post-processing) for a BGR frame (or
    clip), with no score threshold applied, as the task's result.
    `selection(pixels)`, for models that select candidates inside (RT-DETR's top-k queries): how clear the closest
    decision was, the gap between the last kept and the first dropped score in standard deviations of the scores.
    `parts` are the family's further networks. `answer(outputs, geometry)`, for families whose answer takes more than
    decoding the outputs (SAM's prompts), is ours to compare with the reference's. `files`: further files of the
    bundle, by their names in it.
    """

    family: str
    task: Task
    module: torch.nn.Module
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dynamic: dict[str, dict[int, str]]
    trace_size: tuple[int, int]
    other_size: tuple[int, int]
    preprocess: Preprocess
    decode: Decode
    labels: tuple[str, ...]
    reference: Callable[[Array], Result]
    selection: Callable[[Array], float] | None = None
    parts: dict[str, TraceablePart] = field(default_factory=dict)
    answer: Callable[[Arrays, Geometry], Result] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class TraceablePart:
    """A further network of a family, such as SAM's mask decoder, that reads what the one that takes frames gives.

    `module.forward` takes tensors in the order of `inputs` and returns a tuple in the order of `outputs`; `dynamic` as
    for `Traceable`. `examples(outputs)` makes inputs from the first network's outputs for one frame: all are verified,
    the largest is traced (its dynamic dimensions must be 2 or more), and the first has the usual shapes, which engines
    are made for: it is the golden sample if it shows anything. `decode` is None where the outputs are only another
    network's inputs. `reference(inputs)` is what the reference's own network answers to such inputs, for those that it
    has one for.
    """

    module: torch.nn.Module
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dynamic: dict[str, dict[int, str]]
    examples: Callable[[Arrays], Sequence[Arrays]]
    decode: Decode | None = None
    reference: Callable[[Arrays], Arrays] | None = None


@dataclass(frozen=True)
class Recipe:
    """A family's row: what `edgevtx families` prints and what `edgevtx export` calls.

    `model_types` are the `model_type`s of Hugging Face configs that it reads; `layouts` the checkpoint layouts in
    words. `build(source, options)` takes a `Checkpoint`, or what the family reads in its place. `tiny_config()` is the
    smallest config of each model type, for tests and trials without a checkpoint; where a type has variants,
    "TYPE-VARIANT" names each, and where there is no config it is empty. `clips` are the model types that take clips.
    `task` is the one of those checkpoints and `result` what it gives; `further` holds the family's other tasks, and
    `fit` those that `edgevtx fit` gives its bundles afterwards. `variants` says in words what there is of the family.
    """

    family: str
    title: str
    paper: str
    task: Task
    result: str
    model_types: tuple[str, ...]
    layouts: tuple[str, ...]
    variants: tuple[str, ...]
    build: Callable[[Any, BuildOptions], Traceable]
    tiny_config: Callable[[], dict[str, Any]]
    options: tuple[str, ...] = field(default=())
    clips: tuple[str, ...] = ()
    further: Mapping[Task, str] = field(default_factory=dict)
    fit: Mapping[Task, str] = field(default_factory=dict)

    @property
    def results(self) -> dict[Task, str]:
        """Every task of the family and the name of its result, the usual one first."""
        return {self.task: self.result, **self.further}


def get_recipe(family: str) -> Recipe:
    """The recipe of a family; raises `InputError` for an unknown name."""
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; choose one of: {', '.join(FAMILIES)}")
    recipe = importlib.import_module(FAMILIES[family]).RECIPE
    assert isinstance(recipe, Recipe)
    return recipe
