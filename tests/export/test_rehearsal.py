"""Half precision is rehearsed without a device: overflow shows, has a name, and is taken out."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from edgevtx.compare.tolerance import TOLERANCES, error_of  # noqa: E402
from edgevtx.export import ladder, pipeline  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.evaluate import open_model  # noqa: E402
from edgevtx.export.ladder import Evidence, from_evidence  # noqa: E402
from edgevtx.export.ranges import measure_ranges  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.rehearsal import Rehearsal, block_of, rehearse, simulate, widen  # noqa: E402
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.rewrite.low_precision import TYPES, lower_precision  # noqa: E402
from edgevtx.export.rewrite.patterns import precisions_of  # noqa: E402
from edgevtx.export.samples import load_photos  # noqa: E402
from edgevtx.export.trace import trace  # noqa: E402
from edgevtx.export.verify import make_samples, verify_graph  # noqa: E402
from edgevtx.golden import Exchange  # noqa: E402
from edgevtx.manifest import Graph  # noqa: E402

# -- what ONNX Runtime does ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value", "rounded"), [
    (10, 70000.0, np.inf), (10, 1.0003, 1.0), (10, 1e-9, 0.0), (10, 0.5, 0.5), (16, 70000.0, 70144.0),
    (16, 1.003, 1.0),
])  # fmt: skip
def test_a_pair_of_casts_is_kept_where_nothing_is_optimised(kind, value, rounded, graph):
    model = graph(f"(float[1] x) => (float[1] y) {{ low = Cast <to = {kind}>(x) y = Cast <to = 1>(low) }}")
    assert open_model(model)({"x": np.float32([value])})["y"].tolist() == [rounded]


def test_the_graph_of_half_precision_itself_shows_no_overflow(graph):
    """Why there is a rehearsal: ONNX Runtime computes 300 * 300 / 1000 in float32, where a device gives infinity."""
    model = graph(
        """(float[1] x) => (float[1] y)
        { h = Cast <to = 10>(x) t = Cast <to = 10>(thousandth) s = Mul(h, h) m = Mul(s, t) y = Cast <to = 1>(m) }""",
        thousandth=np.float32(1e-3),
    )
    feeds = {"x": np.float32([300])}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    assert session.run(None, feeds)[0][0] == pytest.approx(90, rel=0.01)
    assert open_model(simulate(model))(feeds)["y"][0] == np.inf
    assert open_model(widen(model))(feeds)["y"][0] == pytest.approx(90)


# -- operators that are several --------------------------------------------------------------------------------

COMPOSITES = {
    "LayerNormalization": "LayerNormalization <axis = -1, epsilon = 0.001>(l, s, b)",
    "LayerNormalization over two axes": "LayerNormalization <axis = 1>(l, s2)",
    "Softmax": "Softmax <axis = 1>(l)",
    "Gelu": "Gelu(l)",
    "Gelu, tanh": 'Gelu <approximate = "tanh">(l)',
    "HardSwish": "HardSwish(l)",
    "Attention": "Attention(heads, heads, heads)",
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_runs_low_is_rounded_on_its_way_and_stays_near(name, graph):
    call = COMPOSITES[name]
    heads = "four = Unsqueeze(l, axis) heads = Identity(four)" if name == "Attention" else ""
    end = "o = Squeeze(r, axis)" if name == "Attention" else "o = Identity(r)"
    model = graph(
        f"""(float[2,5,8] x) => (float[2,5,8] y)
        {{ l = Cast <to = 10>(x) s = Cast <to = 10>(fs) b = Cast <to = 10>(fb) s2 = Cast <to = 10>(fs2) {heads}
          r = {call} {end} y = Cast <to = 1>(o) }}""",
        fs=np.full(8, 1.1, np.float32), fb=np.full(8, 0.1, np.float32), fs2=np.full((5, 8), 0.9, np.float32),
        axis=np.int64([1]),
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)}
    trial = simulate(model)
    assert name.split()[0].strip(",") not in {node.op_type for node in trial.graph}
    error = error_of(open_model(widen(model))(feeds)["y"], open_model(trial)(feeds)["y"])
    assert 1e-5 < error < 5e-3


def test_a_norm_in_half_precision_overflows_in_its_squares(graph):
    """What broke detectors in the field: the output is of order 1, and the squares on the way are above 65504."""
    text = """(float[1,8] x) => (float[1,8] y)
        { l = Cast <to = 10>(x) s = Cast <to = 10>(fs) [model.norm/LayerNormalization] n = LayerNormalization(l, s)
          y = Cast <to = 1>(n) }"""
    scale = np.ones(8, np.float32)
    try:
        model = graph(text, fs=scale)
    except Exception:  # a name that ONNX's text form cannot have
        model = graph(text.replace("[model.norm/LayerNormalization]", "[norm]"), fs=scale)
    feeds = [{"x": np.float32([[900, -900, 800, -800, 1, 2, 3, 4]])}]
    exact = widen(model)
    assert np.abs(open_model(exact)(feeds[0])["y"]).max() < 3
    assert sum(rehearse(exact, model, "fp16", feeds).overflows.values()) == 1  # and not what follows from it
    small = [{"x": feeds[0]["x"] / 8}]
    assert not rehearse(exact, model, "fp16", small).overflows


# -- blocks ----------------------------------------------------------------------------------------------------


def test_a_block_is_a_module_to_its_last_number():
    assert block_of("vit.encoder.layer.3.attention.query/MatMul_1") == "vit.encoder.layer.3"
    assert block_of("head.mlp.2/Gemm") == "head.mlp.2"
    assert block_of("classifier/Gemm/bias") == "classifier"
    assert block_of("MatMul_4") == "MatMul_4"


SCALE = 60000.0  # of values; a factor that half precision cannot hold would be seen without a rehearsal


def planted(built):
    """The ViT, its second layer's values `SCALE` times as large, and scaled back before they leave attention; and the
    block's name."""
    modules = dict(built.module.named_modules())
    value = next(name for name in modules if name.endswith(("1.attention.attention.value", "1.attention.v_proj")))
    back = next(name for name in modules if name.endswith(("1.attention.output.dense", "1.attention.o_proj")))
    with torch.no_grad():
        modules[value].weight *= SCALE
        modules[value].bias *= SCALE
        modules[back].weight /= SCALE
    return built, block_of(value)


@pytest.fixture(scope="module")
def vit(config_folder):
    """The ViT with a planted overflow: (traceable, block, float32 graph, its exchanges)."""
    checkpoint = Checkpoint.open(config_folder("vit"), seed=0)
    built, block = planted(get_recipe("vit").build(checkpoint, BuildOptions()))
    (exact,) = (graph.model for graph in lower(trace(built), "tensorrt", ["fp32"]))
    samples = list(make_samples(built, load_photos(None)))
    return built, block, exact, [exchange for sample in samples for exchange in sample.exchanges("")]


def typed(exact, precision="fp16", **options):
    model = exact.clone()
    assert lower_precision(model, precision, {}, **options)
    assert precisions_of(model) == (precision,)
    return model


def test_the_planted_overflow_shows_in_the_rehearsal_alone_and_names_its_block(vit):
    _, block, exact, exchanges = vit
    model = typed(exact)
    feeds = [exchange.inputs for exchange in exchanges[:1]]
    found = rehearse(exact, model, "fp16", feeds)
    assert found.diverging == (block,)
    assert not np.isfinite(found.outputs[0]["scores"]).all()
    # the float32 graph never sees it, and what the CPU makes of the half-precision graph may not
    assert np.isfinite(open_model(exact)(feeds[0])["scores"]).all()


def test_bfloat16_has_the_range(vit):
    _, _, exact, exchanges = vit
    found = rehearse(exact, typed(exact, "bf16"), "bf16", [exchanges[0].inputs])
    assert not found.overflows
    assert max(found.errors.values()) < TOLERANCES["bf16"].values


def test_the_block_in_float32_passes(vit):
    _, block, exact, exchanges = vit
    model = typed(exact, keep=[f"^{block}[./]"])
    found = rehearse(exact, model, "fp16", [exchange.inputs for exchange in exchanges[:2]])
    assert not found.diverging
    for exchange, outputs in zip(exchanges, found.outputs, strict=False):
        assert error_of(exchange.outputs["scores"], outputs["scores"]) < TOLERANCES["fp16"].values


def test_the_ladder_finds_the_block_that_measuring_missed(vit, monkeypatch):
    built, block, exact, exchanges = vit
    monkeypatch.setattr(ladder, "measure_ranges", lambda model, feeds: {})
    found = from_evidence(Evidence(exchanges, built.decode))(exact, ["fp16", "bf16"])
    assert found["fp16"].kept_fp32 == (block,)
    assert found["bf16"].kept_fp32 == ()
    assert not rehearse(exact, found["fp16"].model, "fp16", [exchanges[0].inputs]).diverging
    assert inside(found["fp16"].model, block) == {"FLOAT"}
    assert "FLOAT16" in inside(found["fp16"].model, block.replace("1", "0"))


def inside(model, block):
    """The types of the products of a block."""
    return {
        node.outputs[0].dtype.name
        for node in model.graph
        if node.op_type in ("Gemm", "MatMul") and block_of(node.name) == block
    }


def test_what_was_measured_needs_no_ladder(vit):
    built, block, exact, exchanges = vit
    found = from_evidence(Evidence(exchanges, built.decode))(exact, ["fp16"])["fp16"]
    assert found.kept_fp32 == ()
    assert inside(found.model, block) == {"FLOAT", "FLOAT16"}  # of the block only what grows so large
    assert not rehearse(exact, found.model, "fp16", [exchanges[0].inputs]).diverging


@pytest.mark.parametrize("precision", TYPES)
def test_wide_again_a_typed_graph_is_the_graph_it_was_made_of(precision, vit):
    _, _, exact, exchanges = vit
    feeds = exchanges[0].inputs
    expected, found = (open_model(model)(feeds) for model in (exact, widen(typed(exact, precision))))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


@pytest.mark.parametrize("precision", TYPES)
def test_a_file_that_quantises_itself_is_exported_in_half_precision(precision, graph, tmp_path):
    exact = graph(
        """(float[5,8] x) => (float[5,8] y)
        { ["m.0/q"] q = QuantizeLinear(x, s, z) ["m.0/d"] d = DequantizeLinear(q, s, z)
          ["m.0/product"] p = MatMul(d, w) ["m.1/norm"] y = LpNormalization(p) }""",
        s=np.float32(0.05), z=np.zeros((), np.int8), w=np.eye(8, dtype=np.float32) / 3,
    )  # fmt: skip
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)}
    evidence = Evidence([Exchange(feeds, open_model(exact)(feeds))], None)
    model = from_evidence(evidence)(exact, [precision])[precision].model
    assert rehearse(exact, model, precision, [feeds]).precision == precision
    ir.save(model, tmp_path / "low.onnx")
    facts = {"target": "tensorrt", "variant": "", "versions": ">=10.3", "opset": 20}
    manifest = SimpleNamespace(decode_of=lambda part: None, noise={})
    for stated, passed in ((precision, True), ("bf16" if precision == "fp16" else "fp16", False)):
        checks = verify_graph(tmp_path, Graph(file="low.onnx", precisions=(stated,), **facts), (), manifest)
        assert all(check.passed for check in checks) == passed


# -- int8 ------------------------------------------------------------------------------------------------------

OUTLIER = 3000.0


@pytest.fixture(scope="module")
def outlier(config_folder):
    """The ViT whose second layer's values have one channel `OUTLIER` times as large, which its output projection takes
    back: (traceable, block, float32 graph, its exchanges). What it computes is the same; half precision bears it."""
    built = get_recipe("vit").build(Checkpoint.open(config_folder("vit"), seed=0), BuildOptions())
    modules = dict(built.module.named_modules())
    value = next(name for name in modules if name.endswith("1.attention.v_proj"))
    with torch.no_grad():
        modules[value].weight[0] *= OUTLIER
        modules[value].bias[0] *= OUTLIER
        modules[value.replace("v_proj", "o_proj")].weight[:, 0] /= OUTLIER
    (exact,) = (graph.model for graph in lower(trace(built), "tensorrt", ["fp32"]))
    samples = list(make_samples(built, load_photos(None)))
    return built, block_of(value), exact, [exchange for sample in samples for exchange in sample.exchanges("")]


def quantised(model):
    """How many products of each block read int8."""
    pairs = [node for node in model.graph if node.op_type in ("Gemm", "MatMul") and _read_int8(node)]
    return Counter(block_of(node.name) for node in pairs)


def _read_int8(node):
    return all(
        value.producer() is not None and value.producer().op_type == "DequantizeLinear" for value in node.inputs[:2]
    )


def test_the_ladder_leaves_the_block_of_an_outlier_unquantised(outlier):
    built, block, exact, exchanges = outlier
    found = from_evidence(Evidence(exchanges, built.decode))(exact, ["int8"])["int8"]
    assert (found.kept_fp32, found.unquantised) == ((), (block,))
    assert block not in quantised(found.model) and quantised(found.model)[block.replace("1", "0")] == 6
    assert "FLOAT16" in inside(found.model, block)
    assert not rehearse(exact, found.model, "int8", [exchanges[0].inputs]).diverging


def test_verification_sees_frames_that_no_scale_was_chosen_on(monkeypatch):
    """Of a further network too, which is asked several times of each frame."""
    given = [Exchange({"x": np.float32([n])}, {}) for n in range(8)]
    samples = [SimpleNamespace(clear=True, exchanges=lambda part, n=n: given[2 * n : 2 * n + 2]) for n in range(4)]
    network, options = SimpleNamespace(decode=None), pipeline.ExportOptions(targets=("tensorrt",))
    evidence, limited = [], []
    monkeypatch.setattr(pipeline, "from_evidence", evidence.append)
    monkeypatch.setattr(pipeline, "lower", lambda *args: ())
    pipeline._lower("decoder", None, SimpleNamespace(parts={"decoder": network}), samples, options)
    chosen_on = [given[index].inputs for index in (0, 1, 4, 5)]
    assert evidence[0].calibration == chosen_on and evidence[0].exchanges == given

    monkeypatch.setattr(ladder, "measure_ranges", lambda model, feeds: [*feeds])
    monkeypatch.setattr(ladder, "choose_limits", lambda model, feeds, ranges, names: limited.extend((feeds, ranges)))
    monkeypatch.setattr(ladder, "activations", lambda model: [])
    monkeypatch.setattr(ladder, "_climb", lambda *args, **kwargs: (None, ()))
    from_evidence(evidence[0])(None, ["int8"])
    assert limited == [chosen_on, chosen_on]


def test_an_outlier_that_nothing_saves_names_its_block(outlier, monkeypatch):
    built, block, exact, exchanges = outlier
    monkeypatch.setattr(ladder, "RUNGS", 1)
    model = from_evidence(Evidence(exchanges, built.decode))(exact, ["int8"])["int8"].model
    assert quantised(model)[block] == 6
    assert rehearse(exact, model, "int8", [exchanges[0].inputs]).diverging == (block,)


@pytest.mark.parametrize(("errors", "left_out"), [
    ({"m.0": 0.02, "m.1": 0.17, "m.2": 0.3, "m.3": 0.9}, ("m.1",)),  # m.2 only hands on what it was given
    ({"m.0": 0.02, "m.1": 0.1, "m.2": 0.1, "m.3": 0.3}, ("m.3",)), ({"m.0": 0.06, "m.1": 0.15}, ("m.1",)),
    ({"m.2": 0.3}, ()),
])  # fmt: skip
def test_of_what_quantises_the_block_that_adds_most_is_left_out(errors, left_out, graph):
    pair = "QuantizeLinear(x, s)"
    model = graph(
        f"""(float[2] x) => (uint8[2] a, uint8[2] b, float[2] c, uint8[2] d)
        {{ ["m.0/q"] a = {pair} ["m.1/q"] b = {pair} ["m.2/r"] c = Relu(x) ["m.3/q"] d = {pair} }}""",
        s=np.float32(1),
    )
    assert ladder._worst(Rehearsal("int8", errors, {}, ()), model) == left_out
    assert ladder._worst(Rehearsal("int8", errors, {"m.2": 1}, ()), model) == ("m.2",)
    first = tuple(block for block, error in errors.items() if error > TOLERANCES["fp16"].values)[:1]
    assert ladder._worst(Rehearsal("fp16", errors, {}, ()), model) == first


def test_int8_keeps_in_float32_what_half_precision_had_to(vit, monkeypatch):
    built, block, exact, exchanges = vit
    monkeypatch.setattr(ladder, "measure_ranges", hide_sizes(block))
    found = from_evidence(Evidence(exchanges, built.decode))(exact, ["int8"])["int8"]
    assert found.kept_fp32 == (block,)
    assert inside(found.model, block) == {"FLOAT"}
    assert block not in quantised(found.model)


def hide_sizes(block):
    """Measuring that misses what is large in a block."""

    def measure(model, feeds):
        return {name: item for name, item in measure_ranges(model, feeds).items() if block_of(name) != block}

    return measure
