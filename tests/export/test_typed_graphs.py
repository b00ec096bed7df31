"""The typed graphs of whole families: valid, over the weights of the float32 graph, float32 where it matters, and
accepted by TensorRT-RTX's parser and builder, which need no GPU."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from edgevtx.bundle import Bundle  # noqa: E402
from edgevtx.cli import cli  # noqa: E402
from edgevtx.export import judge, pipeline  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.operators import versions  # noqa: E402
from edgevtx.export.pack import write_graphs  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.preflight import preflight  # noqa: E402
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.rewrite import lower  # noqa: E402
from edgevtx.export.rewrite.edit import made_by  # noqa: E402
from edgevtx.export.rewrite.low_precision import TYPES, Typed, by_operators  # noqa: E402
from edgevtx.export.rewrite.quantize import activations, int8_share, quantize  # noqa: E402
from edgevtx.export.trace import trace_all  # noqa: E402
from edgevtx.runtimes.base import EngineOptions, Probe  # noqa: E402
from edgevtx.runtimes.plan import PLAN, read_plan  # noqa: E402
from edgevtx.runtimes.trt_build import build_plan  # noqa: E402
from tests.export.onnx_files import tiny_file  # noqa: E402

# precision -> the type of most products in a plan's record
LOW = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "i8"}

# trained: detectors of random weights answer another set of boxes for the least difference
FIRE = Path(__file__).parents[2] / "samples" / "forest_fire" / "checkpoint"

NORMS = ("LayerNormalization", "InstanceNormalization", "ReduceMean", "ReduceSum", "Softmax")
# operators that need float32 inputs and outputs wherever they are
EXACT = (*NORMS, "GridSample", "Log", "TopK", "ArgMax", "Sin", "Cos", "Exp", "Sqrt", "Div")


@pytest.fixture(scope="module")
def traced(config_folder, tmp_path_factory):
    """traced(family) -> (its tiny traceable, {part: traced graph}), once."""

    @cache
    def make(family):
        if family == "onnx":
            source = tiny_file(tmp_path_factory.mktemp("onnx"))
        else:
            source = Checkpoint.open(config_folder(family), seed=0)
        built = get_recipe(family).build(source, BuildOptions())
        return built, trace_all(built)

    return make


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def network(request, traced, tmp_path_factory):
    """A family's tiny networks in all precisions: (family, {part: {precision: model}}, folder, its graphs)."""
    _, networks = traced(request.param)
    lowered = {part: lower(model, "tensorrt-rtx", give_types=typed) for part, model in networks.items()}
    folder = tmp_path_factory.mktemp(request.param)
    graphs = write_graphs(lowered, folder)
    models = {part: {graph.precisions[0]: graph.model for graph in found} for part, found in lowered.items()}
    return request.param, models, folder, graphs


def typed(exact, precisions, limit=4.0):
    """Half precision by operators, and int8 with limits out of the air; nothing is measured or tried."""
    model = exact.clone()
    quantize(model, {}, dict.fromkeys(activations(exact), limit))
    return {**by_operators(exact, precisions), "int8": Typed(model)}


def quantised(model):
    """The products that read two dequantised tensors."""
    products = [node for node in model.graph if node.op_type in PRODUCTS and len(node.inputs) > 1]
    return [node for node in products if all(made_by(value, "DequantizeLinear") for value in node.inputs[:2])]


# precision -> the type of what computes in neither float32 nor int8
HALF_TYPES = {**TYPES, "int8": TYPES["fp16"]}


def each(network):
    """(part, precision, graph) of every typed graph of a family."""
    for part, found in network[1].items():
        for precision in HALF_TYPES:
            yield part, precision, found[precision]


def test_typed_graphs_are_valid_and_small(network):
    """`write_graphs` has ONNX's checker look at each; this looks at the types of all values as well."""
    _, _, folder, graphs = network
    assert {graph.precisions for graph in graphs} == {("fp32",), ("fp16",), ("bf16",), ("int8",)}
    weights = (folder / "weights.bin").stat().st_size
    exact = sum(
        value.const_value.nbytes
        for part in network[1].values()
        for value in part["fp32"].graph.initializers.values()
        if value.const_value.nbytes >= 1024
    )
    padding = 4096 * sum(len(part["fp32"].graph.initializers) for part in network[1].values())
    assert weights <= exact + padding, "the typed graphs bring no weights of their own"
    for graph in graphs:
        onnx.checker.check_model(str(folder / graph.file), full_check=True)
        assert not [item for item in ir.load(folder / graph.file).graph.inputs if item.dtype.name == "FLOAT16"]


def test_most_products_run_low_and_what_needs_its_digits_does_not(network):
    for part, precision, model in each(network):
        products = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
        low = [node for node in products if node.outputs[0].dtype == HALF_TYPES[precision]]
        assert len(low) >= 0.9 * len(products), (part, precision)
        for node in model.graph:
            if node.op_type in EXACT:
                types = {value.dtype.name for value in (*node.inputs, *node.outputs) if value and value.dtype}
                assert not types & {"FLOAT16", "BFLOAT16"}, node.name


def test_no_operator_mixes_types(network):
    """As strongly typed networks ask; ONNX's checker does not look at it."""
    for part, precision, model in each(network):
        for node in model.graph:
            inputs = node.inputs[:1] if node.op_type == "Resize" else node.inputs  # its scales are always float32
            kinds = {value.dtype.name for value in (*inputs, *node.outputs) if value is not None and value.dtype}
            assert node.op_type == "Cast" or len(kinds & {"FLOAT", *HALVES}) < 2, (part, precision, node.name)


# family, part -> what gives boxes, classes, scores and places to sample
HEADS = {
    ("detr", ""): ("bbox", "class_labels"),
    ("detr_panoptic", ""): ("bbox", "class_labels"),
    ("rtdetr", ""): ("bbox", "class_embed", "sampling_offsets", "enc_score", "query_pos_head"),
    ("sam", "decoder"): ("judge.",),
}


def test_int8_quantises_products_with_weights_and_neither_attention_nor_heads(network):
    for part, found in network[1].items():
        model = found["int8"]
        products = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
        reading = [node for node in products if made_by(node.inputs[0], "DequantizeLinear")]
        assert len(reading) >= 0.3 * len(products), part
        for node in reading:
            weight = made_by(made_by(node.inputs[1], "DequantizeLinear").inputs[0], "QuantizeLinear").inputs[0]
            assert made_by(weight, "Cast").inputs[0].name in model.graph.initializers
        for head in HEADS.get((network[0], part), ()):
            assert [node for node in products if head in node.name], head
            assert not [node.name for node in reading if head in node.name]
        pairs = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        assert all(use.node in reading for pair in pairs for use in pair.outputs[0].uses())
        assert quantised(model) == reading
        for version in versions("tensorrt-rtx"):
            assert not [item for item in preflight(model, "tensorrt-rtx", version) if item.level == "error"]


def test_int8_is_symmetric_and_back_with_what_it_was_quantised_with(network):
    for found in network[1].values():
        pairs = [node for node in found["int8"].graph if node.op_type == "DequantizeLinear"]
        assert pairs
        for back in pairs:
            whole = made_by(back.inputs[0], "QuantizeLinear")
            assert whole.inputs[1:] == back.inputs[1:]
            (axis,) = {axis_of(node) for node in (whole, back)}
            scale, zero = (value.const_value for value in back.inputs[1:])
            assert zero.dtype.name == "INT8" and zero.shape == scale.shape and not zero.numpy().any()
            assert (scale.numpy() > 0).all() and np.isfinite(scale.numpy()).all()
            reader = next(iter(back.outputs[0].uses())).node
            is_weight = made_by(reader.inputs[1], "DequantizeLinear") is back
            assert is_weight == (axis is not None)  # one scale of an activation, one an output channel of weights
            assert tuple(scale.shape) == ((back.outputs[0].shape[axis],) if is_weight else ())


def axis_of(node):
    return node.attributes["axis"].as_int() if "axis" in node.attributes else None


def test_inputs_and_outputs_are_those_of_the_exact_graph(network):
    for exact, model in [(models["fp32"], model) for models in network[1].values() for model in models.values()]:
        for side in ("inputs", "outputs"):
            describe = [(item.name, item.dtype, str(item.shape)) for item in getattr(model.graph, side)]
            assert describe == [(item.name, item.dtype, str(item.shape)) for item in getattr(exact.graph, side)]


# -- what stays in float32, by family --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fp16(traced):
    """fp16(family, part="") -> the tiny network in half precision, by its operators alone."""

    def make(family, part=""):
        (graph,) = lower(traced(family)[1][part], "tensorrt", ["fp16"])
        return graph.model

    return make


PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
HALVES = {"FLOAT16", "BFLOAT16"}
# operator -> its input whose every digit counts: a logit, a place, an index, a phase
USES = {"ArgMax": 0, "Cos": 0, "Floor": 0, "GridSample": 1, "Log": 0, "Sin": 0, "Softmax": 0, "TopK": 0}


def before(values):
    """Every node that leads to the values from the last products (or norms, softmax, sums, integers, inputs) on."""
    found, waiting = {}, list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        # casts between floats are passed: what is behind them may be low
        ends = node is not None and node.op_type == "Cast" and node.inputs[0].dtype.name not in {"FLOAT", *HALVES}
        if node is None or node in found or ends or node.op_type in (*PRODUCTS, *NORMS):
            continue
        found[node] = None
        waiting += node.inputs
    return list(found)


def halves(found):
    """The nodes that compute in half precision; a cast does not."""
    low = (node for node in found if HALVES & {value.dtype.name for value in node.outputs if value.dtype})
    return [node.name for node in low if node.op_type != "Cast"]


def reads(model, op_type, index=0):
    return [node.inputs[index] for node in model.graph if node.op_type == op_type]


def test_what_counts_to_the_last_digit_is_float32_from_its_last_product_on(network):
    """Of every family: attention scores with their biases and masks, boxes, places to sample, phases of positions."""
    for part, precision, model in each(network):
        uses = [node.inputs[USES[node.op_type]] for node in model.graph if node.op_type in USES]
        assert not halves(before([*uses, *model.graph.outputs])), (part, precision)


@pytest.mark.parametrize("family", ["vit", "detr", "rtdetr"])
def test_attention_scores_are_float32_between_the_products(family, fp16):
    model = fp16(family)
    scores = reads(model, "Softmax")
    assert scores and not halves(before(scores))
    products = {value.producer().inputs[0].producer().op_type for value in scores if value.producer().op_type == "Cast"}
    assert products <= {"MatMul", "Mul", "Gemm"}


@pytest.mark.parametrize("family", ["detr", "rtdetr"])
def test_boxes_are_float32_from_their_last_product_on(family, fp16):
    model = fp16(family)
    found = before([value for value in model.graph.outputs if value.name in ("boxes", "scores")])
    assert {"Sigmoid", "Softmax"} & {node.op_type for node in found}
    assert not halves(found)


@pytest.mark.parametrize("family", ["swin", "sam"])
def test_position_terms_are_added_to_scores_in_float32(family, fp16):
    """Swin's bias table, the relative positions of SAM's encoder."""
    model = fp16(family)
    scores = [node.inputs[0] for node in model.graph if node.op_type == "Softmax" and "ttention" in node.name]
    added = [[node for node in before([value]) if node.op_type == "Add"] for value in scores]
    assert added and all(added)
    assert not halves(node for found in added for node in found)


def test_detrs_sine_positions_are_float32(fp16):
    model = fp16("detr")
    waves = [node for node in model.graph if node.op_type in ("Sin", "Cos")]
    assert waves and not halves([*waves, *before(value for node in waves for value in node.inputs)])


def test_rtdetr_refines_and_samples_in_float32(fp16):
    model = fp16("rtdetr")
    logarithms, places = reads(model, "Log"), reads(model, "Floor")  # sampling is by gathers around these
    assert logarithms and places
    found = before([*logarithms, *places])
    assert {"Sigmoid", "Clip"} <= {node.op_type for node in found}
    assert not halves(found)


def test_sams_decoder_encodes_places_in_float32(fp16):
    model = fp16("sam", "decoder")
    waves = [*reads(model, "Sin"), *reads(model, "Cos")]
    assert waves
    for value in waves:  # and the product with the frequencies
        node = value.producer()
        while node.op_type not in ("MatMul", "Gemm"):
            assert node.outputs[0].dtype.name == "FLOAT"
            node = next(item.producer() for item in node.inputs if item.producer() is not None)
        assert node.outputs[0].dtype.name == "FLOAT"
    assert not halves(before(list(model.graph.outputs)))


# -- TensorRT-RTX ----------------------------------------------------------------------------------------------


def test_tensorrt_rtx_compiles_every_graph_for_two_generations_of_gpus(network, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    _, models, folder, graphs = network

    def compiled(index, graph, gpu):
        out = tmp_path / str(index)
        out.mkdir()
        (precision,) = graph.precisions
        build_plan("tensorrt_rtx", folder / graph.file, out, EngineOptions(precision, gpu=gpu))
        record = read_plan(out / PLAN)
        low = LOW[precision]
        rest = {"f16"} if precision == "int8" else set()
        assert {layer.type for layer in record.layers} <= {low, *rest, "f32", "i32", "i64", "bool"}
        if precision == "int8":
            model = models[graph.part]["int8"]
            assert sum(layer.type == "i8" for layer in record.layers) == len(quantised(model)) > 0
            assert record.precision_share["i8"] == pytest.approx(int8_share(model), abs=0.05)
        else:
            assert record.precision_share[low] > 0.5  # tiny: their stems weigh more
        return record.sha256

    cases = [(index, *case) for index, case in enumerate(product(graphs, ("sm86", "sm120")))]  # Ampere, Blackwell
    with ThreadPoolExecutor(2) as pool:  # each compiles in a process of its own
        plans = list(pool.map(compiled, *zip(*cases, strict=True)))
    assert len(set(plans)) == len(plans)


# -- from a checkpoint to a bundle -----------------------------------------------------------------------------


EVERY = ("fp16", "bf16", "int8", "fp32")


@pytest.mark.parametrize(
    ("family", "precisions"),
    [("vit", EVERY), ("rtdetr", EVERY), ("sam", ("fp16", "bf16", "fp32"))],  # masks of random weights bear no int8
    ids=["vit", "rtdetr", "sam"],
)
def test_a_bundle_has_a_graph_for_each_precision_of_a_target_that_is_not_here(
    family, precisions, config_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(judge, "probe", lambda target: Probe(target, available=False, reason="no GPU"))
    options = ExportOptions(targets=("tensorrt-rtx",), precisions=precisions)
    checkpoint = Checkpoint.open(config_folder(family), seed=0) if family != "rtdetr" else Checkpoint.open(FIRE)
    report = export(family, checkpoint, tmp_path / "half.vtx", options)
    found = {item.precision: item for item in report.manifest.verdicts}
    if family == "vit":  # of random weights: within int8's limit of another image's answer
        assert found["int8"].status == "insensitive"
        assert "0.15 standard deviations only (more than 0.2 are needed)" in found["int8"].reason
        precisions = ("fp16", "bf16", "fp32")
    assert [name for name, item in found.items() if item.status == "graph-only"] == [*precisions]
    assert report.manifest.recommended == {"tensorrt-rtx": "fp16"}
    files = {graph.file for graph in report.manifest.graphs if not graph.part}
    ends = ("" if precision == "fp32" else f".{precision}" for precision in precisions)
    assert files == {f"graph.tensorrt-rtx{end}.onnx" for end in ends}
    if "int8" in precisions:
        compile_on_the_command_line(report.bundle, "int8", tmp_path)


def compile_on_the_command_line(bundle, precision, folder):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    asked = ["--target", "tensorrt-rtx", "--gpu", "sm86", "--precision", precision, "--out", str(folder / "plans")]
    found = CliRunner().invoke(cli, ["compile", str(bundle), *asked, "--json"])
    assert found.exit_code == 0, found.stderr
    (plan,) = json.loads(found.stdout)["plans"]
    assert (plan["gpu"], plan["precision"]) == ("sm86", precision) and plan["precision_share"]["i8"] > 0.25
    assert len(list((folder / "plans").glob(f"*.sm86.{precision}.*"))) == 2


def test_a_graph_that_overflows_is_refused_and_its_block_named(config_folder, tmp_path, monkeypatch):
    """Nothing is measured and no rung climbed: what would have saved the graph."""
    from tests.export.test_rehearsal import planted

    block = []

    def build(checkpoint, options):
        built, name = planted(vit.build(checkpoint, options))
        block.append(name)
        return built

    vit = get_recipe("vit")
    recipe = dataclasses.replace(vit, build=build)
    monkeypatch.setattr(pipeline, "get_recipe", lambda family: recipe)
    monkeypatch.setattr(pipeline, "from_evidence", lambda evidence: by_operators)
    monkeypatch.setattr(judge, "probe", lambda target: Probe(target, available=False, reason="no GPU"))
    options = ExportOptions(targets=("tensorrt",), precisions=("fp16", "fp32"))
    report = export("vit", Checkpoint.open(config_folder("vit"), seed=0), tmp_path / "half.vtx", options)
    assert [item.status for item in report.manifest.verdicts] == ["failed", "graph-only"]
    assert f"the first block that diverges is {block[0]}" in report.refused[0].reason
    assert {graph.precisions for graph in report.manifest.graphs} == {("fp32",)}


def test_int8_that_fails_is_refused_its_block_named_and_its_graph_not_packed(config_folder, tmp_path, monkeypatch):
    """Scales that cut off nearly all."""
    monkeypatch.setattr(judge, "probe", lambda target: Probe(target, available=False, reason="no GPU"))
    monkeypatch.setattr(pipeline, "from_evidence", lambda evidence: partial(typed, limit=1e-2))
    options = ExportOptions(targets=("tensorrt",), precisions=("int8", "fp16"))
    report = export("vit", Checkpoint.open(config_folder("vit"), seed=0), tmp_path / "low.vtx", options)
    assert [(item.precision, item.status) for item in report.refused] == [("int8", "failed")]
    assert "the first block that diverges is model.vit.layers.0" in report.refused[0].reason
    manifest = Bundle.open(report.bundle).manifest
    assert [graph.file for graph in manifest.graphs] == ["graph.tensorrt.fp16.onnx"]
    assert manifest.recommended == {"tensorrt": "fp16"}


def test_what_had_to_stay_in_a_higher_precision_is_said_of_the_graph(config_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "probe", lambda target: Probe(target, available=False, reason="no GPU"))
    monkeypatch.setattr(pipeline, "from_evidence", lambda evidence: keep_some)
    options = ExportOptions(targets=("tensorrt",), precisions=("fp16", "int8"), keep_failed=True)
    report = export("vit", Checkpoint.open(config_folder("vit"), seed=0), tmp_path / "half.vtx", options)
    graphs = Bundle.open(report.bundle).manifest.graphs
    assert [(graph.kept_fp32, graph.unquantised) for graph in graphs] == [
        (("classifier",), ()),
        (("classifier",), ("neck",)),
    ]


def keep_some(exact, precisions):
    found = typed(exact, precisions)
    return {
        name: dataclasses.replace(item, kept_fp32=("classifier",), unquantised=("neck",) if name == "int8" else ())
        for name, item in found.items()
    }
