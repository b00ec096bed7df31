"""Bundles of several networks: each is traced, lowered, verified, replayed on the device and run by its name."""

from __future__ import annotations

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import edgevtx  # noqa: E402
from edgevtx.bundle import Bundle, write_bundle  # noqa: E402
from edgevtx.compare.tolerance import SENSITIVE  # noqa: E402
from edgevtx.errors import VerificationError  # noqa: E402
from edgevtx.export import pipeline  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions, TraceablePart, get_recipe  # noqa: E402
from edgevtx.export.samples import Photo  # noqa: E402
from edgevtx.export.verify import make_samples, measure_sensitivity  # noqa: E402
from edgevtx.golden import read_golden, write_golden  # noqa: E402
from edgevtx.manifest import TensorInfo  # noqa: E402


class Matches(torch.nn.Module):
    """patches (1,h,w,D), queries (P,D) -> scores (P,h,w); `deaf` is the input that is not looked at."""

    def __init__(self, deaf=""):
        super().__init__()
        self.deaf = deaf

    def forward(self, patches, queries):
        if self.deaf == "patches":
            patches = torch.ones_like(patches)
        if self.deaf == "queries":
            queries = torch.ones_like(queries)
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


@pytest.fixture(scope="module")
def exported(config_folder, tmp_path_factory):
    recipe = dataclasses.replace(get_recipe("dino"), build=with_matches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "get_recipe", lambda family: recipe)
        checkpoint = Checkpoint.open(config_folder("dino"), seed=0)
        return export("dino", checkpoint, tmp_path_factory.mktemp("parts") / "two", ExportOptions())


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
    copy = shutil.copytree(exported.bundle, tmp_path / "copy")
    golden = read_golden(copy / "golden.npz")
    golden.parts["match"].outputs["scores"] += 1
    write_golden(copy / "golden.npz", golden)
    changed = write_bundle(copy, msgspec.structs.replace(exported.manifest, files=()), tmp_path / "changed")
    assert Bundle.open(changed).manifest.parts
    with pytest.raises(VerificationError, match=r"golden sample .* values: scores"):
        edgevtx.load(changed, runtime="onnxruntime")


@pytest.mark.parametrize("deaf", ["", "patches", "queries"])
def test_every_input_of_every_network_must_matter(deaf, config_folder, photos):
    traceable = with_matches(Checkpoint.open(config_folder("dino"), seed=0), BuildOptions())
    traceable.parts["match"].module = Matches(deaf)
    samples = list(make_samples(traceable, [Photo(name, photos[name]) for name in ("coffee", "rocket")]))
    found = measure_sensitivity(traceable, samples)
    assert found == 0 if deaf else found > SENSITIVE


def test_a_part_whose_examples_are_all_alike_is_insensitive(config_folder, photos):
    traceable = with_matches(Checkpoint.open(config_folder("dino"), seed=0), BuildOptions())
    ones = {
        item.name: np.ones([size or 2 for size in item.shape], np.float32) for item in traceable.parts["match"].inputs
    }
    traceable.parts["match"].examples = lambda outputs: [ones]
    samples = list(make_samples(traceable, [Photo(name, photos[name]) for name in ("coffee", "rocket")]))
    assert measure_sensitivity(traceable, samples) == 0
