"""Engine outputs -> results, in pixels of the frames; one module a task, chosen by the manifest's `decode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgevtx.decode.classify import decode_classification
from edgevtx.decode.detect import decode_detections
from edgevtx.decode.embed import decode_features, decode_pyramid
from edgevtx.decode.knn import Bank, decode_knn
from edgevtx.decode.panoptic import decode_panoptic
from edgevtx.decode.prompt import no_prompt
from edgevtx.decode.segment import decode_segmentation, merge_windows
from edgevtx.errors import InputError, VerificationError
from edgevtx.manifest import Manifest
from edgevtx.rules import (
    ClassifyDecode,
    Decode,
    DetectDecode,
    EmbedDecode,
    KnnDecode,
    PanopticDecode,
    PromptDecode,
    PromptMasksDecode,
    PyramidDecode,
    SegmentDecode,
)

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.results import Result
    from edgevtx.runtimes.base import Arrays

# the rule -> its decoder, and which of `threshold`, `top_k` and `bank` that takes
_DECODERS: dict[type[Decode], tuple[Callable[..., Result], tuple[str, ...]]] = {
    ClassifyDecode: (decode_classification, ("threshold", "top_k")),
    DetectDecode: (decode_detections, ("threshold", "top_k")),
    EmbedDecode: (decode_features, ()),
    KnnDecode: (decode_knn, ("threshold", "top_k", "bank")),
    PanopticDecode: (decode_panoptic, ("threshold", "top_k")),
    PyramidDecode: (decode_pyramid, ()),
    SegmentDecode: (decode_segmentation, ("threshold",)),
    PromptDecode: (no_prompt, ("threshold", "top_k")),  # of what is found without a prompt
    PromptMasksDecode: (no_prompt, ()),
}


def decode(
    outputs: Arrays,
    geometries: Sequence[Geometry],
    manifest: Manifest,
    *,
    threshold: float | None = None,
    top_k: int | None = None,
    bank: Bank | None = None,
) -> list[Result]:
    """Named outputs of a batch -> one result for each geometry; further rows (padding of the batch) are ignored.

    Where the graph sees windows, the rows are those of all windows of all frames, and are merged first.
    `threshold` keeps what scores above it (None: the manifest's for detection, none for classification); `top_k`
    keeps that many at most (None: all that the graph gives); `bank` has the vectors of a fitted bundle. Raises
    `InputError` for a threshold outside 0..1, a `top_k` that the export does not give, or either where the task has no
    scores; `VerificationError` where the engine gave NaN or infinity, since nothing found must never mean nothing
    computed.
    """
    rule = manifest.decode
    windows = manifest.preprocess.windows if isinstance(rule, SegmentDecode) else None
    check_options(rule, threshold, top_k)
    check_finite({name: array[: None if windows else len(geometries)] for name, array in outputs.items()})
    given = (("threshold", threshold), ("top_k", top_k), ("bank", bank))
    row, accepted = _DECODERS[type(rule)]
    options = {name: value for name, value in given if name in accepted}
    rows: Iterator[Arrays] = ({name: array[i] for name, array in outputs.items()} for i in range(len(geometries)))
    if isinstance(rule, SegmentDecode) and windows is not None:
        rows, rule = merge_windows(outputs, geometries, rule, windows)
    return [
        row(one, geometry, rule, manifest.labels, **options) for one, geometry in zip(rows, geometries, strict=True)
    ]


def check_finite(outputs: Arrays) -> None:
    """Raise `VerificationError` where an engine gave NaN or infinity."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise VerificationError(
                f"the engine gave NaN or infinity in {name!r}, which means that its precision overflows or that it is "
                "damaged; choose fp32, or run edgevtx verify on the bundle"
            )


def takes(rule: Decode, option: str) -> bool:
    """Whether results of this rule can be cut by "threshold" or "top_k"."""
    return option in _DECODERS[type(rule)][1]


def check_options(rule: Decode, threshold: float | None, top_k: int | None) -> None:
    """Raise `InputError` for a `threshold` or `top_k` that this model cannot serve."""
    for name, value in (("threshold", threshold), ("top_k", top_k)):
        if value is not None and not takes(rule, name):
            raise InputError(f"the results of this model ({rule.__struct_config__.tag}) take no {name}; leave it out")
    if threshold is not None and not 0 <= threshold <= 1:  # NaN fails both comparisons
        raise InputError(f"threshold must lie in 0..1, but got {threshold}")
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, but got {top_k!r}")
    most = getattr(rule, "top_k", None)
    if most is not None and top_k > most:
        raise InputError(
            f"top_k must be at most {most}, which was fixed at export, but got {top_k}; "
            f"export the bundle again with --top-k {top_k}"
        )


__all__ = ["check_finite", "check_options", "decode", "takes"]
