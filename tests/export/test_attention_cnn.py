"""ResNets with attention inside as a family: every block to a verified bundle, and configs that are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

import edgevtx
from edgevtx.bundle import Bundle
from edgevtx.errors import CheckpointError
from edgevtx.export.attention_cnn import RECIPE, build
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.models.global_attention import NonLocalBlock
from edgevtx.export.models.local_attention import LocalRelation, StandaloneAttention
from edgevtx.export.parity import compare_results
from edgevtx.export.pipeline import ExportOptions as Options
from edgevtx.export.pipeline import export
from edgevtx.export.recipe import BuildOptions
from edgevtx.export.samples import move_over

SLOW = {"Loop", "Scan", "If", "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"}
# sizes other than the tiny configs': maps of 13 and 7 rows, which the tiles do not fill
OTHER = {"image_size": 104, "window": 3, "subsample": False, "scaled": True, "composability": "product"}


@pytest.mark.parametrize("kind", RECIPE.model_types)
def test_every_block_goes_to_a_bundle_that_answers_as_the_reference(kind, config_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    checkpoint = Checkpoint.open(config_folder("attention_cnn", kind, **OTHER), seed=0)
    report = export("attention_cnn", checkpoint, tmp_path / "model.vtx", Options())
    assert {item.status for item in report.manifest.verdicts} == {"passed-here"}
    bundle = Bundle.open(report.bundle)
    for graph in bundle.manifest.graphs:
        nodes = onnx.load(bundle.graph_path(graph), load_external_data=False).graph.node
        assert not SLOW & {node.op_type for node in nodes}
    traceable = build(checkpoint, BuildOptions())
    clip, frame = traceable.preprocess.clip, photos["portrait"]
    taken = frame if clip is None else move_over(frame, clip.frames + 5)
    reference = traceable.reference(taken)
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(report.bundle, runtime=runtime) as model:
            check = compare_results(reference, model(taken))
            assert check.passed and check.compared == 5, check


def test_the_blocks_stand_where_the_config_puts_them(config_folder):
    def model(kind, **changes):
        checkpoint = Checkpoint.open(config_folder("attention_cnn", kind, depths=[2, 3], **changes), seed=0)
        return build(checkpoint, BuildOptions()).reference.args[0].resnet.encoder.stages

    first, second = model("nonlocal_resnet", attention_stages=[2])
    assert len(first.layers) == 2
    assert [type(layer) is NonLocalBlock for layer in second.layers] == [False, False, True, False]
    first, second = model("sasa_resnet", attention_stages=[2])
    assert not [module for module in first.modules() if isinstance(module, StandaloneAttention)]
    blocks = [module for module in second.modules() if isinstance(module, StandaloneAttention)]
    assert [block.stride for block in blocks] == [2, 1, 1]
    layers = [module for stage in model("local_relation_resnet") for module in stage.modules()]
    assert sum(isinstance(module, LocalRelation) for module in layers) == 5


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("sagan_resnet", {"depths": [1]}, "hidden_sizes has 2 entries, depths has 1"),
        ("sagan_resnet", {"attention_stages": [0]}, "attention_stages names stage 0 of 2"),
        ("sagan_resnet", {"embedding_size": 4, "hidden_sizes": [4, 8]}, "reduction is 8 for a stage of 4 channels"),
        ("sagan_resnet", {"reduction": 0}, "reduction is 0 for a stage of .* channels; choose 1 to"),
        ("nonlocal_resnet", {"reduction": 999}, "reduction is 999 for a stage of"),
        ("nonlocal_video_resnet", {"num_frames": 0}, "num_frames is 0; a clip has 1 frame or more"),
        ("nonlocal_video_resnet", {"frame_rate": 0}, "frame_rate is 0.0; give the frames a second"),
        ("sasa_resnet", {"window": 4}, "window is 4; an odd number is expected"),
        ("sasa_resnet", {"num_attention_heads": 3}, "do not divide into 3 heads"),
        ("local_relation_resnet", {"share": 3}, "do not divide into groups of 3"),
        ("local_relation_resnet", {"composability": "sum"}, r"Invalid enum value 'sum' - at `\$\.composability`"),
        ("nonlocal_resnet", {"id2label": None}, r"Expected `object`, got `null` - at `\$\.id2label`"),
        ("nonlocal_resnet", {"id2label": {"1": "a"}}, "ids from 0 without gaps"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(kind, changes, sentence, config_folder):
    checkpoint = Checkpoint.open(config_folder("attention_cnn", kind, **changes), seed=0)
    with pytest.raises(CheckpointError, match=sentence):
        build(checkpoint, BuildOptions())


def test_a_processor_without_one_size_is_refused(config_folder):
    processor = {"size": {"shortest_edge": 90}, "do_center_crop": False}
    checkpoint = Checkpoint.open(config_folder("attention_cnn", processor=processor), seed=0)
    with pytest.raises(CheckpointError, match="does not crop, so the size depends on the frame"):
        build(checkpoint, BuildOptions())
