"""A model above 2 GB, the limit of one protobuf: through export, verification, packing, unpacking and running."""

from __future__ import annotations

import json

import pytest

import edgevtx
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pipeline import ExportOptions, export
from edgevtx.export.samples import load_photos

CONFIG = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "intermediate_size": 16384,
    "image_size": 64,
    "patch_size": 16,
    "id2label": {str(index): f"class {index}" for index in range(10)},
}


@pytest.mark.slow
def test_a_model_above_2_gb(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "large.config.json"
    config.write_text(json.dumps(CONFIG))
    report = export("vit", Checkpoint.open(config, seed=0), tmp_path / "large.vtx", ExportOptions())
    assert (tmp_path / "large.vtx").stat().st_size > 2**31
    assert [(item.target, item.status) for item in report.manifest.verdicts] == [
        ("openvino", "passed-here"),
        ("onnxruntime", "passed-here"),
    ]
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "large.vtx", runtime=runtime) as model:
            assert not model.info.cache_hit
            answer = model(load_photos(None)[0].frame)
        with edgevtx.load(tmp_path / "large.vtx", runtime=runtime) as model:
            assert model.info.cache_hit
            assert model(load_photos(None)[0].frame).class_ids.tolist() == answer.class_ids.tolist()
