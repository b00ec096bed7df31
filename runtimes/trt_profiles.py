"""Which shapes a plan is to take where the graph leaves them open: one optimisation profile for all dynamic inputs.

TensorRT chooses kernels for one shape, "opt", and plans its memory for the largest one. Sizes follow from the bundle's
own size rule, the usual shape from its golden sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevtx.geometry import resized_size
from edgevtx.rules import SizeRule
from edgevtx.runtimes.base import Array
from edgevtx.runtimes.plan import Profile, ShapeRange

WIDEST = 2.4
"""The aspect ratio, upright or lying, up to which every frame is taken: ultra-wide cameras have 21:9."""

# the name of a dimension -> least and largest: what a predictor gives at once, see `edgevtx.prompt`
COUNTS = {"batch": (1, 8), "prompts": (1, 64), "points": (0, 32)}

# a dimension that nobody knows: a part and a multiple of the usual one, which is this many without an example
_USUAL, _SPREAD = 64, 4


@dataclass(frozen=True)
class OpenInput:
    """An input of a graph: `shape` has None where it is dynamic, and `names` what the graph calls its dimensions."""

    name: str
    shape: tuple[int | None, ...]
    names: tuple[str, ...]


def profile(inputs: Sequence[OpenInput], example: Mapping[str, Array], size: SizeRule | None) -> Profile:
    """The range of every dynamic input, by name; empty where all are static.

    `example` holds inputs as they usually are (the golden sample's), `size` the rule that frames are resized by.
    """
    sides = _sides(size)
    found: Profile = {}
    for item in inputs:
        if None not in item.shape:
            continue
        usual = example[item.name].shape if item.name in example else (None,) * len(item.shape)
        ranges = [
            (fixed,) * 3 if fixed is not None else _range(name, axis, have, sides)
            for axis, (fixed, name, have) in enumerate(zip(item.shape, item.names, usual, strict=True))
        ]
        least, opt, most = zip(*ranges, strict=True)
        found[item.name] = ShapeRange(least, opt, most)
    return found


def _range(name: str, axis: int, usual: int | None, sides: Mapping[str, tuple[int, int]]) -> tuple[int, int, int]:
    """(min, opt, max) of a dimension; the usual one is always within."""
    known = {**COUNTS, **sides}
    if name not in known and axis == 0:
        name = "batch"
    if name in known:
        least, most = known[name]
        opt = usual if usual is not None else least or most
    else:
        opt = _USUAL if usual is None else usual
        least, most = max(1, opt // _SPREAD), opt * _SPREAD
    return min(least, opt), opt, max(most, opt)


def _sides(size: SizeRule | None) -> dict[str, tuple[int, int]]:
    """The least and the largest height and width of frames that are no wider, or higher, than `WIDEST`."""
    if size is None:
        return {}
    frames = [(1000, 1000), (1000, int(1000 * WIDEST)), (int(1000 * WIDEST), 1000)]
    heights, widths = zip(*(resized_size(frame, size) for frame in frames), strict=True)
    return {"height": (min(heights), max(heights)), "width": (min(widths), max(widths))}
