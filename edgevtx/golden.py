"""The golden sample: one real input and the reference's outputs for it, kept in the bundle and replayed on devices."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgevtx.archive import write_archive
from edgevtx.errors import BundleError
from edgevtx.runtimes.base import Array, Arrays

GOLDEN = "golden.npz"


@dataclass(frozen=True)
class Exchange:
    """A network's `inputs` and what it answers, `outputs`, by name."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Golden:
    """`frame` (H,W,3) uint8 BGR as a camera gives it, or a clip (T,H,W,3); `inputs` and `outputs` of the network that
    takes it, by name.

    `parts` has one exchange for each further network of the bundle.
    """

    frame: Array
    inputs: Arrays
    outputs: Arrays
    parts: dict[str, Exchange] = field(default_factory=dict)

    def exchange(self, part: str) -> Exchange:
        """The exchange of a network; "" is the one that takes frames. `BundleError` where there is none of a part."""
        if part and part not in self.parts:
            raise BundleError(f"the golden sample has nothing of the network {part!r}; export the bundle again")
        return self.parts[part] if part else Exchange(self.inputs, self.outputs)


def write_golden(path: Path, golden: Golden) -> None:
    """Write `golden.npz`: `frame`, `input.NAME`, `output.NAME`, and those with `PART.` ahead for further networks.

    Equal arrays give equal bytes.
    """
    arrays = {"frame": golden.frame}
    for part in ("", *golden.parts):
        exchange, prefix = golden.exchange(part), f"{part}." if part else ""
        arrays |= {f"{prefix}input.{name}": array for name, array in exchange.inputs.items()}
        arrays |= {f"{prefix}output.{name}": array for name, array in exchange.outputs.items()}
    with path.open("wb") as out:
        write_archive(out, ((f"{key}.npy", npy(arrays[key])) for key in sorted(arrays)))


def read_golden(path: Path) -> Golden:
    """Read what `write_golden` wrote; `BundleError` where it is damaged or holds pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays: Arrays = {key: stored[key] for key in stored.files}
        frame = arrays.pop("frame")
        found = {"": Exchange({}, {})}
        for key, array in arrays.items():
            *part, kind, name = key.split(".")
            exchange = found.setdefault(".".join(part), Exchange({}, {}))
            {"input": exchange.inputs, "output": exchange.outputs}[kind][name] = array
    except Exception as error:  # numpy raises whatever its parsers stumble over, and names may be of any form
        why = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path} is no golden sample ({why}); the bundle is damaged, export it again") from None
    first = found.pop("")
    return Golden(frame, first.inputs, first.outputs, found)


def npy(array: Array) -> bytes:
    """An array as the bytes of a .npy file, without pickles."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()
