"""GridSample as gathers: the form of deformable attention that NVIDIA's compilers get right.

Bilinear interpolation between the four pixels around each place; a pixel outside the map counts as zero. See the rows
on GridSample in `edgevtx.runtimes.known_bad`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import constant, insert, nodes, replace

_LINEAR = ("", "linear", "bilinear")  # the default of opset 20 and of opset 16, which call it so
_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)  # x and y of the four pixels around a place
_FLOAT, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def gather_grid_sample(model: ir.Model) -> int:
    """Replace each bilinear float32 GridSample over (N,C,H,W) with zeros outside; all but C may be dynamic."""
    found = [node for node in nodes(model, "GridSample") if _fits(node)]
    for node in found:
        _spell_out(node)
    return len(found)


def _fits(node: ir.Node) -> bool:
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) != 4 or not isinstance(x.shape[1], int):
        return False
    linear = _text(node, "mode") in _LINEAR and _text(node, "padding_mode") in ("", "zeros")
    return linear and all(value is not None and value.dtype == _FLOAT for value in node.inputs)


def _text(node: ir.Node, name: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else ""


def _spell_out(node: ir.Node) -> None:
    x, grid = node.inputs
    assert x is not None and x.shape is not None
    make, const = partial(insert, node), partial(constant, node)
    size, strides, first = _sizes(node, x)
    zero, one, half = const("zero", np.float32(0)), const("one", np.float32(1)), const("half", np.float32(0.5))
    axis, corner_axis = const("axis", np.array([-1])), const("corner_axis", np.array([-2]))
    last = make("Sub", [size, one], "last")
    aligned = "align_corners" in node.attributes and bool(node.attributes["align_corners"].as_int())

    # from -1..1 to pixels, (N,P,Q,1,2), in the standard's own order of operations, so that it rounds alike
    place = make("Mul", [make("Add", [grid, one], "shifted"), last if aligned else size], "scaled")
    if not aligned:
        place = make("Sub", [place, one], "centred")
    place = make("Unsqueeze", [make("Mul", [place, half], "halved"), corner_axis], "place")
    corner = make("Add", [make("Floor", [place], "floor"), const("corners", _CORNERS)], "corner")

    # (N,P,Q,4,2): the pixel to read, and by how much it counts; what is outside reads the border and counts nothing
    inside = make("Max", [make("Min", [corner, last], "below"), zero], "inside")
    counts = make("Cast", [make("Equal", [inside, corner], "same", dtype=_BOOL)], "counts", to=int(_FLOAT))
    distance = make("Abs", [make("Sub", [place, corner], "offset")], "distance")
    share = make("Mul", [make("Sub", [one, distance], "share"), counts], "shares")
    weight = make("ReduceProd", [share, axis], "weight", keepdims=1)
    pixel = make("Cast", [inside], "pixel", dtype=_INT64, to=int(_INT64))
    steps = make("Mul", [pixel, strides], "steps", dtype=_INT64)
    index = make("ReduceSum", [steps, axis], "in_map", dtype=_INT64, keepdims=0)
    index = make("Add", [index, first], "index", dtype=_INT64)

    # a row of C channels for each pixel, so that a gather copies whole rows
    rows = make("Transpose", [x], "channels_last", perm=[0, 2, 3, 1])
    rows = make("Reshape", [rows, const("row_shape", np.array([-1, x.shape[1]]))], "rows")
    pixels = make("Mul", [make("Gather", [rows, index], "pixels", axis=0), weight], "weighted")
    sampled = make("ReduceSum", [pixels, corner_axis], "sampled", keepdims=0)
    replace(node, make("Transpose", [sampled], perm=[0, 3, 1, 2]))


def _sizes(node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What depends on the map's size, as constants where that is fixed.

    Width and height (2,) float32; how far apart the rows of neighbours in x and in y lie, (2,) int64; where the rows
    of each image of the batch begin, (N,1,1,1) int64.
    """
    assert x.shape is not None
    make, const = partial(insert, node, dtype=_INT64), partial(constant, node)
    batch, _, height, width = x.shape
    if isinstance(height, int) and isinstance(width, int):
        size = const("size", np.array([width, height], np.float32))
        strides, area = const("strides", np.array([1, width])), const("area", np.array([height * width]))
    else:
        across, down = (make("Shape", [x], name, start=at, end=at + 1) for at, name in ((3, "width"), (2, "height")))
        size = insert(node, "Cast", [make("Concat", [across, down], "sizes", axis=0)], "size", to=int(_FLOAT))
        strides = make("Concat", [const("step", np.array([1])), across], "strides", axis=0)
        area = make("Mul", [across, down], "area")
    if isinstance(batch, int):
        images = const("images", np.arange(batch))
    else:
        count = make("Squeeze", [make("Shape", [x], "batch", start=0, end=1)], "count")
        images = make("Range", [const("begin", np.int64(0)), count, const("step", np.int64(1))], "images")
    first = make("Mul", [images, area], "first")
    return size, strides, make("Reshape", [first, const("column", np.array([-1, 1, 1, 1]))], "first_rows")
