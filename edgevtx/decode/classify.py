"""Classification: the graph has already applied softmax or sigmoid and sorted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevtx.results import Classification, names_of

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import ClassifyDecode
    from edgevtx.runtimes.base import Arrays


def decode_classification(
    outputs: Arrays,
    geometry: Geometry,
    rule: ClassifyDecode,
    labels: tuple[str, ...],
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Classification:
    """`scores` (K,) float32 and `class_ids` (K,) int64, best first -> the first `top_k` that score above `threshold`.

    As in transformers' pipeline, where no threshold is given every class of the `top_k` is returned.
    """
    # copies, since a runtime may reuse its output buffers
    scores = np.array(outputs["scores"][:top_k], np.float32)
    class_ids = np.array(outputs["class_ids"][:top_k], np.int64)
    if threshold is not None:
        keep = scores > threshold
        scores, class_ids = scores[keep], class_ids[keep]
    return Classification(class_ids, scores, names_of(class_ids, labels))
