"""Every family compiles with TensorRT-RTX, for two generations of GPUs and without one: tiny models, and for real."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pack import write_graphs
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe
from edgevtx.export.rewrite import lower
from edgevtx.export.trace import trace_all
from edgevtx.runtimes.base import EngineOptions
from edgevtx.runtimes.plan import PLAN, read_plan
from edgevtx.runtimes.trt_build import build_plan

TARGET = "tensorrt-rtx"
GPUS = ("sm86", "sm120")  # Ampere and Blackwell
# precision -> the type of the products, which fp32 may stand beside
LOW = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}

# the family onnx reads files, which are of other families here
TYPES = [
    (family, kind) for family in FAMILIES if family != "onnx" for kind in list(get_recipe(family).tiny_config())[:1]
]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """graphs(family, kind) -> folder, [graph, ...]: what an export of a tiny seeded model writes for the target."""

    @cache
    def make(family, kind):
        folder = tmp_path_factory.mktemp(family)
        (folder / "config.json").write_text(json.dumps(get_recipe(family).tiny_config()[kind]))
        checkpoint = Checkpoint.open(folder / "config.json", seed=0)
        models = trace_all(get_recipe(family).build(checkpoint, BuildOptions()))
        lowered = {part: lower(model, TARGET) for part, model in models.items()}
        return folder, write_graphs(lowered, folder)

    return make


@pytest.mark.parametrize(("family", "kind"), TYPES, ids=[family for family, _ in TYPES])
def test_every_network_of_a_family_compiles_at_every_precision(family, kind, graphs, tmp_path):
    folder, written = graphs(family, kind)
    assert {precision for row in written for precision in row.precisions} == set(LOW)

    def compiled(index, row, gpu):
        out = tmp_path / str(index)
        out.mkdir()
        (precision,) = row.precisions
        build_plan("tensorrt_rtx", folder / row.file, out, EngineOptions(precision, gpu=gpu))
        record = read_plan(out / PLAN)
        assert {layer.type for layer in record.layers} <= {LOW[precision], "f32", "i32", "i64", "bool"}
        assert max(record.precision_share, key=record.precision_share.get) == LOW[precision]
        return record.sha256

    cases = [(index, *case) for index, case in enumerate(product(written, GPUS))]
    with ThreadPoolExecutor(2) as pool:  # each compiles in a process of its own
        plans = list(pool.map(compiled, *zip(*cases, strict=True)))
    assert len(set(plans)) == len(plans)
