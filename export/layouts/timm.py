"""timm's `config.json`: how images are prepared and what the classes are called.

It names the architecture and keeps the rest under `pretrained_cfg`: `input_size` (channels, height, width),
`crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts.mapping import numbered

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Pillow's numbers of the filters
BILINEAR, BICUBIC = 2, 3
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": BILINEAR, "bicubic": BICUBIC, "box": 4, "hamming": 5}


def refuse_changes(config: Mapping[str, Any], file: object) -> None:
    """Raise `CheckpointError` where a ViT classifier differs from its architecture in what no tensor shows.

    That is another pooling than the class token, or arguments of the model such as another activation.
    """
    pool = config.get("global_pool") or "token"
    changed = sorted(set(config.get("model_args") or {}) - {"img_size", "num_classes"})
    if pool != "token" or changed:
        what = f"global_pool {pool!r}" if pool != "token" else f"model_args {', '.join(changed)}"
        raise CheckpointError(
            f"the config.json of {file} asks for {what}, which this family does not have; export a model that pools by "
            "its class token and keeps its architecture's arguments"
        )


def shortest_then_crop(
    size: int, shortest: int, mean: Sequence[float], std: Sequence[float], resample: int = BICUBIC
) -> dict[str, Any]:
    """An image processor that scales the shortest edge to `shortest` and takes the middle `size` x `size`."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shortest},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "resample": resample,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def whole(size: int, mean: Sequence[float], std: Sequence[float], resample: int = BICUBIC) -> dict[str, Any]:
    """An image processor that scales the whole image to `size` x `size`."""
    return shortest_then_crop(size, size, mean, std, resample) | {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "do_center_crop": False,
    }


def pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """timm's `pretrained_cfg`; older files have its entries at the top."""
    nested = config.get("pretrained_cfg")
    return nested if isinstance(nested, Mapping) else config


def input_size(config: Mapping[str, Any]) -> int | None:
    """The side of the square input, or None where the config has none; raises for one that is not square."""
    size = pretrained(config).get("input_size")
    if size is None:
        return None
    if len(size) != 3 or size[1] != size[2]:
        raise CheckpointError(f"timm's config.json asks for an input of {size}; expected channels and a square size")
    return int(size[1])


def processor(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """timm's evaluation transform as an image processor for a square input of `size`.

    `crop_mode` "center" scales the shortest edge, "squash" both; raises `CheckpointError` for any other.
    """
    found = pretrained(config)
    scaled = math.floor(size / float(found.get("crop_pct") or 0.875))
    name = str(found.get("interpolation", "bicubic"))
    mode = found.get("crop_mode") or "center"
    if name not in _RESAMPLE or mode not in ("center", "squash"):
        raise CheckpointError(
            f"timm's config.json asks for interpolation {name} and crop_mode {mode}; expected one of "
            f"{', '.join(_RESAMPLE)}, and center or squash"
        )
    made = shortest_then_crop(
        size, scaled, found.get("mean") or IMAGENET[0], found.get("std") or IMAGENET[1], _RESAMPLE[name]
    )
    if mode == "squash":
        made |= {"image_processor_type": "DeiTImageProcessor", "size": {"height": scaled, "width": scaled}}
    return made


def id2label(config: Mapping[str, Any], classes: int) -> dict[str, str]:
    """The names of the classes where timm's config has one for each, else their numbers."""
    names = config.get("label_names") or pretrained(config).get("label_names")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list | tuple) or len(names) != classes:
        return numbered(classes)
    described = config.get("label_descriptions") or {}
    return {str(index): str(described.get(name, name)) for index, name in enumerate(names)}
