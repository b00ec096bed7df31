"""Which shapes a plan is to take where the graph leaves them open: optimisation profiles for all dynamic inputs.

TensorRT chooses kernels for one shape of each profile, "opt", and plans its memory for the largest one. Sizes follow
from the bundle's own size rule, or from the frames that the plan is asked to serve; the usual shape is that of the
golden sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgevtx.geometry import Size, resized_size
from edgevtx.rules import SizeRule
from edgevtx.runtimes.base import Array, PlanOptions
from edgevtx.runtimes.plan import PlanRecord, Profile, ShapeRange

Shape = tuple[int, ...]

WIDEST = 2.4
"""The aspect ratio, upright or lying, up to which every frame is taken: ultra-wide cameras have 21:9."""

FAR = 2.0
"""Sizes whose areas differ by more than this have profiles of their own. TensorRT-RTX stores a plan's kernels and
weights once for each profile."""

# the name of a dimension -> least and largest: what a predictor gives at once, see `edgevtx.prompt`
COUNTS = {"batch": (1, 8), "prompts": (1, 64), "points": (0, 32)}

# a dimension that nobody knows: a part and a multiple of the usual one, which is this many without an example
_USUAL, _SPREAD = 64, 4

Span = tuple[int, int, int]
"""(min, opt, max) of a dimension."""


@dataclass(frozen=True)
class OpenInput:
    """An input of a graph: `shape` has None where it is dynamic, and `names` what the graph calls its dimensions."""

    name: str
    shape: tuple[int | None, ...]
    names: tuple[str, ...]


def profiles(
    inputs: Sequence[OpenInput], example: Mapping[str, Array], size: SizeRule | None, asked: PlanOptions
) -> tuple[Profile, ...]:
    """The ranges of every dynamic input, by name; none where all are static.

    One profile for all sizes that are usual, or with `asked.frames` one for each group of sizes that are near each
    other. The example is always within one of them, since every engine replays it: it holds inputs as they usually are
    (the golden sample's). `size` is the rule that frames are resized by.
    """
    opened = [item for item in inputs if None in item.shape]
    if not opened:
        return ()
    usual = _usual(opened, example)
    counts = {name: _around(usual.get(name), *ends) for name, ends in COUNTS.items()}
    if asked.batch:
        counts["batch"] = min(1, usual.get("batch", 1)), asked.batch, max(asked.batch, usual.get("batch", 1))
    found: list[Profile] = []
    for sides in _sides(size, asked.frames, usual):
        ranges = {item.name: _ranges(item, example.get(item.name), {**counts, **sides}) for item in opened}
        if ranges not in found:  # of a network without frames
            found.append(ranges)
    return tuple(found)


def _usual(opened: Sequence[OpenInput], example: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of dimensions in the example, by name."""
    return {
        _name(name, axis): size
        for item in opened
        if item.name in example
        for axis, (name, size) in enumerate(zip(item.names, example[item.name].shape, strict=True))
    }


def _name(name: str, axis: int) -> str:
    return name if name in COUNTS or axis else "batch"


def _around(usual: int | None, least: int, most: int) -> Span:
    """A range that has the usual size within, for which kernels are chosen."""
    opt = usual if usual is not None else least or most
    return min(least, opt), opt, max(most, opt)


def _ranges(item: OpenInput, example: Array | None, known: Mapping[str, Span]) -> ShapeRange:
    spans = []
    for axis, (fixed, name) in enumerate(zip(item.shape, item.names, strict=True)):
        opt = _USUAL if example is None else example.shape[axis]
        spread = max(1, opt // _SPREAD), opt, opt * _SPREAD
        spans.append(known.get(_name(name, axis), spread) if fixed is None else (fixed,) * 3)
    least, opts, most = zip(*spans, strict=True)
    return ShapeRange(least, opts, most)


def _sides(size: SizeRule | None, frames: Sequence[Size], usual: Mapping[str, int]) -> list[dict[str, Span]]:
    """The ranges of height and width in the network: of near sizes of the frames, or of all that are usual.

    Usual is a frame that is no wider, or higher, than `WIDEST`.
    """
    if size is None:
        return [{}]
    if not frames:
        shapes = [(1000, 1000), (1000, int(1000 * WIDEST)), (int(1000 * WIDEST), 1000)]
        heights, widths = zip(*(resized_size(frame, size) for frame in shapes), strict=True)
        return [
            {
                "height": _around(usual.get("height"), min(heights), max(heights)),
                "width": _around(usual.get("width"), min(widths), max(widths)),
            }
        ]
    sizes = [resized_size(frame, size) for frame in frames]
    if {"height", "width"} & usual.keys():
        sizes.append((usual.get("height", sizes[0][0]), usual.get("width", sizes[0][1])))
    found = []
    for group in _grouped(sizes):
        (height, width), (heights, widths) = group[0], zip(*group, strict=True)
        found.append({"height": (min(heights), height, max(heights)), "width": (min(widths), width, max(widths))})
    return found


def _grouped(sizes: Sequence[Size]) -> list[list[Size]]:
    """Sizes that are near each other, in the order of the first of each group, which kernels are chosen for."""
    groups: list[list[Size]] = []
    for size in sizes:
        group = next((group for group in groups if all(_is_near(size, other) for other in group)), None)
        if group is None:
            groups.append([size])
        else:
            group.append(size)
    return groups


def _is_near(size: Size, other: Size) -> bool:
    least, most = sorted((prod(size), prod(other)))
    return most <= FAR * least


# -- which profile takes what comes ----------------------------------------------------------------------------


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape], active: int = 0) -> int | None:
    """The index of a profile that takes these shapes, the active one if it does; None where none does.

    A plan without profiles is of static shapes, and has the one with index 0.
    """
    fitting = [
        index
        for index, profile in enumerate(profiles or ({},))
        if all(
            len(shapes[name]) == len(span.min) and all(map(_within, span.min, shapes[name], span.max))
            for name, span in profile.items()
        )
    ]
    return active if active in fitting else min(fitting, default=None)


def most_rows(record: PlanRecord) -> int | None:
    """The largest batch of the first input, within every profile; None of a plan of static shapes."""
    first = record.inputs[0].name
    return min((profile[first].max[0] for profile in record.profiles if first in profile), default=None)


def explain_lack(record: PlanRecord, shapes: Mapping[str, Shape]) -> str:
    """Why a plan has no profile for inputs of these shapes: its ranges and, for frames, the command for another."""
    ranges = ", or ".join(
        " with ".join(f"{name} {span.min} to {span.max}" for name, span in profile.items())
        for profile in record.profiles
    )
    why = f"it was compiled for {ranges}"
    frames = record.inputs[0].name
    spans = [profile[frames] for profile in record.profiles if frames in profile]
    if record.part or not spans:  # prompts are counted, and not asked for
        return why
    asked = " ".join(("", str(_asked_for(record.asked, shapes[frames], spans))))
    return (
        f"{why}; a plan that serves this too is made with: edgevtx compile BUNDLE --target {record.target} --precision "
        f"{record.precision}{asked}"
    )


def _asked_for(before: PlanOptions, shape: Shape, spans: Sequence[ShapeRange]) -> PlanOptions:
    """What to ask of a plan, beside what was asked before, so that it takes frames of this shape."""
    fitting = [span for span in spans if all(map(_within, span.min[1:], shape[1:], span.max[1:]))]
    if not fitting:
        before = replace(before, frames=(*(before.frames or _ends(spans)), (shape[-3], shape[-2])))
    if all(shape[0] > span.max[0] for span in fitting or spans):
        before = replace(before, batch=shape[0])
    return before


def _ends(spans: Sequence[ShapeRange]) -> tuple[Size, ...]:
    """The frames of a plan that was asked for none, which those that are asked for replace: in the network's sizes the
    usual one of each range, the widest and the highest."""
    found = []
    for span in spans:
        (top, left), (height, width), (bottom, right) = (item[-3:-1] for item in (span.min, span.opt, span.max))
        found += [(height, width), (top, right), (bottom, left)]
    return tuple(dict.fromkeys(found))


def _within(least: int, size: int, most: int) -> bool:
    return least <= size <= most
