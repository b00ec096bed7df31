"""Drawing results over frames, for people to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.results import Classification, Detections, Features

Array = NDArray[Any]
Frame = NDArray[np.uint8]


def draw_classification(frame: Array, found: Classification) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR with the five best classes listed in its corner."""
    raise NotImplementedError


def draw_detections(frame: Array, found: Detections) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR with boxes, labels and scores."""
    raise NotImplementedError


def draw_features(frame: Array, found: Features) -> Frame:
    """A copy of `frame` (H,W,3) uint8 BGR under the first three principal components of the patches."""
    raise NotImplementedError
