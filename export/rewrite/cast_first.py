"""Frames are cast before anything else reads them."""

from __future__ import annotations

import onnx_ir as ir

from edgevtx.export.rewrite.edit import nodes


def cast_first(model: ir.Model) -> int:
    """Let every Shape of a uint8 input be that of its Cast: compilers that lack uint8 then see nothing but the cast."""
    count = 0
    for value in model.graph.inputs:
        casts = [use.node for use in value.uses() if use.node.op_type == "Cast"]
        if value.dtype != ir.DataType.UINT8 or not casts:
            continue
        for node in nodes(model, "Shape"):
            if node.inputs[0] is value:
                node.replace_input_with(0, casts[0].outputs[0])
                count += 1
    if count:
        model.graph.sort()  # a Shape may have come before the Cast
    return count
