"""Checkpoints as their authors publish them: a file of weights in a layout of its own.

A layout is recognised by the names of its tensors, tells the model's config from their shapes, and gives every tensor
the name that Hugging Face publishes for the same model. From there on it is a checkpoint like any other. A new layout
is one file in this folder and one row in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts import detr, dinov2, rtdetr, sam, setr, swin, timm_vit
from edgevtx.export.layouts.files import state_dict, without_backbone
from edgevtx.export.layouts.mapping import Layout, Source, Tensors, listed, translate
from edgevtx.export.layouts.timm import pretrained

LAYOUTS: tuple[Layout, ...] = (
    *sam.LAYOUTS,
    *setr.LAYOUTS,
    *detr.LAYOUTS,
    *rtdetr.LAYOUTS,
    *swin.LAYOUTS,
    *dinov2.LAYOUTS,
    *timm_vit.LAYOUTS,
)
"""Every layout; the first that matches is taken."""


@dataclass(frozen=True)
class Published:
    """A checkpoint in the form that Hugging Face publishes, held in memory.

    `tensors` have the published names, which transformers maps to its modules; `notes` say what was assumed;
    `licence` is timm's, where its config names one.
    """

    layout: str
    config: dict[str, Any]
    processor: dict[str, Any]
    tensors: Tensors = field(repr=False)
    notes: tuple[str, ...] = ()
    licence: str = ""


def names_for(family: str) -> tuple[str, ...]:
    """The names of the layouts that a family exports, for its recipe's `layouts`."""
    return tuple(layout.name for layout in LAYOUTS if family in layout.families)


def read(
    path: Path,
    *,
    timm: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
) -> Published:
    """Read a file of weights in one of `LAYOUTS`.

    `timm` is the `config.json` that timm wrote beside it. `config`, in the form of Hugging Face, replaces what the
    layout reads off the shapes. Tensors that the layout does not know are refused, with `allow_partial` they are
    left out and named in the notes. Raises `CheckpointError`.
    """
    found = state_dict(path)
    layout, tensors = _recognise(path, found.tensors, timm is not None)
    source = Source(path.name, tensors, found.wrapper, timm or {}, config or {}, found.classes)
    reading = layout.read(source)
    mapped, unmapped = translate(reading.rules, tensors)
    notes = [f"read as {layout.name}" + (f", from {found.wrapper}" if found.wrapper else ""), *reading.notes]
    if unmapped:
        if not allow_partial:
            raise CheckpointError(
                f"{path} is a checkpoint of {layout.name}, but {len(unmapped)} of its {len(tensors)} tensors "
                f"{'has' if len(unmapped) == 1 else 'have'} no place in it: {listed(unmapped)}; it may be a variant "
                f"that is not supported (compare {layout.source}); --allow-partial (allow_partial=True) leaves them out"
            )
        notes.append(f"{len(unmapped)} of the file's {len(tensors)} tensors were left out: {', '.join(unmapped)}")
    return Published(
        layout.name,
        _with(path, reading.config, config or {}),
        reading.processor,
        {**reading.added, **mapped},
        tuple(notes),
        str(pretrained(source.timm).get("license") or ""),
    )


def _recognise(path: Path, tensors: Tensors, is_timm: bool) -> tuple[Layout, Tensors]:
    """The layout of a state dict, and its tensors under the names that the layout knows."""
    # timm names tensors as others do: which of them published a file shows in timm's config.json beside it
    candidates = sorted(LAYOUTS, key=lambda layout: layout.timm is not is_timm)
    for view in (tensors, without_backbone(tensors)):
        for layout in candidates:
            if layout.matches(view):
                return layout, view
    raise CheckpointError(
        f"{path} has {len(tensors)} tensors in no layout known here ({listed(tensors)}); expected a Hugging Face "
        f"directory, or a file of {', '.join(layout.name for layout in LAYOUTS)}"
    )


def _with(path: Path, config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config read off the shapes under the user's, nested ones merged; raises for another model type."""
    found, asked = config.get("model_type"), given.get("model_type", config.get("model_type"))
    if asked != found:
        raise CheckpointError(f"{path} is a checkpoint of type {found}, the config given for it is of type {asked}")
    merged = {**config, **given}
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict) and key != "id2label":
            merged[key] = {**config[key], **value}
    return merged
