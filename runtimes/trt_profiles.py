"""Which shapes a plan is to take where the graph leaves them open: optimisation profiles for all dynamic inputs.

TensorRT chooses kernels for one shape of each profile, "opt", and plans its memory for the largest one. Sizes follow
from the bundle's own size rule, or from the frames that the plan is asked to serve; the usual shape is that of the
golden sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgevtx.geometry import Size, resized_size
from edgevtx.rules import SizeRule
from edgevtx.runtimes.base import Array, PlanOptions
from edgevtx.runtimes.plan import PlanRecord, Profile, ShapeRange

Shape = tuple[int, ...]

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


def profiles(
    inputs: Sequence[OpenInput], example: Mapping[str, Array], size: SizeRule | None, asked: PlanOptions
) -> tuple[Profile, ...]:
    """The ranges of every dynamic input, by name; none where all are static.

    One profile for each size that `asked.frames` have in the network, or one for all sizes that are usual, and one for
    the example where no other takes it: every engine replays it. `example` holds inputs as they usually are (the golden
    sample's), `size` the rule that frames are resized by.
    """
    opened = [item for item in inputs if None in item.shape]
    if not opened:
        return ()
    counts = {**COUNTS, **({"batch": (1, asked.batch)} if asked.batch else {})}
    found: list[Profile] = []
    for sides in _sides(size, asked.frames):
        ranges = _profile(opened, example, {**counts, **sides}, asked.batch)
        if ranges not in found:
            found.append(ranges)
    own = {item.name: example[item.name].shape for item in opened if item.name in example}
    if len(own) == len(opened) and choose_profile(found, own) is None:
        found.append({name: ShapeRange(shape, shape, shape) for name, shape in own.items()})
    return tuple(found)


def _profile(
    opened: Sequence[OpenInput],
    example: Mapping[str, Array],
    known: Mapping[str, tuple[int, int]],
    batch: int | None,
) -> Profile:
    found: Profile = {}
    for item in opened:
        usual = example[item.name].shape if item.name in example else (None,) * len(item.shape)
        ranges = [
            (fixed,) * 3 if fixed is not None else _range(name, axis, have, known, batch)
            for axis, (fixed, name, have) in enumerate(zip(item.shape, item.names, usual, strict=True))
        ]
        least, opt, most = zip(*ranges, strict=True)
        found[item.name] = ShapeRange(least, opt, most)
    return found


def _range(
    name: str, axis: int, usual: int | None, known: Mapping[str, tuple[int, int]], batch: int | None
) -> tuple[int, int, int]:
    """(min, opt, max) of a dimension. Kernels are chosen for the batch that was asked for, else for what is usual."""
    if name not in known and axis == 0:
        name = "batch"
    if name == "batch" and batch:
        usual = batch
    if name in known:
        least, most = known[name]
        opt = usual if usual is not None else least or most
        return least, min(max(opt, least), most), most
    opt = _USUAL if usual is None else usual
    return max(1, opt // _SPREAD), opt, opt * _SPREAD


def _sides(size: SizeRule | None, frames: Sequence[Size]) -> list[dict[str, tuple[int, int]]]:
    """The least and the largest height and width in the network: of each of the frames, or of all that are usual.

    Usual is a frame that is no wider, or higher, than `WIDEST`.
    """
    if size is None:
        return [{}]
    if frames:
        sizes = dict.fromkeys(resized_size(frame, size) for frame in frames)
        return [{"height": (height, height), "width": (width, width)} for height, width in sizes]
    usual = [(1000, 1000), (1000, int(1000 * WIDEST)), (int(1000 * WIDEST), 1000)]
    heights, widths = zip(*(resized_size(frame, size) for frame in usual), strict=True)
    return [{"height": (min(heights), max(heights)), "width": (min(widths), max(widths))}]


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
        before = replace(before, frames=(*before.frames, (shape[-3], shape[-2])))
    if all(shape[0] > span.max[0] for span in fitting or spans):
        before = replace(before, batch=shape[0])
    return before


def _within(least: int, size: int, most: int) -> bool:
    return least <= size <= most
