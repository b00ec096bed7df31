"""Which operators run in half precision, which keep float32, and that the graph stays what ONNX allows."""

from __future__ import annotations

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from edgevtx.export.ranges import Range  # noqa: E402
from edgevtx.export.rewrite.low_precision import LARGEST, MARGIN, TYPES, lower_precision  # noqa: E402

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((8, 8)).astype(np.float32)


def kinds(model):
    """The type of each computed value but casts, by name: "fp16", "bf16", "fp32" or that of integers."""
    names = {ir.DataType.FLOAT: "fp32", **{kind: precision for precision, kind in TYPES.items()}}
    return {
        value.name: names.get(value.dtype, str(value.dtype))
        for node in model.graph
        if node.op_type != "Cast"
        for value in node.outputs
    }


def check(model):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("precision", TYPES)
def test_products_run_low_and_norms_and_softmax_do_not(precision, graph):
    model = graph(
        """(float[n,6,8] x, float[8] s, float[8] b) => (float[n,6,8] y)
        { norm = LayerNormalization(x, s, b)
          q = MatMul(norm, w)  turned = Transpose <perm = [0, 2, 1]>(q)
          scores = MatMul(q, turned)  masked = Add(scores, m)  weights = Softmax(masked)
          mix = MatMul(weights, q)  act = Gelu(mix)  sum = Add(x, act)
          y = LayerNormalization(sum, s, b) }""",
        w=W,
        m=np.float32([[[0, 0, 0, 0, -np.inf, -np.inf]]]),
        s=np.ones(8, np.float32),
        b=np.zeros(8, np.float32),
    )
    assert lower_precision(model, precision, {}) == 6
    found = kinds(model)
    assert {name for name, kind in found.items() if kind == precision} == {"q", "turned", "scores", "mix", "act", "sum"}
    assert {name for name, kind in found.items() if kind == "fp32"} == {"norm", "masked", "weights", "y"}
    check(model)
    for name in "wsb":  # weights stay what they are: all graphs share them
        assert model.graph.initializers[name].dtype == ir.DataType.FLOAT
    casts = [node.inputs[0].name for node in model.graph if node.op_type == "Cast"]
    assert sorted(casts) == sorted({*casts}), "one cast serves all readers of a value"


def test_inputs_and_outputs_keep_their_types_and_names(graph):
    model = graph("(float[2,8] x) => (float[2,8] y, float[2,8] z) { y = MatMul(x, w) z = Relu(y) }", w=W)
    assert lower_precision(model, "fp16", {}) == 1
    assert [(value.name, value.dtype.name) for value in model.graph.outputs] == [("y", "FLOAT"), ("z", "FLOAT")]
    assert kinds(model) == {"y/fp16": "fp16", "z": "fp32"}
    check(model)


@pytest.mark.parametrize(
    ("size", "low"), [(LARGEST["fp16"] / MARGIN, True), (LARGEST["fp16"] / MARGIN * 1.01, False), (np.inf, False)]
)
@pytest.mark.parametrize("name", ["x", "a"])
def test_what_is_measured_to_come_near_an_overflow_keeps_fp32(size, low, name, graph):
    text = "(float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) y = Softmax(c) }"
    model = graph(text, w=W)
    lower_precision(model, "fp16", {name: Range(size)})
    found = kinds(model)
    assert found["a"] == ("fp16" if low else "fp32")
    assert found["b"] == ("fp16" if low or name == "x" else "fp32")  # it reads a
    assert found["c"] == "fp16"
    assert lower_precision(graph(text, w=W), "bf16", {name: Range(size)}) == (
        3 if np.isfinite(size) else 2 - (name == "a")
    )


@pytest.mark.parametrize(("largest", "kind"), [(LARGEST["fp16"] / MARGIN / 49, "fp16"), (400, "fp32")])
def test_a_pooled_window_of_the_largest_value_must_fit(largest, kind, graph):
    """Pooling adds up its window before it divides."""
    model = graph(
        """(float[1,3,14,14] x) => (float[1,3,2,2] y)
        { a = Conv(x, k) p = AveragePool <kernel_shape = [7, 7], strides = [7, 7]>(a)
          c = Conv(p, k) y = Softmax(c) }""",
        k=np.ones((3, 3, 1, 1), np.float32),
    )
    lower_precision(model, "fp16", {"a": Range(largest)})
    assert kinds(model) == {"a": "fp16", "p": kind, "c": "fp16", "y": "fp32"}


def test_weights_that_half_precision_cannot_hold_keep_their_product_in_fp32(graph):
    text = "(float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) y = Softmax(a) }"
    assert lower_precision(graph(text, w=W * 1e5), "fp16", {}) == 0
    assert lower_precision(graph(text, w=W * 1e5), "bf16", {}) == 1


def test_a_recipe_keeps_nodes_by_their_names(graph):
    model = graph(
        "(float[2,8] x) => (float[2,8] y) { [one] a = MatMul(x, w) [two] b = MatMul(a, w) y = Softmax(b) }", w=W
    )
    lower_precision(model, "fp16", {}, keep=["^on"])
    assert kinds(model) == {"a": "fp32", "b": "fp16", "y": "fp32"}


def test_a_box_keeps_its_digits_from_the_last_product_to_its_logarithm_and_to_the_output(graph):
    """Iterative refinement: sigmoid(delta + inverse_sigmoid(box)), twice."""
    model = graph(
        """(float[2,8] x) => (float[2,8] y)
        { d1 = MatMul(x, w)  b1 = Sigmoid(d1)  c1 = Clip(b1)  l1 = Log(c1)
          d2 = MatMul(c1, w)  a2 = Add(d2, l1)  b2 = Sigmoid(a2)  y = Mul(b2, size) }""",
        w=W,
        size=np.full(8, 640, np.float32),
    )
    lower_precision(model, "fp16", {})
    found = kinds(model)
    assert {name for name, kind in found.items() if kind == "fp16"} == {"d1", "d2"}
    check(model)


def test_scores_keep_their_digits_through_the_best_of_their_classes(graph):
    """RT-DETR chooses its queries by the best class of each place."""
    model = graph(
        """(float[1,9,8] x) => (int64[1,4] y)
        { a = MatMul(x, w) b = Add(a, v) best = ReduceMax <keepdims = 0>(b, last) s, y = TopK(best, four) }""",
        w=W,
        v=W[0],
        last=np.int64([-1]),
        four=np.int64([4]),
    )
    assert lower_precision(model, "fp16", {}) == 1
    assert kinds(model)["a"] == "fp16" and kinds(model)["b"] == "fp32"


def test_places_to_sample_and_indices_keep_their_digits(graph):
    model = graph(
        """(float[1,8,4,8] image, float[1,5,8] q) => (float[1,8,1,5] y, float[1,5,8] picked)
        { map = MatMul(image, w)  o = MatMul(q, v)  at = Add(o, anchors)  far = Mul(at, two)
          grid = Unsqueeze(far, first)  s = GridSample(map, grid)
          t = Relu(s)  u = Transpose <perm = [0, 2, 3, 1]>(t)  z = MatMul(u, w)  y = Transpose <perm = [0, 3, 1, 2]>(z)
          px = Mul(o, size)  cell = Floor(px)  index = Cast <to = 7>(cell)  part = Sub(px, cell)
          value = Gather <axis = 1>(q, one)  picked = Mul(value, value) }""",
        w=W,
        v=W[:, :2],
        anchors=np.zeros((1, 5, 2), np.float32),
        two=np.float32(2),
        first=np.int64([1]),
        size=np.float32(640),
        one=np.int64([0, 0, 0, 0, 0]),
    )
    lower_precision(model, "fp16", {})
    found = kinds(model)
    assert {name for name, kind in found.items() if kind == "fp16"} == {"map", "o", "z"}
    check(model)


def test_the_phase_of_a_wave_is_exact_with_its_product(graph):
    model = graph("(float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) p = Mul(a, turn) s = Sin(p) y = MatMul(s, w) }",
                  w=W, turn=np.float32(6.28))  # fmt: skip
    lower_precision(model, "fp16", {})
    assert kinds(model) == {"a": "fp32", "p": "fp32", "s": "fp32", "y/fp16": "fp16"}


def test_only_inputs_of_the_outputs_type_are_cast(graph):
    """Resize's scales are float32 by definition, and Where's condition is no number."""
    model = graph(
        """(float[1,3,4,4] x, bool[1,3,4,4] shown) => (float[1,3,8,8] y)
        { a = Conv(x, k)  b = Where(shown, a, zero)  r = Resize(b, , scales)  c = Conv(r, k)
          n = Neg(c) y = Sqrt(n) }""",
        k=np.ones((3, 3, 1, 1), np.float32),
        zero=np.float32(0),
        scales=np.float32([1, 1, 2, 2]),
    )
    lower_precision(model, "fp16", {})
    assert {name for name, kind in kinds(model).items() if kind == "fp16"} == {"a", "b", "r", "c"}
    check(model)
    resize = next(node for node in model.graph if node.op_type == "Resize")
    assert resize.inputs[2].name == "scales"


@pytest.mark.parametrize(("opset", "product", "declared", "low"), [
    (20, "Conv(x, k)", 22, 1), (20, "MatMul(x, x)", 20, 1), (23, "Conv(x, k)", 23, 1),
    (17, "Conv(x, k)", 17, 0),  # raising an older graph's opset could change what it means
])  # fmt: skip
def test_bfloat16_convolutions_declare_the_opset_that_has_them(opset, product, declared, low, graph):
    model = graph(f"(float[1,3,4,4] x) => (float[1,3,4,4] y) {{ a = {product} y = Softmax(a) }}", opset=opset,
                  k=np.ones((3, 3, 1, 1), np.float32))  # fmt: skip
    assert lower_precision(model, "bf16", {}) == low
    assert model.opset_imports[""] == declared
    check(model)
