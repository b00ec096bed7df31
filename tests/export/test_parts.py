"""Bundles of several networks: each is traced, lowered, verified, replayed on the device and run by its name."""

from __future__ import annotations

import dataclasses
import json
import shutil

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import edgevtx  # noqa: E402
from edgevtx import selftest  # noqa: E402
from edgevtx.bundle import Bundle, write_bundle  # noqa: E402
from edgevtx.cli import cli  # noqa: E402
from edgevtx.compare.tolerance import SENSITIVE  # noqa: E402
from edgevtx.errors import CompileError, RuntimeUnavailableError, VerificationError  # noqa: E402
from edgevtx.export import judge, pipeline  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions, TraceablePart, get_recipe  # noqa: E402
from edgevtx.export.samples import Photo  # noqa: E402
from edgevtx.export.verify import make_samples, measure_sensitivity  # noqa: E402
from edgevtx.golden import read_golden, write_golden  # noqa: E402
from edgevtx.manifest import TensorInfo  # noqa: E402
from edgevtx.runtimes.base import Probe  # noqa: E402


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


def reference(inputs):
    return {"scores": np.einsum("hwd,pd->phw", inputs["patches"][0], inputs["queries"])}


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
        reference=reference,
    )
    return traceable


@pytest.fixture(scope="module")
def exported(config_folder, tmp_path_factory):
    recipe = dataclasses.replace(get_recipe("dino"), build=with_matches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "get_recipe", lambda family: recipe)
        checkpoint = Checkpoint.open(config_folder("dino"), seed=0)
        return export("dino", checkpoint, tmp_path_factory.mktemp("parts") / "two", ExportOptions())


@pytest.fixture
def export_two(config_folder, tmp_path, monkeypatch):
    """export_two(targets=...) -> the report of the dino family with its second network."""
    recipe = dataclasses.replace(get_recipe("dino"), build=with_matches)
    monkeypatch.setattr(pipeline, "get_recipe", lambda family: recipe)

    def call(**options):
        checkpoint = Checkpoint.open(config_folder("dino"), seed=0)
        return export("dino", checkpoint, tmp_path / "two", ExportOptions(**options))

    return call


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


def fail_part(monkeypatch, part, *precisions):
    """A compiler's bug, planted: what the engine of one network answers in these precisions is wrong."""
    check = judge.verify_engine

    def broken(folder, graph, samples, manifest, options):
        checks, report = check(folder, graph, samples, manifest, options)
        if graph.part == part and options.precision in precisions:
            checks = [msgspec.structs.replace(item, passed=False, error=9.0) for item in checks]
        return checks, report

    monkeypatch.setattr(judge, "verify_engine", broken)


# asked for in bf16 alone: another device's bf16 may be another one, and what it may fall back to costs no byte
KEEPS_FP32 = {"": ("bf16",), "match": ("fp32", "bf16")}


def bf16_verdict(report):
    verdict = report.manifest.verdict("openvino", "bf16")
    if verdict.status == "graph-only":
        pytest.skip(f"this processor has no bf16: {verdict.reason}")
    return verdict


@pytest.mark.parametrize("precisions", [("fp32", "bf16"), ("bf16",)], ids=str)
def test_a_part_that_fails_in_bf16_keeps_fp32(export_two, photos, monkeypatch, precisions):
    pytest.importorskip("openvino")
    fail_part(monkeypatch, "match", "bf16")
    report = export_two(targets=("openvino",), precisions=precisions)
    verdict = bf16_verdict(report)
    assert (verdict.status, verdict.parts) == ("passed-here", {"match": "fp32"})
    assert verdict.reason.startswith("match runs in fp32, since in bf16 it is failed (match engine: ")
    graphs = {graph.file: graph.precisions for graph in report.manifest.graphs}
    wanted = {"graph.openvino.onnx": precisions, "graph.match.openvino.onnx": ("fp32",)}
    assert graphs == wanted
    assert {path.name for path in report.bundle.glob("*.onnx")} == set(wanted)
    with edgevtx.load(report.bundle, runtime="openvino", precision="bf16") as model:
        assert (model.info.precision, model.info.part_precisions) == ("bf16", {"match": "fp32"})
        assert model.info.precision_share["bf16"] > 0.9
        patches = model(photos["coffee"]).patches[None]
        queries = patches.reshape(-1, patches.shape[-1])[:3]
        scores = model.run_part("match", {"patches": patches, "queries": queries})["scores"]
        np.testing.assert_allclose(scores, np.einsum("hwd,pd->phw", patches[0], queries), rtol=1e-4, atol=1e-4)
    found = CliRunner().invoke(cli, ["verify", str(report.bundle), "--json"])
    assert found.exit_code == 0, found.output
    rows = [(row["precision"], row["status"]) for row in json.loads(found.stdout)["verdicts"]]
    assert rows == [(precision, "passed-here") for precision in precisions]
    in_bf16 = json.loads(found.stdout)["verdicts"][-1]
    assert in_bf16["parts"] == {"match": "fp32"} and in_bf16["reason"].startswith("match runs in fp32")
    found = CliRunner().invoke(cli, ["info", str(report.bundle)], env={"COLUMNS": "200"})
    assert "openvino bf16: match runs in fp32" in found.output


def test_a_part_that_passes_in_bf16_runs_in_it(export_two):
    pytest.importorskip("openvino")
    report = export_two(targets=("openvino",), precisions=("bf16",))
    verdict = bf16_verdict(report)
    assert (verdict.status, verdict.parts, verdict.reason) == ("passed-here", {}, "")
    assert {graph.part: graph.precisions for graph in report.manifest.graphs} == KEEPS_FP32


def test_a_part_that_quantises_nothing_keeps_fp32_in_int8(export_two, monkeypatch):
    monkeypatch.setattr(judge, "probe", lambda target: Probe(target, available=False, reason="no GPU"))
    report = export_two(targets=("tensorrt-rtx",), precisions=("int8",), keep_failed=True)
    (verdict,) = report.manifest.verdicts
    assert verdict.parts == {"match": "fp32"}, verdict.reason
    graphs = {graph.file: graph.precisions for graph in report.manifest.graphs}
    assert graphs == {"graph.tensorrt-rtx.int8.onnx": ("int8",), "graph.match.tensorrt-rtx.onnx": ("fp32",)}


@pytest.fixture
def exported_elsewhere(export_two, empty_cache, monkeypatch):
    """A bundle in bf16 of a machine that has none, opened on one that has."""
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    verify = judge.verify_engine

    def without_bf16(folder, graph, samples, manifest, options):
        if options.precision == "bf16":
            raise RuntimeUnavailableError("this processor cannot compute in bf16")
        return verify(folder, graph, samples, manifest, options)

    with monkeypatch.context() as patch:
        patch.setattr(judge, "verify_engine", without_bf16)
        report = export_two(targets=("openvino",), precisions=("bf16",))
    (verdict,) = report.manifest.verdicts
    assert (verdict.status, verdict.parts) == ("graph-only", {})
    assert {graph.part: graph.precisions for graph in report.manifest.graphs} == KEEPS_FP32
    return report.bundle


def fail_replays(monkeypatch, *networks):
    """A compiler's bug of this device, planted: (part, precision) of engines whose golden answer is wrong.

    Returns lists that fill with the (part, precision) of every engine that is opened, and of those that replay.
    """
    opened, replayed = [], []
    replay, open_prepared = selftest.replay, selftest.open_prepared

    def watch(prepared):
        opened.append((prepared.graph.part, prepared.record.precision))
        return open_prepared(prepared)

    def broken(bundle, engine, prepared):
        verdict = replay(bundle, engine, prepared)
        replayed.append((prepared.graph.part, prepared.record.precision))
        if replayed[-1] in networks:
            verdict = msgspec.structs.replace(verdict, status="failed", reason="values: scores: error 9")
        return verdict

    monkeypatch.setattr(selftest, "open_prepared", watch)
    monkeypatch.setattr(selftest, "replay", broken)
    return opened, replayed


FELL_BACK = "match runs in fp32, since in bf16 it is failed (values: scores: error 9)"


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_a_part_that_fails_in_bf16_on_the_device_runs_in_fp32(exported_elsewhere, photos, monkeypatch, caplog, mode):
    opened, replayed = fail_replays(monkeypatch, ("match", "bf16"))
    for load in ("first", "second"):
        caplog.clear()
        with edgevtx.load(exported_elsewhere, compile="auto" if load == "first" else mode) as model:
            assert (model.info.precision, model.info.part_precisions) == ("bf16", {"match": "fp32"})
            assert (model.info.verdict, model.info.cache_hit) == ("passed-here", load == "second")
            patches = model(photos["coffee"]).patches[None]
            queries = patches.reshape(-1, patches.shape[-1])[:3]
            scores = model.run_part("match", {"patches": patches, "queries": queries})["scores"]
        np.testing.assert_allclose(scores, np.einsum("hwd,pd->phw", patches[0], queries), rtol=1e-4, atol=1e-4)
        assert FELL_BACK in caplog.text
    trial = [("", "bf16"), ("match", "bf16"), ("match", "fp32")]
    assert replayed == trial
    assert opened == [*trial, ("", "bf16"), ("match", "fp32")]  # the second time nothing is tried again


@pytest.mark.parametrize("exact_too", [False, True])
def test_a_part_that_does_not_compile_in_bf16_on_the_device_runs_in_fp32(exported_elsewhere, monkeypatch, exact_too):
    prepare = selftest.prepare_engine

    def without(bundle, target, options, **more):
        if more["part"] == "match" and (exact_too or options.precision == "bf16"):
            raise CompileError(f"no kernel for {options.precision}")
        return prepare(bundle, target, options, **more)

    monkeypatch.setattr(selftest, "prepare_engine", without)
    if exact_too:
        with pytest.raises(CompileError, match="no kernel for bf16"):  # what was asked for, and not what was tried then
            edgevtx.load(exported_elsewhere)
        return
    with edgevtx.load(exported_elsewhere) as model:
        assert (model.info.precision, model.info.part_precisions) == ("bf16", {"match": "fp32"})


def test_verify_says_which_part_runs_in_fp32_here(exported_elsewhere, monkeypatch):
    _, replayed = fail_replays(monkeypatch, ("match", "bf16"))
    for _ in range(2):  # each replays anew
        found = CliRunner().invoke(cli, ["verify", str(exported_elsewhere), "--json"])
        assert found.exit_code == 0, found.output
        (row,) = json.loads(found.stdout)["verdicts"]
        assert (row["precision"], row["status"]) == ("bf16", "passed-here")
        assert (row["parts"], row["reason"]) == ({"match": "fp32"}, FELL_BACK)
    assert replayed == 2 * [("", "bf16"), ("match", "bf16"), ("match", "fp32")]
    with edgevtx.load(exported_elsewhere) as model:
        assert model.info.part_precisions == {"match": "fp32"}


def test_a_part_that_passes_on_the_device_is_not_tried_in_fp32(exported_elsewhere, monkeypatch):
    opened, _ = fail_replays(monkeypatch)
    with edgevtx.load(exported_elsewhere) as model:
        assert (model.info.verdict, model.info.part_precisions) == ("passed-here", {})
    assert opened == [("", "bf16"), ("match", "bf16")]


@pytest.mark.parametrize("networks", [[("", "bf16")], [("match", "bf16"), ("match", "fp32")]], ids=str)
def test_what_fails_on_the_device_in_all_it_could_run_in_is_refused(exported_elsewhere, monkeypatch, networks):
    fail_replays(monkeypatch, *networks)
    with pytest.raises(VerificationError, match=r"golden sample .* bf16\) is 'failed' .* scores: error 9"):
        edgevtx.load(exported_elsewhere)
    with edgevtx.load(exported_elsewhere, allow_unverified=True) as model:
        assert (model.info.verdict, model.info.part_precisions) == ("failed", {})
    assert CliRunner().invoke(cli, ["verify", str(exported_elsewhere)]).exit_code == 3


@pytest.mark.parametrize("part", ["", "match"])
def test_a_network_that_fails_in_all_it_could_run_in_is_refused(export_two, monkeypatch, part):
    """The network that takes frames has no other precision than the bundle's."""
    pytest.importorskip("openvino")
    fail_part(monkeypatch, part, "bf16", *(["fp32"] if part else []))
    report = export_two(targets=("openvino",), precisions=("bf16",))
    verdict = bf16_verdict(report)
    assert (verdict.status, verdict.parts) == ("failed", {})
    assert report.bundle is None


def test_a_part_that_differs_from_its_reference_is_refused(exported, export_two, monkeypatch):
    """Every graph and engine agrees with our module, and our module not with the reference's."""
    assert "reference of match: values: scores" in {check.name for check in exported.manifest.verdicts[0].checks}
    forward = Matches.forward
    doubled = lambda self, patches, queries: (2 * forward(self, patches, queries)[0],)  # noqa: E731
    monkeypatch.setattr(Matches, "forward", doubled)
    wrong = export_two(targets=("onnxruntime",))
    assert [item.reason[:18] for item in wrong.refused] == ["reference of match"]


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
