"""Attention keeps the form that compilers fuse, in every target's graph: no matrix of all tokens by all tokens is left.

For ONNX Runtime that is one operator for each attention; OpenVINO's compiler leaves neither softmax nor product of it;
for TensorRT and TensorRT-RTX it is product, softmax, product, with nothing else between them that stops the fusion.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

import onnx_ir as ir

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.recipe import BuildOptions, get_recipe
from edgevtx.export.rewrite import lower
from edgevtx.export.trace import trace


class Case(NamedTuple):
    """A type's attentions, and what its graph has of softmax and of products of two activations beside them."""

    family: str
    kind: str
    attentions: int = 2
    softmax: int = 0
    products: int = 0
    attention: bool = False
    side: int | None = None  # of the input, None for the tiny config's own


CASES = {
    "vit": Case("vit", "vit", softmax=1),
    "deit": Case("vit", "deit", softmax=1),
    "vit_hybrid": Case("vit", "vit_hybrid", softmax=1),
    "dino": Case("dino", "vit"),
    "dinov2": Case("dino", "dinov2"),
    "dinov2 of 1370 tokens": Case("dino", "dinov2", side=518),
    "dinov2_with_registers": Case("dino", "dinov2_with_registers"),
    # the row of the class token is computed a second time, so that the layer keeps its form
    "dino, attention": Case("dino", "vit", softmax=1, products=1, attention=True),
    "dinov2, attention": Case("dino", "dinov2", softmax=1, products=1, attention=True),
    "dinov2 of 1370 tokens, attention": Case("dino", "dinov2", softmax=1, products=1, attention=True, side=518),
    "dinov2_with_registers, attention": Case("dino", "dinov2_with_registers", softmax=1, products=1, attention=True),
    "setr": Case("setr", "setr", attentions=4),
    "vivit": Case("vivit", "vivit", softmax=1),
    # two layers, and two more over time
    "vivit-factorised-encoder": Case("vivit", "vivit-factorised-encoder", attentions=4, softmax=1),
    "vivit-factorised-self-attention": Case("vivit", "vivit-factorised-self-attention", attentions=4, softmax=1),
    "vivit-factorised-dot-product": Case("vivit", "vivit-factorised-dot-product", attentions=4, softmax=1),
}
# what guards rows without any key, and spreads masks
GUARDS = {"IsNaN", "Where", "Expand"}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def traced(request, config_folder):
    """A case and its traced graph."""
    case = request.param
    size = {"height": case.side, "width": case.side}
    processor = None if case.side is None else {"size": size, "do_center_crop": False}
    checkpoint = Checkpoint.open(config_folder(case.family, case.kind, processor=processor), seed=0)
    return case, trace(get_recipe(case.family).build(checkpoint, BuildOptions(attention=case.attention)))


def operators(model):
    return Counter(node.op_type for node in model.graph)


def test_the_traced_graph_has_one_operator_each(traced):
    case, model = traced
    assert [user.op_type for user in model.graph.inputs[0].consumers()] == ["Cast"]  # nothing else may touch uint8
    count = operators(model)
    assert (count["Attention"], count["Softmax"]) == (case.attentions, case.softmax)


def test_onnx_runtime_gets_one_operator_each(traced):
    case, model = traced
    (lowered,) = lower(model, "onnxruntime")
    count = operators(lowered.model)
    assert (count["MultiHeadAttention"], count["Attention"], count["Softmax"]) == (case.attentions, 0, case.softmax)


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "tensorrt-rtx"])
def test_the_other_targets_get_nothing_between_the_products(target, traced):
    case, model = traced
    for lowered in lower(model, target, ("fp32",)):
        count = operators(lowered.model)
        assert (count["Attention"], count["Softmax"]) == (0, case.attentions + case.softmax)
        assert not GUARDS & set(count)


def test_openvinos_compiler_leaves_none_of_it(traced):
    case, model = traced
    core = pytest.importorskip("openvino").Core()
    for lowered in lower(model, "openvino"):
        graph = core.read_model(ir.to_proto(lowered.model).SerializeToString(), b"")
        for precision in lowered.precisions:
            if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                continue
            hint = {"fp32": "f32", "bf16": "bf16"}[precision]
            compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})
            ops = compiled.get_runtime_model().get_ops()
            kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in ops)
            assert (kinds["Softmax"], kinds["MatMul"]) == (case.softmax, case.products), kinds
