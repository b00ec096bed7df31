"""Shapes that a graph computes and a constant can say: compilers that plan ahead refuse or copy shape tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevtx.export.rewrite.edit import constant, nodes, set_inputs, tensor_of


def fix_reshapes(model: ir.Model) -> int:
    """Give each `Reshape` of computed shape a constant one, where 0 (as the input's) and one -1 (the rest) can say it.

    Of a dynamic dimension the exporter takes the size at run time and puts the shape together from it, although a
    reshape seldom needs to know it.
    """
    return sum(_fix(node) for node in nodes(model, "Reshape"))


def _fix(node: ir.Node) -> bool:
    source, target = node.inputs[0], node.outputs[0]
    if tensor_of(node.inputs[1]) is not None or source is None or source.shape is None or target.shape is None:
        return False
    before = [str(size) for size in source.shape]
    sizes: list[int] = []
    for axis, size in enumerate(target.shape):
        if isinstance(size, int):
            sizes.append(size)
        else:
            # two sizes without a name are both None, which does not make them equal
            same = size.value is not None and axis < len(before) and before[axis] == str(size)
            sizes.append(0 if same else -1)
    if sizes.count(-1) > 1 or 0 in list(target.shape):
        return False
    shape = constant(node, "shape", np.array(sizes, np.int64))
    set_inputs(node, [source, shape])
    node.attributes.pop("allowzero", None)
    return True
