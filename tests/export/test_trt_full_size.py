"""Models of the sizes that are deployed compile with TensorRT-RTX, without a GPU; their weights are seeded."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pack import write_graphs
from edgevtx.export.recipe import BuildOptions, get_recipe
from edgevtx.export.rewrite import lower
from edgevtx.export.trace import trace
from edgevtx.runtimes.base import EngineOptions
from edgevtx.runtimes.plan import PLAN, read_plan
from edgevtx.runtimes.trt_build import build_plan

# as their authors publish them; what is not said is transformers' default, which is ViT-B of each
VIT_B = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
SAM_B = {"model_type": "sam", "architectures": ["SamModel"]}
RTDETR_R18 = {
    "model_type": "rt_detr",
    "architectures": ["RTDetrForObjectDetection"],
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [128, 256, 512],
    "hidden_expansion": 0.5,
    "decoder_layers": 3,
    "num_queries": 300,
    "anchor_image_size": [640, 640],
}


@pytest.mark.parametrize(
    ("family", "config", "size", "billions"),
    [("vit", VIT_B, 224, 17), ("rtdetr", RTDETR_R18, 640, 30), ("sam", SAM_B, 1024, 486)],
    ids=["ViT-B", "RT-DETR-R18", "SAM-B encoder"],
)
def test_a_full_size_model_compiles_in_half_precision(family, config, size, billions, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    traceable = get_recipe(family).build(Checkpoint.open(tmp_path / "config.json", seed=0), BuildOptions())
    (row,) = write_graphs({"": lower(trace(traceable), "tensorrt-rtx", ("fp16",))}, tmp_path)
    (tmp_path / "plan").mkdir()
    build_plan("tensorrt_rtx", tmp_path / row.file, tmp_path / "plan", EngineOptions("fp16", gpu="sm89"))
    record = read_plan(tmp_path / "plan" / PLAN)
    assert record.inputs[0].shape == (1, size, size, 3)
    assert record.precision_share["f16"] > 0.99
    # multiply-adds in 10^9: of ViT-B and RT-DETR-R18 as published, of SAM's encoder counted by hand from its sizes
    assert sum(layer.work for layer in record.layers) / 1e9 == pytest.approx(billions, rel=0.1)
    weights = sum(value.nbytes for value in traceable.module.state_dict().values())
    assert record.size < 0.7 * weights  # casts of float32 weights are folded; SAM's positions are tables of their own
