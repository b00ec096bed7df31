"""What an NVIDIA compiler would refuse is said by node and module before there is a compiler."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from edgevtx.errors import ExportError  # noqa: E402
from edgevtx.export.operators import operators_of, versions  # noqa: E402
from edgevtx.export.preflight import explain_findings, preflight, preflight_file  # noqa: E402
from edgevtx.export.rewrite import COMMON, VARIANTS, Variant, lower  # noqa: E402
from edgevtx.export.rewrite.gather_grid_sample import gather_grid_sample  # noqa: E402

TARGETS = ("tensorrt", "tensorrt-rtx")
EVERY_VERSION = [(target, version) for target in TARGETS for version in versions(target)]
NEWEST = [(target, versions(target)[-1]) for target in TARGETS]

# fault -> the graph, its constants, the node and the module that are named, words of what is wrong and of the remedy
FAULTS = {
    "an operator that no version has": (
        """(float[4,4] x) => (float y) { ["enc.layer.3/odd"] y = Det(x) }""",
        {},
        ("enc.layer.3/odd", "enc.layer.3", "does not have Det", "leave it out"),
    ),
    "float64": (
        """(float[4] x) => (float[4] y)
        { ["head/up"] d = Cast <to = 11>(x) ["head/sum"] s = Add(d, d) ["head/down"] y = Cast <to = 1>(s) }""",
        {},
        ("head/sum", "head", "no tensors of type double", "cast to float32"),
    ),
    "a type that the operator does not take": (
        """(int32[4] x) => (int32[4] y) { ["head/clip"] y = Clip(x) }""",
        {},
        ("head/clip", "head", "takes Clip of bfloat16, float, float16, this one is of int32", "leave it out"),
    ),
    "too many kept": (
        """(float[1,9000] x, int64[1] k) => (float[1,4000] y, int64[1,4000] i) { ["head/best"] y, i = TopK(x, k) }""",
        {"k": np.array([4000])},
        ("head/best", "head", "TopK keeps more than 3840", "--top-k"),
    ),
    "a number of rows that depends on the data": (
        """(float[4,4] x) => (int64[2,n] y) { ["head/found"] y = NonZero(x) }""",
        {},
        ("head/found", "head", "how many rows it gives depends on the data", "fixed number of rows"),
    ),
    "a shape that depends on the data": (
        """(float[12] x, float[4] q, int64[1] rest, int64[1] zero) => (float[a,b] y)
        { ["head/max"] m = ReduceMax <keepdims = 0>(q) ["head/int"] i = Cast <to = 7>(m)
          ["head/one"] o = Unsqueeze(i, zero)
          ["head/shape"] s = Concat <axis = 0>(o, rest) ["head/view"] y = Reshape(x, s) }""",
        {"rest": np.array([-1]), "zero": np.array([0])},
        ("head/view", "head", "its shape depends on the data of input q", "fixed number of rows"),
    ),
    "frames that a transposition reads": (
        """(uint8[1,8,8,3] pixels) => (float[1,3,8,8] y)
        { ["stem/turn"] t = Transpose <perm = [0, 3, 1, 2]>(pixels) ["stem/cast"] y = Cast <to = 1>(t) }""",
        {},
        ("stem/turn", "stem", "a uint8 tensor is read by something else than a Cast", "cast-first"),
    ),
    "a zero point that is not zero": (
        """(float[4] x, float s, int8 z) => (float[4] y)
        { ["enc/q"] q = QuantizeLinear(x, s, z) ["enc/dq"] y = DequantizeLinear(q, s, z) }""",
        {"s": np.float32(0.1), "z": np.int8(3)},
        ("enc/q", "enc", "zero point other than 0", "quantise symmetrically"),
    ),
    "a zero point that is unsigned": (
        """(float[4] x, float s, uint8 z) => (float[4] y)
        { ["enc/q"] q = QuantizeLinear(x, s, z) ["enc/dq"] y = DequantizeLinear(q, s, z) }""",
        {"s": np.float32(0.1), "z": np.uint8(0)},
        ("enc/dq", "enc", "zero point other than 0", "quantise symmetrically"),
    ),
    "an antialiased resize": (
        """(float[1,3,9,11] x, float[4] s) => (float[1,3,n,m] y)
        { ["dec/up"] y = Resize <antialias = 1, mode = "linear"> (x, , s) }""",
        {"s": np.array([1, 1, 2, 2], np.float32)},
        ("dec/up", "dec", "takes Resize only with antialias 0, not 1", "leave it out"),
    ),
    "a sum over axes that are computed": (
        """(float[4,4] x, int64[1] a) => (float[4] y) { ["dec/sum"] y = ReduceSum <keepdims = 0> (x, a) }""",
        {},
        ("dec/sum", "dec", "takes ReduceSum only with constant axes", "leave it out"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("target", "version"), NEWEST, ids=TARGETS)
def test_a_planted_fault_is_named_by_node_and_module_with_a_remedy(target, version, fault, graph):
    text, constants, (node, module, what, remedy) = FAULTS[fault]
    errors = [item for item in preflight(graph(text, **constants), target, version) if item.level == "error"]
    (found,) = [item for item in errors if item.node == node]
    assert found.module == module
    assert what in found.what and remedy in found.remedy
    assert str(found).startswith(f"{node} in {module}: ")


SAMPLE = """(float[1,3,9,11] x, float[1,5,4,2] g) => (float[1,3,5,4] y)
    { ["dec/sample"] y = GridSample <mode = "linear"> (x, g) }"""


@pytest.mark.parametrize(
    ("target", "version", "count"), [("tensorrt", "10.3", 1), ("tensorrt", "11.1", 2), ("tensorrt-rtx", "1.5.0", 1)]
)
def test_what_the_version_is_known_to_get_wrong_is_an_error_with_its_thread(target, version, count, graph):
    found = preflight(graph(SAMPLE, opset=20), target, version)
    assert [(item.node, item.level) for item in found] == [("dec/sample", "error")] * count
    assert all("TensorRT#4" in item.what or "onnx-tensorrt#1060" in item.what for item in found)
    assert {item.remedy for item in found} == {"rewrite it: gather-grid-sample"}
    (doubt,) = preflight(graph(SAMPLE, opset=20), "tensorrt-rtx", "1.7.1")  # whose parser has learnt the word
    assert (doubt.node, doubt.level) == ("dec/sample", "warning")


def test_an_operator_of_another_domain_is_named_with_its_domain():
    text = """(float[4] x) => (float[4] y) { ["enc/gelu"] y = com.microsoft.QuickGelu(x) }"""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> tiny {text}')
    (found,) = preflight(model, "tensorrt", "10.3")
    assert (found.module, found.what) == ("enc", "tensorrt does not have com.microsoft.QuickGelu")


def test_a_sound_graph_has_no_findings(graph):
    model = graph(
        """(uint8[n,h,w,3] pixels, float[16,3,4,4] k, int64[1] rest) => (float[n,t,16] y)
        { ["stem/cast"] x = Cast <to = 1>(pixels) ["stem/turn"] c = Transpose <perm = [0, 3, 1, 2]>(x)
          ["stem/conv"] f = Conv <strides = [4, 4]>(c, k) ["stem/shape"] s = Shape <end = 2>(f)
          ["stem/join"] r = Concat <axis = 0>(s, rest) ["stem/flat"] l = Reshape(f, r)
          ["stem/tokens"] y = Transpose <perm = [0, 2, 1]>(l) }""",
        opset=20,
        k=np.ones((16, 3, 4, 4), np.float32),
        rest=np.array([-1]),
    )
    for target, version in EVERY_VERSION:
        assert preflight(model, target, version) == ()


def test_an_operator_is_known_from_the_version_on_that_added_it(graph):
    model = graph("(float[4,8] x, float[8] w) => (float[4,8] y) { [a] y = RMSNormalization(x, w) }", opset=23)
    assert any("does not have RMSNormalization" in item.what for item in preflight(model, "tensorrt", "10.14.1"))
    assert not [item for item in preflight(model, "tensorrt", "10.15.1.29") if item.level == "error"]
    assert "Attention" not in operators_of("tensorrt", "10.13.3.9").types
    assert operators_of("tensorrt", "12.0").types == operators_of("tensorrt", "11.5").types


def test_a_newer_opset_than_documented_is_a_warning(graph):
    model = graph("(float[4] x) => (float[4] y) { [a] y = Relu(x) }", opset=23)
    (found,) = preflight(model, "tensorrt", "10.3")
    assert (found.level, "opset 23" in found.what) == ("warning", True)
    assert preflight(model, "tensorrt", "10.14") == ()


@pytest.mark.parametrize(
    ("target", "version"), [("tensorrt", "8.6.1"), ("tensorrt-rtx", "0.9"), ("openvino", "2026.4")]
)
def test_what_has_no_table_is_refused(target, version, graph):
    with pytest.raises(ExportError, match=r"newer|targets are"):
        preflight(graph("(float[4] x) => (float[4] y) { [a] y = Relu(x) }"), target, version)


def test_a_file_keeps_the_types_that_are_looked_at(graph, tmp_path):
    text, constants, (node, _, what, _) = FAULTS["float64"]
    ir.save(graph(text, **constants), tmp_path / "graph.onnx")
    found = preflight_file(tmp_path / "graph.onnx", "tensorrt", "==11.0")["11.0"]
    assert node in [item.node for item in found if what in item.what]


def test_a_file_is_checked_for_every_version_that_it_serves(graph, tmp_path):
    ir.save(graph(SAMPLE, opset=20), tmp_path / "graph.onnx")
    found = preflight_file(tmp_path / "graph.onnx", "tensorrt", ">=10.13,<11")
    assert list(found) == ["10.13", "10.14", "10.15"]
    assert explain_findings(found).startswith("preflight for 10.13, 10.14, 10.15: dec/sample in dec: GridSample")
    assert preflight_file(tmp_path / "graph.onnx", "openvino", ">=2025.0") == {}
    assert explain_findings({}) == ""


# -- every family ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def families(config_folder, tmp_path_factory):
    """family -> its networks' traced graphs, tiny and of seeded weights."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from edgevtx.export.checkpoint import Checkpoint
    from edgevtx.export.recipe import BuildOptions, get_recipe
    from edgevtx.export.trace import trace_all
    from tests.export.onnx_files import tiny_file

    @cache
    def make(family):
        if family == "onnx":
            source = tiny_file(tmp_path_factory.mktemp("onnx"))
        else:
            source = Checkpoint.open(config_folder(family), seed=0)
        return trace_all(get_recipe(family).build(source, BuildOptions()))

    return make


def every_family():
    recipe = pytest.importorskip("edgevtx.export.recipe")
    return sorted(recipe.FAMILIES)


@pytest.mark.parametrize("family", every_family())
@pytest.mark.parametrize("target", TARGETS)
def test_every_familys_tiny_graphs_pass_for_every_version_in_every_precision(target, family, families):
    for part, model in families(family).items():
        for lowered in lower(model, target):
            for version in versions(target):
                errors = [str(item) for item in preflight(lowered.model, target, version) if item.level == "error"]
                assert errors == [], (part, lowered.precisions, version)


def test_a_verdict_fails_with_what_was_found(config_folder, tmp_path, monkeypatch):
    """A target whose rewrites leave Attention as it is: TensorRT 10.3 does not have it."""
    pytest.importorskip("transformers")
    from edgevtx.export.checkpoint import Checkpoint
    from edgevtx.export.pipeline import ExportOptions, export

    monkeypatch.setitem(VARIANTS, "tensorrt", (Variant("", ">=10.3", ("fp32",), COMMON),))
    options = ExportOptions(targets=("tensorrt",))
    report = export("vit", Checkpoint.open(config_folder("vit"), seed=0), tmp_path / "vit.vtx", options)
    (verdict,) = report.refused
    assert (verdict.status, report.bundle) == ("failed", None)
    assert verdict.reason.startswith("preflight for 10.3, 10.4, 10.5, 10.12, 10.13: model.vit.layers.0.attention/")
    assert "in model.vit.layers.0.attention: tensorrt does not have Attention; leave it out" in verdict.reason


@pytest.mark.parametrize("words", ["GridSample in deformable attention", "Attention as one operator"])
def test_without_the_remedies_deformable_attention_does_not_pass(words, families, monkeypatch):
    monkeypatch.setitem(VARIANTS, "tensorrt", (Variant("", ">=10.3", ("fp32",), COMMON),))
    (lowered,) = lower(families("rtdetr")[""], "tensorrt", ("fp32",))
    found = [item for item in preflight(lowered.model, "tensorrt", "11.1") if words in item.what]
    assert {item.level for item in found} == {"error"}
    assert all(item.module.startswith("model.") for item in found)


def test_deformable_attention_as_gathers_answers_the_same(families, graph_runner):
    """RT-DETR's own graph, whole: each GridSample of its decoder."""
    (lowered,) = lower(families("rtdetr")[""], "openvino")
    gathers = lowered.model.clone()
    assert gather_grid_sample(gathers) > 1
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.integers(0, 256, list(value.shape), dtype=np.uint8) for value in lowered.model.graph.inputs
    }
    expected, found = (graph_runner(model, "onnxruntime", feeds) for model in (lowered.model, gathers))
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
