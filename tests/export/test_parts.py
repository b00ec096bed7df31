"""Bundles of several networks: each is traced, lowered, verified, replayed on the device and run by its name."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import edgevtx  # noqa: E402
from edgevtx.bundle import Bundle  # noqa: E402
from edgevtx.errors import VerificationError  # noqa: E402
from edgevtx.export import pipeline  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions, TraceablePart, get_recipe  # noqa: E402
from edgevtx.golden import read_golden, write_golden  # noqa: E402
from edgevtx.manifest import TensorInfo  # noqa: E402


class Matches(torch.nn.Module):
    """patches (1,h,w,D), queries (P,D) -> scores (P,h,w)."""

    def forward(self, patches, queries):
        return (torch.einsum("hwd,pd->phw", patches[0], queries),)


def examples(outputs):
    patches = outputs["patches"]
    vectors = patches.reshape(-1, patches.shape[-1])
    return [{"patches": patches, "queries": vectors[:count].copy()} for count in (2, 5)]


def with_matches(checkpoint, options):
    """The dino family with a second network that compares patches with query vectors."""
    traceable = get_recipe("dino").build(checkpoint, options)
    grid = traceable.outputs[1]
    traceable.parts["match"] = TraceablePart(
        module=Matches().eval(),
        inputs=(grid, TensorInfo(name="queries", shape=(None, grid.shape[3]), dtype="float32")),
        outputs=(TensorInfo(name="scores", shape=(None, *grid.shape[1:3]), dtype="float32"),),
        dynamic={"queries": {0: "prompts"}},
        examples=examples,
    )
    return traceable


@pytest.fixture
def exported(config_folder, tmp_path, monkeypatch):
    import dataclasses

    recipe = dataclasses.replace(get_recipe("dino"), build=with_matches)
    monkeypatch.setattr(pipeline, "get_recipe", lambda family: recipe)
    options = ExportOptions(build=BuildOptions(), targets=("openvino", "onnxruntime"))
    return export("dino", Checkpoint.open(config_folder("dino"), seed=0), tmp_path / "two", options)


def test_every_network_is_a_graph_of_its_own_over_shared_weights(exported):
    manifest = exported.manifest
    assert manifest.part_names == ("", "match")
    assert {graph.file for graph in manifest.graphs} == {
        "graph.openvino.onnx",
        "graph.onnxruntime.onnx",
        "graph.match.openvino.onnx",
        "graph.match.onnxruntime.onnx",
    }
    names = {check.name for verdict in manifest.verdicts for check in verdict.checks}
    assert {"match engine: values: scores", "graph.match.openvino.onnx: values: scores"} <= names
    assert {verdict.status for verdict in manifest.verdicts} == {"passed-here"}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_part_runs_by_its_name_at_sizes_that_were_not_traced(exported, runtime, photos):
    pytest.importorskip(runtime)
    with edgevtx.load(exported.bundle, runtime=runtime) as model, model.clone() as other:
        patches = model(photos["coffee"]).patches[None]
        for count in (1, 7):
            queries = patches.reshape(-1, patches.shape[-1])[:count]
            expected = np.einsum("hwd,pd->phw", patches[0], queries)
            for one in (model, other):
                scores = one.run_part("match", {"patches": patches, "queries": queries})["scores"]
                np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_part_whose_golden_answer_differs_is_refused(exported, tmp_path):
    golden = read_golden(exported.bundle / "golden.npz")
    golden.parts["match"].outputs["scores"] += 1
    write_golden(tmp_path / "golden.npz", golden)
    (exported.bundle / "golden.npz").write_bytes((tmp_path / "golden.npz").read_bytes())
    from edgevtx.bundle import write_bundle

    manifest = Bundle.open(_rewritten(exported, write_bundle, tmp_path)).manifest
    assert manifest.parts
    with pytest.raises(VerificationError, match=r"golden sample .* values: scores"):
        edgevtx.load(tmp_path / "changed", runtime="onnxruntime")


def _rewritten(exported, write_bundle, tmp_path):
    import msgspec

    manifest = msgspec.structs.replace(exported.manifest, files=())
    return write_bundle(exported.bundle, manifest, tmp_path / "changed")
