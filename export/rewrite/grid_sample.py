"""GridSample without its interpolation mode, where that is the default."""

from __future__ import annotations

import onnx_ir as ir

from edgevtx.export.rewrite.edit import nodes


def drop_default_grid_mode(model: ir.Model) -> int:
    """Leave out `mode="linear"`, opset 20's default and its name for what opset 16 calls "bilinear".

    OpenVINO 2025.0 refuses the new name; without the attribute, new and old versions interpolate linearly.
    """
    found = [node for node in nodes(model, "GridSample") if _mode(node) == "linear"]
    for node in found:
        node.attributes.pop("mode")
    return len(found)


def _mode(node: ir.Node) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else ""
