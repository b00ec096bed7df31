"""Every family compiles with TensorRT-RTX, for two generations of GPUs and without one: tiny models, and for real."""

from __future__ import annotations

import json
from functools import cache

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pack import write_graphs
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe
from edgevtx.export.rewrite import VARIANTS, lower
from edgevtx.export.trace import trace_all
from edgevtx.runtimes.base import EngineOptions
from edgevtx.runtimes.plan import PLAN, read_plan
from edgevtx.runtimes.trt_build import build_plan

# until the target has variants of its own, OpenVINO's, of which TensorRT-RTX takes the fp32 form
TARGET = "tensorrt-rtx" if "tensorrt-rtx" in VARIANTS else "openvino"
PRECISIONS = ("fp32",) if TARGET == "openvino" else ("fp32", "fp16", "bf16")
GPUS = ("sm86", "sm120")  # Ampere and Blackwell

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
def test_every_network_of_a_family_compiles(family, kind, graphs, tmp_path):
    folder, written = graphs(family, kind)
    plans = set()
    for row in written:
        for precision in set(row.precisions) & set(PRECISIONS):
            for gpu in GPUS:
                out = tmp_path / f"{row.file}.{precision}.{gpu}"
                out.mkdir()
                report = build_plan("tensorrt_rtx", folder / row.file, out, EngineOptions(precision, gpu=gpu))
                record = read_plan(out / PLAN)
                plans.add(record.sha256)
                assert {layer.type for layer in record.layers} <= {"f32", "f16", "bf16", "i32", "i64", "bool"}
                assert sum(report.precision_share.values()) == pytest.approx(1, abs=1e-4)
    assert len(plans) == len(GPUS) * sum(len(set(row.precisions) & set(PRECISIONS)) for row in written)
