"""What the export tests share: tiny checkpoints of every family on disk, and photographs of unlike shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.runtimes.base import Array

# processors small enough for tests; families that are not named use their default, which is as small as the config
SMALL = {
    "detr": {"size": {"shortest_edge": 128, "longest_edge": 213}},
    "rtdetr": {"size": {"height": 128, "width": 192}},
}


@pytest.fixture
def config_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of config.json and preprocessor_config.json: (family, model_type, processor=, **changes)."""

    def make(
        family: str, model_type: str | None = None, *, processor: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        from edgevtx.export.recipe import get_recipe

        configs = get_recipe(family).tiny_config()
        config = {**configs[model_type or next(iter(configs))], **changes}
        folder = tmp_path / f"{family}-{config['model_type']}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        processor = SMALL.get(family) if processor is None else processor
        if processor:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return make


@cache
def photographs() -> dict[str, Array]:
    """Photographs as BGR frames (H,W,3) uint8, each of another size: from scikit-image and scikit-learn."""
    data = pytest.importorskip("skimage.data")
    datasets = pytest.importorskip("sklearn.datasets")
    found = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    found["portrait"] = np.rot90(datasets.load_sample_image("china.jpg"))[:, :360]
    found["flower"] = datasets.load_sample_image("flower.jpg")
    return {name: np.ascontiguousarray(image[..., 2::-1]) for name, image in found.items()}


@pytest.fixture
def photos() -> dict[str, Array]:
    """See `photographs`."""
    return photographs()
