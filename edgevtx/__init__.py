"""edgevtx runs exported vision transformers on edge devices, and proves that they still give the right answer.

    import edgevtx

    model = edgevtx.load("fire.vtx")
    found = model(frame)             # frame: (H, W, 3) uint8 BGR, as OpenCV and cameras give it
    print(found.boxes, found.scores, found.labels)

Importing this package loads numpy and nothing heavier; a runtime is loaded by `load`, and torch never.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgevtx.errors import EdgevtxError as EdgevtxError
from edgevtx.results import Classification as Classification
from edgevtx.results import Detections as Detections
from edgevtx.results import Features as Features
from edgevtx.results import Masks as Masks
from edgevtx.results import PanopticSegmentation as PanopticSegmentation
from edgevtx.results import Result as Result
from edgevtx.results import SemanticSegmentation as SemanticSegmentation

if TYPE_CHECKING:
    from edgevtx.images import read_image as read_image
    from edgevtx.predictor import ModelInfo as ModelInfo
    from edgevtx.predictor import Predictor as Predictor
    from edgevtx.predictor import load as load

__version__ = "0.1.0"
__all__ = [
    "Classification",
    "Detections",
    "EdgevtxError",
    "Features",
    "Masks",
    "ModelInfo",
    "PanopticSegmentation",
    "Predictor",
    "Result",
    "SemanticSegmentation",
    "load",
    "read_image",
]

# a library is silent unless its application listens
logging.getLogger("edgevtx").addHandler(logging.NullHandler())

_LAZY = {
    "ModelInfo": "edgevtx.predictor",
    "Predictor": "edgevtx.predictor",
    "load": "edgevtx.predictor",
    "read_image": "edgevtx.images",
}


def __getattr__(name: str) -> object:
    """Import what needs more than numpy on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'edgevtx' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
