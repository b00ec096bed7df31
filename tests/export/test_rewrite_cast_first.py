"""Only a Cast reads the frames, and sizes are still those of the frames."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.export.rewrite.cast_first import cast_first


def test_shapes_are_those_of_the_cast(graph):
    model = graph(
        """(uint8[n,h,w,3] pixels) => (int64[4] s, float[n,h,w,3] x)
        { [size] s = Shape(pixels) [cast] x = Cast <to = 1>(pixels) }"""
    )
    assert cast_first(model) == 1
    assert [node.op_type for node in model.graph] == ["Cast", "Shape"]
    assert [use.node.op_type for use in model.graph.inputs[0].uses()] == ["Cast"]
    assert cast_first(model) == 0


def test_other_types_are_left_alone(graph, rewritten):
    model = graph("(float[n,h] x) => (int64[2] s, float[n,h] y) { [size] s = Shape(x) [cast] y = Cast <to = 1>(x) }")
    assert rewritten(model, cast_first) == 0
    assert np.all([node.name for node in model.graph] == ["size", "cast"])
