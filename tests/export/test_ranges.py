"""The ranges of a graph's values are those of all its inputs, and measuring changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from edgevtx.export.ranges import PRODUCTS, measure_ranges  # noqa: E402
from edgevtx.export.rewrite.low_precision import lower_precision  # noqa: E402


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


RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def conv(x, k, b):
    """Two groups, stride 2, by the definition."""
    out = np.zeros((1, 4, 3, 3), np.float32)
    for channel, row, column in np.ndindex(4, 3, 3):
        part = x[0, :2] if channel < 2 else x[0, 2:]
        out[0, channel, row, column] = (part[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] * k[channel]).sum()
    return out + b[:, None, None]


def conv_transpose(x, k):
    """Stride 2, by the definition: every pixel spreads over 2x2."""
    return np.einsum("nchw,coij->nohiwj", x, k).reshape(1, 3, 6, 8)


# the shapes of input and output, the call, the shapes of its constants, and the same in numpy
CALLS = {
    "MatMul": ((2, 3, 4), (2, 3, 5), "MatMul(x, k)", {"k": (4, 5)}, np.matmul),
    "Gemm": ((3, 4), (3, 5), "Gemm <transB = 1>(x, k, b)", {"k": (5, 4), "b": (5,)}, lambda x, k, b: x @ k.T + b),
    "Conv": (
        (1, 4, 6, 6), (1, 4, 3, 3), "Conv <group = 2, strides = [2, 2]>(x, k, b)", {"k": (4, 2, 2, 2), "b": (4,)}, conv,
    ),
    "ConvTranspose": (
        (1, 2, 3, 4), (1, 3, 6, 8), "ConvTranspose <strides = [2, 2]>(x, k)", {"k": (2, 3, 2, 2)}, conv_transpose,
    ),
    "Einsum": (
        (2, 3, 4), (2, 5, 3), 'Einsum <equation = "nij,jk->nki">(x, k)', {"k": (4, 5)},
        lambda x, k: np.einsum("nij,jk->nki", x, k),
    ),
}  # fmt: skip


def test_the_sum_of_every_kind_of_product_is_measured():
    assert set(CALLS) == PRODUCTS


@pytest.mark.parametrize("name", CALLS)
def test_the_sum_of_a_product_is_that_of_the_magnitudes_that_it_adds_up(name, graph):
    given, made, call, constants, reference = CALLS[name]
    weights = {key: normal(*shape) for key, shape in constants.items()}
    model = graph(f"(float{[*given]} x) => (float{[*made]} y) {{ y = {call} }}", **weights)
    feeds = [{"x": normal(*given)} for _ in range(2)]
    measured = measure_ranges(model, feeds)["y"]
    for of, found in ((np.asarray, measured.largest), (np.abs, measured.summed)):
        wanted = max(np.abs(reference(of(feed["x"]), *map(of, weights.values()))).max() for feed in feeds)
        assert found == pytest.approx(wanted, rel=1e-5)


def test_nothing_but_a_product_has_a_sum(graph):
    model = graph("(float[2,3] x) => (float[2,2] y) { a = Neg(x) p = MatMul(a, k) y = Neg(p) }", k=normal(3, 2))
    found = measure_ranges(model, [{"x": normal(2, 3)}])
    assert {name for name, item in found.items() if item.summed} == {"p"}


def test_a_product_of_two_computed_tensors_is_measured_too(graph):
    """Attention's scores and its mix of values."""
    model = graph("(float[2,3,4] q, float[2,4,5] k) => (float[2,3,5] y) { y = MatMul(q, k) }")
    feed = {"q": normal(2, 3, 4), "k": normal(2, 4, 5)}
    assert measure_ranges(model, [feed])["y"].summed == pytest.approx((abs(feed["q"]) @ abs(feed["k"])).max(), rel=1e-5)


def test_what_would_overflow_on_the_way_to_a_small_result_keeps_fp32(graph):
    """The first half of the sum is 76800, the second takes it back: no tensor of the graph shows it."""
    kernel = np.repeat(np.float32([[1], [-1]]), 256, axis=0)
    text = "(float[1,512] x) => (float[1,1] y) { a = Abs(x) b = MatMul(a, k) y = Softmax(b) }"
    for size, low in ((300, 0), (20, 1)):
        model = graph(text, k=kernel)
        ranges = measure_ranges(model, [{"x": np.full((1, 512), size, np.float32)}])
        assert ranges["b"].largest == 0 and ranges["b"].summed == 512 * size
        assert lower_precision(model.clone(), "fp16", ranges) == low
        assert lower_precision(model, "bf16", ranges) == 1


def test_a_stream_that_grows_over_layers_runs_low_until_it_comes_near_the_limit(graph):
    """Every layer doubles what it was given: 2, 4, ... 65536."""
    layers = "".join(f"m{i + 1} = MatMul(s{i}, k) s{i + 1} = Add(s{i}, m{i + 1}) " for i in range(16))
    model = graph(
        f"(float[1,4] x) => (float[1,4] y) {{ s0 = Abs(x) {layers} z = MatMul(s16, k) y = Softmax(z) }}",
        k=np.eye(4, dtype=np.float32),
    )
    assert lower_precision(model, "fp16", measure_ranges(model, [{"x": np.ones((1, 4), np.float32)}]))
    kinds = {value.name: value.dtype.name for node in model.graph for value in node.outputs}
    assert [kinds[f"s{i}"] for i in (1, 12, 13)] == ["FLOAT16"] * 3
    assert [kinds[f"s{i}"] for i in (14, 15, 16)] == ["FLOAT"] * 3  # from a quarter of 65504 on
