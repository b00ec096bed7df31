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
from edgevtx.export.rewrite.low_precision import Typed, by_operators
from edgevtx.export.rewrite.quantize import activations, quantize
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


ADA, BLACKWELL = "sm89", "sm120"


def compiled(family, config, precision, give_types, folder, *gpus):
    """The record of a model's plan for each GPU, and the bytes of its weights in float32."""
    (folder / "config.json").write_text(json.dumps(config))
    traceable = get_recipe(family).build(Checkpoint.open(folder / "config.json", seed=0), BuildOptions())
    (row,) = write_graphs({"": lower(trace(traceable), "tensorrt-rtx", (precision,), give_types)}, folder)
    weights = sum(value.nbytes for value in traceable.module.state_dict().values())
    del traceable
    for gpu in gpus:
        (folder / gpu).mkdir()
        build_plan("tensorrt_rtx", folder / row.file, folder / gpu, EngineOptions(precision, gpu=gpu))
    return [read_plan(folder / gpu / PLAN) for gpu in gpus], weights


@pytest.mark.parametrize(
    ("family", "config", "size", "billions"),
    [("vit", VIT_B, 224, 17), ("rtdetr", RTDETR_R18, 640, 30), ("sam", SAM_B, 1024, 486)],
    ids=["ViT-B", "RT-DETR-R18", "SAM-B encoder"],
)
def test_a_full_size_model_compiles_in_half_precision(family, config, size, billions, tmp_path):
    records, weights = compiled(family, config, "fp16", by_operators, tmp_path, ADA, BLACKWELL)
    assert [record.gpu for record in records] == [ADA, BLACKWELL]
    for record in records:
        assert record.inputs[0].shape == (1, size, size, 3)
        assert record.precision_share["f16"] > 0.99
        # multiply-adds in 10^9: of ViT-B and RT-DETR-R18 as published, of SAM's encoder counted by hand from its sizes
        assert sum(layer.work for layer in record.layers) / 1e9 == pytest.approx(billions, rel=0.1)
        assert record.size < 0.7 * weights  # casts of float32 weights are folded; SAM's positions are tables


def test_int8_weights_are_folded_to_a_quarter(tmp_path):
    (record,), weights = compiled("vit", {**VIT_B, "num_hidden_layers": 3}, "int8", made_up, tmp_path, ADA)
    assert record.precision_share["i8"] > 0.9  # the rest is the patches' own product, and attention's
    assert record.size < 0.4 * weights


def made_up(exact, precisions):
    """int8 whose scales are not measured."""
    model = exact.clone()
    quantize(model, {}, dict.fromkeys(activations(exact), 4.0))
    return {"int8": Typed(model)}
