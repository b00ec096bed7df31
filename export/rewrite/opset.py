"""The opset that a graph declares, as low as its operators allow."""

from __future__ import annotations

import onnx
import onnx_ir as ir

_REDEFINED = ("GroupNormalization", "QuantizeLinear", "DequantizeLinear")  # in opset 21, beyond new types
LOWEST = 20  # the first with Gelu; from here to 23 the other operators gained types and no meaning


def declare_lowest_opset(model: ir.Model) -> int:
    """Declare opset 20 where every operator of the graph exists there with the attributes and inputs it has."""
    if model.opset_imports[""] <= LOWEST or not all(map(_exists, model.graph)):
        return 0
    model.opset_imports[""] = LOWEST
    return 1


def _exists(node: ir.Node) -> bool:
    if node.domain != "":
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, LOWEST)
    except onnx.defs.SchemaError:
        return False
    known = node.op_type not in _REDEFINED and len(node.inputs) <= schema.max_input
    return known and all(name in schema.attributes for name in node.attributes)
