"""Engine outputs -> results, in pixels of the frames; one module a task, chosen by the manifest's `decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevtx.decode.classify import decode_classification
from edgevtx.decode.detect import decode_detections
from edgevtx.decode.embed import decode_features
from edgevtx.errors import InputError, VerificationError
from edgevtx.manifest import ClassifyDecode, Decode, DetectDecode, EmbedDecode, Manifest

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.results import Result
    from edgevtx.runtimes.base import Arrays

_DECODERS: dict[type[Decode], Callable[..., Result]] = {
    ClassifyDecode: decode_classification,
    DetectDecode: decode_detections,
    EmbedDecode: decode_features,
}


def decode(
    outputs: Arrays,
    geometries: Sequence[Geometry],
    manifest: Manifest,
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> list[Result]:
    """Named outputs of a batch -> one result for each geometry; further rows (padding of the batch) are ignored.

    `threshold` keeps what scores above it (None: the manifest's for detection, none for classification); `top_k`
    keeps that many at most (None: all that the graph gives). Raises `InputError` for a threshold outside 0..1, a
    `top_k` that the export does not give, or either where the task has no scores; `VerificationError` where the
    engine gave NaN or infinity, since nothing found must never mean nothing computed.
    """
    rule = manifest.decode
    check_options(rule, threshold, top_k)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array[: len(geometries)]).all():
            raise VerificationError(
                f"the engine gave NaN or infinity in {name!r}, which means that its precision overflows or that it is "
                "damaged; choose fp32, or run edgevtx verify on the bundle"
            )
    options: dict[str, Any] = {} if isinstance(rule, EmbedDecode) else {"threshold": threshold, "top_k": top_k}
    row = _DECODERS[type(rule)]
    return [
        row({name: array[i] for name, array in outputs.items()}, geometry, rule, manifest.labels, **options)
        for i, geometry in enumerate(geometries)
    ]


def check_options(rule: Decode, threshold: float | None, top_k: int | None) -> None:
    """Raise `InputError` for a `threshold` or `top_k` that this model cannot serve."""
    if isinstance(rule, EmbedDecode):
        if threshold is not None or top_k is not None:
            raise InputError("this model gives features, which have no scores; leave threshold and top_k out")
        return
    if threshold is not None and not 0 <= threshold <= 1:  # NaN fails both comparisons
        raise InputError(f"threshold must lie in 0..1, but got {threshold}")
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, but got {top_k!r}")
    if top_k > rule.top_k:
        raise InputError(
            f"top_k must be at most {rule.top_k}, which was fixed at export, but got {top_k}; "
            f"export the bundle again with --top-k {top_k}"
        )


__all__ = ["check_options", "decode"]
