"""The golden sample: one real input and the reference's outputs for it, kept in the bundle and replayed on devices."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevtx.archive import write_archive
from edgevtx.errors import BundleError
from edgevtx.runtimes.base import Array, Arrays

GOLDEN = "golden.npz"


@dataclass(frozen=True)
class Golden:
    """`frame` (H,W,3) uint8 BGR as a camera gives it, or a clip (T,H,W,3); `inputs` and `outputs` of the graph by name."""

    frame: Array
    inputs: Arrays
    outputs: Arrays


def write_golden(path: Path, frame: Array, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write `golden.npz` with the keys `frame`, `input.NAME` and `output.NAME`; equal arrays give equal bytes."""
    arrays = {"frame": frame}
    arrays |= {f"input.{name}": array for name, array in inputs.items()}
    arrays |= {f"output.{name}": array for name, array in outputs.items()}
    with path.open("wb") as out:
        write_archive(out, ((f"{key}.npy", _npy(arrays[key])) for key in sorted(arrays)))


def read_golden(path: Path) -> Golden:
    """Read what `write_golden` wrote; `BundleError` where it is damaged or holds pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays: Arrays = {key: stored[key] for key in stored.files}
        frame = arrays.pop("frame")
    except Exception as error:  # numpy raises whatever its parsers stumble over
        raise BundleError(f"{path} is no golden sample ({error}); the bundle is damaged, export it again") from None
    groups: dict[str, Arrays] = {"input": {}, "output": {}}
    for key, array in arrays.items():
        kind, _, name = key.partition(".")
        groups.setdefault(kind, {})[name] = array
    return Golden(frame, groups["input"], groups["output"])


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()
