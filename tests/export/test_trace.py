"""From torch modules to graphs: names, sizes, constants, what leaves no trace, and errors that name the culprit."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from edgevtx.errors import ExportError  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.pack import write_graphs  # noqa: E402
from edgevtx.export.recipe import FAMILIES, BuildOptions, Traceable, get_recipe  # noqa: E402
from edgevtx.export.rewrite import VARIANTS, lower  # noqa: E402
from edgevtx.export.trace import OPSET, example_inputs, trace  # noqa: E402
from edgevtx.manifest import TensorInfo  # noqa: E402
from edgevtx.rules import ClassifyDecode, Exact, Preprocess  # noqa: E402
from tests.export.onnx_files import STYLES, network  # noqa: E402

# -- small modules ---------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """Attention over tokens, with a position table that is computed on the way."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 8)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], dtype=torch.float32)[:, None] / torch.arange(1, 9)
        heads = self.project(tokens + places.sin()).unflatten(-1, (2, 4)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class Net(torch.nn.Module):
    """pixels -> tokens (N,T,8), grid (N,8,h,w)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(3, 8, 4, 4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.layer = Layer()

    def forward(self, pixels):
        grid = self.norm(self.patches(pixels.float().permute(0, 3, 1, 2) / 255))
        return self.layer(grid.flatten(2).transpose(1, 2)), grid


def traceable(module, *, batch=1, size=(12, 20), dynamic=None):
    """A recipe's answer around `module`, whose outputs are those of `Net`."""
    dynamic = dynamic or {}
    height, width = (None if axis in dynamic else length for axis, length in zip((1, 2), size, strict=True))
    rows, columns = (None if length is None else length // 4 for length in (height, width))
    tokens = None if rows is None or columns is None else rows * columns
    return Traceable(
        family="toy",
        task="classify",
        module=module,
        inputs=(TensorInfo(name="pixels", shape=(batch, height, width, 3), dtype="uint8"),),
        outputs=(
            TensorInfo(name="tokens", shape=(batch, tokens, 8), dtype="float32"),
            TensorInfo(name="grid", shape=(batch, 8, rows, columns), dtype="float32"),
        ),
        dynamic={"pixels": dynamic} if dynamic else {},
        trace_size=size,
        other_size=size,
        preprocess=Preprocess(
            size=Exact(height=12, width=20), interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1)
        ),
        decode=ClassifyDecode(top_k=1),
        labels=(),
        reference=None,
    )


@cache
def traced(kind="static"):
    options = {
        "static": {},
        "dynamic": {"batch": None, "dynamic": {0: "batch", 1: "height", 2: "width"}},
    }
    return trace(traceable(Net().train(), **options[kind]))


def run(model, pixels):
    session = pytest.importorskip("onnxruntime").InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"pixels": pixels})


def shapes(values):
    return {value.name: [size if isinstance(size, int) else str(size) for size in value.shape] for value in values}


def test_a_static_graph_has_the_names_and_sizes_of_the_recipe():
    model = traced()
    assert shapes(model.graph.inputs) == {"pixels": [1, 12, 20, 3]}
    assert shapes(model.graph.outputs) == {"tokens": [1, 15, 8], "grid": [1, 8, 3, 5]}
    assert model.opset_imports == {"": OPSET}


def test_dynamic_dimensions_are_named_and_no_others():
    model = traced("dynamic")
    assert shapes(model.graph.inputs) == {"pixels": ["batch", "height", "width", 3]}
    assert shapes(model.graph.outputs) == {
        "tokens": ["batch", "tokens_1", 8],
        "grid": ["batch", 8, "grid_2", "grid_3"],
    }


@pytest.mark.parametrize(
    ("kind", "shape"), [("static", (1, 12, 20, 3)), ("dynamic", (3, 16, 8, 3)), ("dynamic", (1, 40, 28, 3))]
)
def test_the_graph_computes_what_the_module_does(kind, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with torch.no_grad():
        expected = Net().eval()(torch.from_numpy(pixels))
    for found, wanted in zip(run(traced(kind), pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_attention_is_one_node_and_constants_are_folded():
    types = [node.op_type for node in traced().graph]
    assert types.count("Attention") == 1
    assert not {"Sin", "Range", "BatchNormalization", "IsNaN", "Shape"} & set(types)


def test_nodes_are_named_after_their_modules():
    names = [node.name for node in traced().graph]
    assert len(set(names)) == len(names)
    assert {"layer/Attention", "layer.project/MatMul", "layer.project/Add"} <= set(names)
    assert "layer.project.bias" in traced().graph.initializers


def test_no_path_of_this_machine_and_no_trace_of_the_exporter_is_left():
    data = ir.to_proto(traced()).SerializeToString()
    for word in (b".py", b"pkg.torch", b"stack_trace", b"test_trace", sys.prefix.encode()):
        assert word not in data


def test_equal_modules_give_equal_bytes():
    again = trace(traceable(Net()))
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(traced()).SerializeToString()


def test_weights_are_not_copied():
    net = Net()
    model = trace(traceable(net))
    weight = net.layer.project.weight.detach().numpy()
    assert any(np.shares_memory(value.const_value.numpy(), weight) for value in model.graph.initializers.values())


def test_tracing_says_nothing(capfd, caplog):
    with caplog.at_level(logging.INFO):
        trace(traceable(Net()))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith(("torch", "onnx"))]


# -- errors ----------------------------------------------------------------------------------------------------


class Branch(Layer):
    def forward(self, tokens):
        return tokens if tokens.sum() > 0 else -tokens


class Unknown(Layer):
    def forward(self, tokens):
        return torch.special.bessel_j0(tokens)


def net_with(layer):
    net = Net()
    net.layer = layer
    return net


def test_a_module_that_cannot_be_traced_is_named():
    with pytest.raises(ExportError, match=r"^toy: tracing failed in layer \(Branch\): "):
        trace(traceable(net_with(Branch())))


def test_an_operator_that_onnx_lacks_is_named():
    with pytest.raises(ExportError, match=r"cannot express this model in ONNX opset \d+: .*bessel_j0"):
        trace(traceable(net_with(Unknown())))


def test_a_promise_that_the_graph_does_not_keep_is_refused():
    promised = traceable(Net())
    broken = replace(promised, outputs=(replace_shape(promised.outputs[0], (1, 15, 9)), promised.outputs[1]))
    with pytest.raises(ExportError, match=r"has tokens float32\[1, 15, 8\], the recipe promised tokens float32"):
        trace(broken)


def test_a_dynamic_dimension_that_the_trace_fixed_is_refused():
    class Fixed(Layer):
        def forward(self, tokens):
            return super().forward(tokens.reshape(2, 15, 8))

    with pytest.raises(ExportError, match="toy: "):
        trace(traceable(net_with(Fixed()), batch=None, dynamic={0: "batch"}))


def replace_shape(info, shape):
    return TensorInfo(name=info.name, shape=shape, dtype=info.dtype)


# -- every family ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, config_folder, tmp_path_factory):
    """A family's tiny model: (traceable, traced graph, lowered graphs by target)."""
    if request.param == "onnx":
        file = tmp_path_factory.mktemp("onnx") / "x.onnx"
        checkpoint = OnnxFile.open(network(file, "yolox"), STYLES["yolox"])
    else:
        checkpoint = Checkpoint.open(config_folder(request.param), seed=0)
    built = get_recipe(request.param).build(checkpoint, BuildOptions())
    model = trace(built)
    return built, model, {target: lower(model, target) for target in VARIANTS}


def test_only_a_cast_reads_the_uint8_input(family):
    for item in (item for items in family[2].values() for item in items):
        assert [use.node.op_type for use in item.model.graph.inputs[0].uses()] == ["Cast"]


def test_lowering_leaves_the_traced_graph_as_it_was(family):
    _, model, _ = family
    before = ir.to_proto(model).SerializeToString()
    for target in VARIANTS:
        lower(model, target)
    assert ir.to_proto(model).SerializeToString() == before


def test_lowered_graphs_ask_for_nothing_new(family):
    for items in family[2].values():
        for item in items:
            assert item.model.opset_imports[""] <= OPSET
            assert item.model.ir_version <= 10
            assert "IsNaN" not in {node.op_type for node in item.model.graph}


def test_lowered_graphs_compute_what_the_module_does(family, tmp_path):
    built, _, lowered = family
    feeds = dict(zip((info.name for info in built.inputs), map(noise, example_inputs(built)), strict=True))
    with torch.no_grad():
        expected = built.module(*map(torch.from_numpy, feeds.values()))
    for graph in write_graphs({"": [item for items in lowered.values() for item in items]}, tmp_path):
        path = str(tmp_path / graph.file)
        if graph.precisions[0] != "fp32":  # test_typed_graphs
            continue
        if graph.target != "openvino":
            found = pytest.importorskip("onnxruntime").InferenceSession(path).run(None, feeds)
        else:
            openvino = pytest.importorskip("openvino")
            found = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds).to_tuple()
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, wanted.numpy(), atol=2e-3, rtol=1e-3, err_msg=graph.file)


def noise(tensor):
    """Random frames; a size as it is."""
    if tensor.dtype != torch.uint8:
        return tensor.numpy()
    return np.random.default_rng(0).integers(0, 256, tuple(tensor.shape), dtype=np.uint8)


def test_an_unknown_target_is_refused():
    with pytest.raises(ExportError, match="no graph can be made for 'abacus'; targets are onnxruntime, openvino"):
        lower(traced(), "abacus")
