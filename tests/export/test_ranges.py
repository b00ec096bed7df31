"""The ranges of a graph's values are those of all its inputs, and measuring changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from edgevtx.export.ranges import measure_ranges  # noqa: E402


def test_the_largest_magnitude_over_all_inputs_counts(graph):
    model = graph("(float[n,2] x) => (float[n,2] y) { a = Mul(x, w) y = Neg(a) }", w=np.float32([10, 1]))
    feeds = [{"x": np.float32([[1, 3]])}, {"x": np.float32([[-2, 0.5], [0, 0]])}]
    found = measure_ranges(model, feeds)
    assert {name: item.largest for name, item in found.items()} == {"x": 3, "a": 20, "y": 20}


def test_the_graph_stays_as_it_was(graph):
    model = graph("(float[n,2] x) => (float[n,2] y) { y = Neg(x) }")
    before = ir.to_proto(model).SerializeToString()
    measure_ranges(model, [{"x": np.ones((1, 2), np.float32)}])
    assert ir.to_proto(model).SerializeToString() == before


def test_what_is_empty_has_no_size_and_what_is_not_finite_no_bound(graph):
    model = graph("(float[n,2] x) => (float[n,2] y, float[n,2] z) { y = Neg(x) z = Log(x) }")
    empty, zero = np.zeros((0, 2), np.float32), np.zeros((1, 2), np.float32)
    assert measure_ranges(model, [{"x": empty}])["y"].largest == 0
    assert measure_ranges(model, [{"x": zero}])["z"].largest == math.inf
    assert measure_ranges(model, [{"x": -1 - zero}])["z"].largest == math.inf  # NaN


def test_integers_and_scalars_are_no_obstacle(graph):
    model = graph(
        """(uint8[n,2] x) => (float y, int64[n] best)
        { f = Cast <to = 1>(x) y = ReduceSum <keepdims = 0>(f) best = ArgMax <axis = 1, keepdims = 0>(f) }"""
    )
    found = measure_ranges(model, [{"x": np.uint8([[200, 50]])}])
    assert {name: item.largest for name, item in found.items()} == {"f": 200, "y": 250}
