"""What int8 graphs quantise, with which scales, and that they compute what fake quantisation in numpy does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevtx.export.evaluate import open_model  # noqa: E402
from edgevtx.export.ranges import CLIPS, Range, choose_limits, measure_ranges  # noqa: E402
from edgevtx.export.rehearsal import rehearse, simulate, widen  # noqa: E402
from edgevtx.export.rewrite.low_precision import by_operators  # noqa: E402
from edgevtx.export.rewrite.patterns import PATTERNS, precisions_of  # noqa: E402
from edgevtx.export.rewrite.quantize import activations, int8_share, quantize  # noqa: E402
from edgevtx.manifest import Graph  # noqa: E402

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 8)).astype(np.float32)
# the channels' sizes differ a hundredfold: one scale for all would lose the small ones
W = (RANDOM.standard_normal((8, 6)) * 10.0 ** RANDOM.uniform(-2, 0, 6)).astype(np.float32)
IMAGE = RANDOM.standard_normal((1, 8, 6, 6)).astype(np.float32)
K = (RANDOM.standard_normal((6, 8, 1, 1)) * 10.0 ** RANDOM.uniform(-2, 0, (6, 1, 1, 1))).astype(np.float32)

# product -> its call, its weights, the axis of their output channels, what it computes
PRODUCTS = {
    "MatMul": ("MatMul(x, w)", W, 1, lambda x, w: x @ w),
    "Gemm": ("Gemm(x, w)", W, 1, lambda x, w: x @ w),
    "Gemm, transposed": ("Gemm <transB = 1>(x, w)", np.ascontiguousarray(W.T), 0, lambda x, w: x @ w.T),
    "Conv": ("Conv(x, w)", K, 0, lambda x, w: np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0])),
}


def fake_quantised(x, largest):
    step = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(x / step), -128, 127) * step


def one_product(graph, name, opset):
    """A graph of the one product, and its input."""
    call, weights, _, _ = PRODUCTS[name]
    x = IMAGE if name == "Conv" else X
    sizes = ",".join(map(str, x.shape))
    outputs = "1,6,6,6" if name == "Conv" else "5,6"
    # the last product before an output is not quantised; a sum over nothing is between
    end = "ReduceSum <noop_with_empty_axes = 1>(p, none)"
    text = f"(float[{sizes}] x) => (float[{outputs}] y) {{ [layer] p = {call} [end] y = {end} }}"
    return graph(text, opset=opset, w=weights, none=np.zeros(0, np.int64)), x


WIDE = {"p": Range(1e9)}  # what the product would be, so that it and its scales stay float32


def limits_of(model, *feeds):
    return {name: item.largest for name, item in measure_ranges(model, feeds).items()}


def kinds(model):
    """Operator -> what each node of it computes in."""
    names = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
    found = {}
    for node in model.graph:
        quantised = node.inputs[0].producer() is not None and node.inputs[0].producer().op_type == "DequantizeLinear"
        found[node.name] = "int8" if quantised else names.get(node.outputs[0].dtype, "")
    return found


def check(model):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert PATTERNS["zero-point"](model) == []


# -- scales ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", PRODUCTS)
def test_scales_are_symmetric_one_for_the_activation_and_one_for_each_output_channel(name, opset, graph):
    model, x = one_product(graph, name, opset)
    _, weights, axis, _ = PRODUCTS[name]
    assert quantize(model, {}, limits_of(model, {"x": x})) == 1
    check(model)
    pairs = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert [node.op_type for node in pairs] == 2 * ["QuantizeLinear", "DequantizeLinear"]
    others = tuple(other for other in range(weights.ndim) if other != axis)
    expected = np.abs(x).max() / 127, np.abs(weights).max(others) / 127
    for node, steps in zip(pairs, np.repeat(np.array(expected, dtype=object), 2), strict=True):
        scale, zero = (value.const_value.numpy() for value in node.inputs[1:])
        np.testing.assert_allclose(scale, steps, rtol=1e-3)
        assert scale.dtype == np.float16
        assert zero.dtype == np.int8 and zero.shape == scale.shape and not zero.any()
        assert ("axis" in node.attributes) == bool(scale.ndim)
    assert pairs[2].attributes["axis"].as_int() == pairs[3].attributes["axis"].as_int() == axis
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT  # all graphs share it


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_that_of_fake_quantised_operands(name, graph):
    model, x = one_product(graph, name, opset=20)
    _, weights, axis, product = PRODUCTS[name]
    quantize(model, WIDE, limits_of(model, {"x": x}))
    others = tuple(other for other in range(weights.ndim) if other != axis)
    largest = np.abs(weights).max(others, keepdims=True)
    expected = product(fake_quantised(x, np.abs(x).max()), fake_quantised(weights, largest))
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(open_model(model)({"x": x})["y"], open_model(simulate(model))({"x": x})["y"])


@pytest.mark.parametrize(("ranges", "largest", "kind"), [
    ({}, 4.0, "FLOAT16"), (WIDE, 4.0, "FLOAT"),
    ({}, 1e-3, "FLOAT"),  # of some channels 1e-5, as where a layer's small factor is folded into its weights
])  # fmt: skip
def test_the_error_of_a_product_is_within_its_bound(ranges, largest, kind, graph):
    """Each operand is off by half a step at most."""
    weights = W * np.float32(largest / np.abs(W).max())
    call = (
        "(float[5,8] x) => (float[5,6] y) { [a] p = MatMul(x, w) [b] y = ReduceSum <noop_with_empty_axes = 1>(p, n) }"
    )
    model, x = graph(call, opset=20, w=weights, n=np.zeros(0, np.int64)), X
    assert quantize(model, ranges, limits_of(model, {"x": x})) == 1
    check(model)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert {value.dtype.name for value in (*product.inputs, *product.outputs)} == {kind}
    step, steps = np.abs(x).max() / 127, np.abs(weights).max(0) / 127
    bound = np.abs(x).sum(1)[:, None] * steps / 2 + np.abs(weights).sum(0) * step / 2 + 8 * step * steps / 4
    if kind == "FLOAT16":  # and half precision's own rounding of scales, operands and the result
        bound = bound + 4 * 2.0**-11 * (np.abs(x) @ np.abs(weights))
    error = np.abs(open_model(simulate(model))({"x": x})["y"] - x @ weights)
    assert (error <= bound * 1.0001).all()
    assert error.max() > 1e-4 * largest


def test_a_channel_of_zeros_has_a_scale(graph):
    weights = W.copy()
    weights[:, 2] = 0
    model = graph("(float[5,8] x) => (float[5,6] y) { [a] p = MatMul(x, w) [c] y = LpNormalization(p) }", w=weights)
    assert quantize(model, {}, limits_of(model, {"x": X})) == 1
    found = open_model(simulate(model))({"x": X})["y"]
    assert np.isfinite(found).all() and not found[:, 2].any()


# -- what is quantised -----------------------------------------------------------------------------------------

S = RANDOM.standard_normal((8, 8)).astype(np.float32)
NORM = {"s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}


def quantised(model, **feeds):
    """The types of the nodes by name, after the model was quantised with all its activations' magnitudes."""
    quantize(model, {}, limits_of(model, feeds))
    check(model)
    return kinds(model)


def test_projections_and_the_mlp_are_quantised_and_attention_and_norms_are_not(graph):
    model = graph(
        """(float[1,5,8] x) => (float[1,5,8] y)
        { [norm] n = LayerNormalization(x, s, b)
          [q] q = MatMul(n, w) [k] k = MatMul(n, w2) [v] v = MatMul(n, w3)
          [turn] t = Transpose <perm = [0, 2, 1]>(k) [scores] a = MatMul(q, t) [weights] p = Softmax(a)
          [mix] m = MatMul(p, v) [out] o = MatMul(m, w) [sum] r = Add(x, o)
          [norm2] n2 = LayerNormalization(r, s, b) [up] u = MatMul(n2, w2) [act] g = Gelu(u) [down] d = MatMul(g, w3)
          [sum2] r2 = Add(r, d) [norm3] y = LayerNormalization(r2, s, b) }""",
        w=S, w2=S * 2, w3=S * 3, **NORM,
    )  # fmt: skip
    found = quantised(model, x=RANDOM.standard_normal((1, 5, 8)).astype(np.float32))
    assert {name for name, kind in found.items() if kind == "int8"} == {"q", "k", "v", "out", "up", "down"}
    assert {found[name] for name in ("scores", "mix", "act", "sum", "sum2")} == {"fp16"}
    assert {found[name] for name in ("norm", "weights", "norm2", "norm3")} == {"fp32"}
    one_pair_for_each = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    assert one_pair_for_each == 4 + 6 - 3  # query, key and value share theirs; so do weights that are one


def test_heads_keep_half_precision_whole(graph):
    """A perceptron of boxes, refined, and the last layer of classes."""
    model = graph(
        """(float[1,5,8] x, float[1,5,8] box) => (float[1,5,8] y, float[1,5,8] class)
        { [mix] m = MatMul(x, w) [norm] n = LayerNormalization(m, s, b)
          [box1] b1 = MatMul(n, w) [relu] b2 = Relu(b1) [box2] b3 = MatMul(b2, w)
          [clip] c = Clip(box) [log] l = Log(c) [refine] r = Add(b3, l) [end] y = Sigmoid(r)
          [class1] k = MatMul(n, w) [prob] class = Sigmoid(k) }""",
        w=S, **NORM,
    )  # fmt: skip
    feeds = {"x": RANDOM.standard_normal((1, 5, 8)).astype(np.float32), "box": np.full((1, 5, 8), 0.5, np.float32)}
    found = quantised(model, **feeds)
    assert {name for name, kind in found.items() if kind == "int8"} == {"mix"}
    assert {found[name] for name in ("box1", "box2", "class1", "relu")} == {"fp16"}


def test_the_scores_that_select_queries_keep_half_precision(graph):
    """The best class of each place, as RT-DETR selects."""
    model = graph(
        """(float[1,9,8] x) => (float[1,2] best, int64[1,2] index)
        { [mix] m = MatMul(x, w) [norm] n = LayerNormalization(m, s, b) [score] p = MatMul(n, w)
          [most] q = ReduceMax <keepdims = 0>(p, last) [top] best, index = TopK(q, two) }""",
        w=S, last=np.int64([-1]), two=np.int64([2]), **NORM,
    )  # fmt: skip
    found = quantised(model, x=RANDOM.standard_normal((1, 9, 8)).astype(np.float32))
    assert (found["mix"], found["score"]) == ("int8", "fp16")


def test_places_to_sample_keep_half_precision(graph):
    model = graph(
        """(float[1,8,4,4] image, float[1,5,8] q) => (float[1,8,5,1] y)
        { [conv] i = Conv(image, k) [norm] n = LayerNormalization(q, s, b) [offsets] o = MatMul(n, v)
          [grid] g = Unsqueeze(o, two) [sample] p = GridSample(i, g) [norm2] y = LpNormalization(p) }""",
        k=RANDOM.standard_normal((8, 8, 1, 1)).astype(np.float32), v=S[:, :2], two=np.int64([2]), **NORM,
    )  # fmt: skip
    feeds = {"image": RANDOM.standard_normal((1, 8, 4, 4)), "q": RANDOM.standard_normal((1, 5, 8))}
    found = quantised(model, **{name: array.astype(np.float32) for name, array in feeds.items()})
    assert (found["conv"], found["offsets"]) == ("int8", "fp16")


@pytest.mark.parametrize(("channels", "groups", "kind"), [(3, 1, "fp16"), (8, 8, "fp16"), (8, 1, "int8")])
def test_colours_and_single_channels_are_not_quantised(channels, groups, kind, graph):
    model = graph(
        f"""(float[1,{channels},4,4] x) => (float[1,8,4,4] y)
        {{ [conv] c = Conv <group = {groups}>(x, k) [norm] y = LpNormalization(c) }}""",
        k=RANDOM.standard_normal((8, channels // groups, 1, 1)).astype(np.float32),
    )
    assert quantised(model, x=np.ones((1, channels, 4, 4), np.float32))["conv"] == kind


CHAIN = """(float[5,8] x) => (float[5,8] y)
    { ["m.0/one"] a = MatMul(x, w) ["m.1/two"] c = MatMul(a, w) ["m.2/three"] d = MatMul(c, w)
      ["m.3/norm"] y = LpNormalization(d) }"""


def test_what_is_kept_by_name_is_float32_or_half_precision(graph):
    model = graph(CHAIN, w=S)
    limits = limits_of(model, {"x": X})
    assert quantize(model, {}, limits, keep=[r"^m\.0"], unquantised=[r"^m\.1"]) == 1
    found = kinds(model)
    assert [found[name] for name in ("m.0/one", "m.1/two", "m.2/three")] == ["fp32", "fp16", "int8"]
    check(model)


def test_what_has_no_limit_is_left_alone(graph):
    model = graph(CHAIN, w=S)
    limits = limits_of(model, {"x": X})
    del limits["a"]
    quantize(model, {}, limits)
    assert kinds(model)["m.1/two"] == "fp16"


def test_a_product_that_half_precision_would_overflow_is_int8_in_float32(graph):
    model = graph(CHAIN, w=S)
    quantize(model, {"c": Range(1e5)}, limits_of(model, {"x": X}))
    check(model)
    assert kinds(model)["m.1/two"] == "int8"
    two = next(node for node in model.graph if node.name == "m.1/two")
    assert [value.dtype.name for value in (*two.inputs, *two.outputs)] == 3 * ["FLOAT"]


def test_without_measured_limits_there_is_no_int8_graph(graph):
    assert set(by_operators(graph(CHAIN, w=S), ["fp16", "int8"])) == {"fp16"}


def test_products_of_one_tensor_are_found_among_quantised_ones(graph):
    model = graph("(float[5,8] x) => (float[5,8] y) { [q] q = MatMul(x, w) [k] k = MatMul(x, v) [s] s = Add(q, k) "
                  "[n] y = LpNormalization(s) }", w=S, v=S * 2)  # fmt: skip
    quantize(model, {}, limits_of(model, {"x": X}))
    assert [node.name for node in PATTERNS["parallel-products"](model)] == ["q", "k"]
    assert set(precisions_of(model)) == {"fp16", "int8"}


def test_of_few_quantised_products_the_graph_is_refused(graph, tmp_path):
    """By its share of the multiply-adds, as the compiler does: one in three is enough, and one in five is not."""
    pytest.importorskip("torch")
    from edgevtx.export.verify import verify_graph

    manifest = SimpleNamespace(decode_of=lambda part: None, noise={})
    facts = {"target": "tensorrt", "variant": "", "versions": ">=10.3", "opset": 20, "precisions": ("int8",)}
    for kept, share in (("m.[12]", 1 / 3), ("m.[0123]", 0)):
        model = graph(CHAIN, w=S)
        quantize(model, {}, limits_of(model, {"x": X}), unquantised=[kept])
        assert int8_share(model) == pytest.approx(share, abs=1e-3)
    model = graph(
        CHAIN.replace('["m.3', '["m.2/a"] e = MatMul(d, w) ["m.2/b"] f = MatMul(e, w) ["m.3').replace(
            "LpNormalization(d)", "LpNormalization(f)"
        ),
        w=S,
    )
    limits = limits_of(model, {"x": X})
    for kept, passed in (("m.2", True), ("m.[12]", False)):
        low = model.clone()
        quantize(low, {}, limits, unquantised=[kept])
        ir.save(low, tmp_path / "low.onnx")
        checks = verify_graph(tmp_path, Graph(file="low.onnx", **facts), (), manifest)
        assert all(item.passed for item in checks) == passed
    assert checks[0].note == "20% of its matrix products run in int8, and at least 25% must"


# -- limits ----------------------------------------------------------------------------------------------------


def test_outliers_are_cut_off_where_that_costs_less_than_wide_steps(graph):
    """Against the squared error of numpy's own fake quantisation."""
    model = graph("(float[n,8] x) => (float[n,6] y) { [a] p = MatMul(x, w) [b] y = LpNormalization(p) }", w=W)
    bell = RANDOM.standard_normal((20000, 8)).astype(np.float32)
    bell[0, 0] = 9
    for name, x, cut in (("flat", RANDOM.uniform(-1, 1, (20000, 8)).astype(np.float32), False), ("bell", bell, True)):
        largest = np.abs(x).max()
        errors = [((x - fake_quantised(x, np.float32(largest * clip))) ** 2).sum() for clip in CLIPS]
        feeds = [{"x": part} for part in np.array_split(x, 2)]
        found = choose_limits(model, feeds, measure_ranges(model, feeds), activations(model))
        assert found == {"x": pytest.approx(largest * CLIPS[int(np.argmin(errors))])}, name
        assert (found["x"] < largest) == cut


def test_what_is_zero_or_not_finite_has_no_limit(graph):
    model = graph(CHAIN, w=S)
    ranges = {"x": Range(0.0), "a": Range(np.inf), "c": Range(2.0)}
    assert activations(model) == ["x", "a", "c"]
    assert set(choose_limits(model, [{"x": X}], ranges, activations(model))) == {"c"}
    assert choose_limits(model, [{"x": X}], ranges, []) == {}


# -- rehearsal -------------------------------------------------------------------------------------------------


def test_wide_again_a_quantised_graph_is_the_graph_it_was_made_of(graph):
    exact = graph(CHAIN, w=S)
    model = exact.clone()
    quantize(model, {}, limits_of(exact, {"x": X}))
    assert "int8" in precisions_of(model)
    np.testing.assert_allclose(open_model(widen(model))({"x": X})["y"], open_model(exact)({"x": X})["y"], atol=1e-6)
    assert "QuantizeLinear" in {node.op_type for node in simulate(model).graph}


def test_the_rehearsal_names_the_block_whose_activation_was_cut(graph):
    exact = graph(CHAIN, w=S)
    model = exact.clone()
    limits = limits_of(exact, {"x": X})
    quantize(model, {}, {**limits, "a": limits["a"] / 50})
    found = rehearse(exact, model, "int8", [{"x": X}])
    assert found.precision == "int8"
    assert found.diverging == ("m.1",)
    assert found.errors["m.0"] < 0.05
