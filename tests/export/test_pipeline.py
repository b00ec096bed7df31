"""From a checkpoint to a bundle, and what is refused on the way."""

from __future__ import annotations

import errno
from dataclasses import replace

import msgspec
import numpy as np
import pytest

import edgevtx
from edgevtx.bundle import Bundle
from edgevtx.compare.tolerance import SENSITIVE
from edgevtx.errors import CompileError, ExportError, InputError, OutputError, VerificationError
from edgevtx.export import judge, pipeline, verify
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pipeline import ExportOptions, export
from edgevtx.export.recipe import BuildOptions
from edgevtx.manifest import Manifest, Verdict

FP32 = ExportOptions()


@pytest.fixture
def seeded(config_folder):
    """A function family -> checkpoint of its first tiny config, with seeded weights."""
    return lambda family: Checkpoint.open(config_folder(family), seed=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))


def test_the_same_inputs_give_the_same_bytes(seeded, tmp_path):
    checkpoint = seeded("vit")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export("vit", checkpoint, tmp_path / name / "model.vtx", FP32)
    assert (tmp_path / "a/model.vtx").read_bytes() == (tmp_path / "b/model.vtx").read_bytes()


def spoil_weights(monkeypatch):
    """A compiler's bug, planted: one number of the weights differs in what was written."""
    write = pipeline.write_graphs

    def spoiled(lowered, folder):
        graphs = write(lowered, folder)
        weights = np.memmap(folder / "weights.bin", np.float32, mode="r+")
        weights[: len(weights) // 2] *= np.float32(1.01)
        weights.flush()
        return graphs

    monkeypatch.setattr(pipeline, "write_graphs", spoiled)


def test_a_wrong_graph_is_refused_and_nothing_is_packed(seeded, tmp_path, monkeypatch):
    spoil_weights(monkeypatch)
    report = export("vit", seeded("vit"), tmp_path / "bad.vtx", FP32)
    assert {item.status for item in report.refused} == {"failed"}
    assert report.refused[0].reason.startswith("graph")
    assert report.bundle is None
    assert not list(tmp_path.glob("*.vtx"))
    assert not list(tmp_path.glob(".*"))


def test_a_wrong_graph_is_kept_on_request_and_load_refuses_it(seeded, tmp_path, monkeypatch):
    spoil_weights(monkeypatch)
    report = export("vit", seeded("vit"), tmp_path / "bad.vtx", replace(FP32, keep_failed=True))
    assert report.bundle is not None
    assert not report.manifest.recommended
    with pytest.raises(VerificationError, match="failed"):
        edgevtx.load(report.bundle)
    with edgevtx.load(report.bundle, allow_unverified=True) as model:
        assert model.info.verdict == "failed"


def fail_engine(monkeypatch, target):
    """A runtime's bug, planted: the engine of one target answers something else than its graph."""
    check = judge.verify_engine

    def broken(folder, graph, samples, manifest, options):
        checks, report = check(folder, graph, samples, manifest, options)
        if graph.target == target:
            checks = [msgspec.structs.replace(item, passed=False, error=9.0) for item in checks]
        return checks, report

    monkeypatch.setattr(judge, "verify_engine", broken)


def test_each_target_is_judged_alone(seeded, tmp_path, monkeypatch):
    fail_engine(monkeypatch, "openvino")
    report = export("vit", seeded("vit"), tmp_path / "half.vtx", FP32)
    assert [item.target for item in report.refused] == ["openvino"]
    manifest = Bundle.open(tmp_path / "half.vtx").manifest
    assert {graph.target for graph in manifest.graphs} == {"onnxruntime"}
    assert manifest.recommended == {"onnxruntime": "fp32"}
    with edgevtx.load(tmp_path / "half.vtx") as model:
        assert model.info.runtime == "onnxruntime"


@pytest.mark.parametrize(
    ("precisions", "recommended"),
    [
        (("fp16", "int8"), {}),
        (("fp16", "int8", "fp32"), {"tensorrt": "fp32"}),
        (("int8", "fp32"), {"tensorrt": "int8"}),
    ],
)
def test_int8_is_recommended_only_where_it_was_named_first(precisions, recommended, tmp_path):
    """Also where fp16, which is held to a tighter limit, failed."""
    facts = {"family": "toy", "task": "classify", "inputs": (), "outputs": (), "preprocess": None, "decode": None}
    facts |= {"labels": (), "graphs": (), "provenance": None, "tools": {}}
    verdicts = tuple(
        Verdict(target="tensorrt", precision=name, status="failed" if name == "fp16" else "graph-only")
        for name in precisions
    )
    manifest = Manifest(name="toy", verdicts=(), recommended={}, **facts)
    settled, _ = pipeline._settle(tmp_path, manifest, verdicts, replace(FP32, precisions=precisions))
    assert settled.recommended == recommended


def test_all_or_nothing_packs_nothing(seeded, tmp_path, monkeypatch):
    fail_engine(monkeypatch, "openvino")
    report = export("vit", seeded("vit"), tmp_path / "half.vtx", replace(FP32, all_or_nothing=True))
    assert report.bundle is None
    assert not (tmp_path / "half.vtx").exists()


def test_weights_that_ignore_the_image_are_insensitive(seeded, tmp_path, monkeypatch):
    checkpoint = seeded("vit")
    load = Checkpoint.load

    def deaf(self, *args, **kwargs):
        model = load(self, *args, **kwargs)
        model.classifier.weight.data.zero_()
        return model

    monkeypatch.setattr(Checkpoint, "load", deaf)
    report = export("vit", checkpoint, tmp_path / "deaf.vtx", replace(FP32, keep_failed=True))
    assert {item.status for item in report.refused} == {"insensitive"}
    with pytest.raises(VerificationError, match="cannot show a fault"):
        edgevtx.load(tmp_path / "deaf.vtx")


def test_a_map_of_one_class_shows_no_fault(seeded, tmp_path, monkeypatch):
    checkpoint = seeded("setr")
    load = Checkpoint.load_module

    def flat(self, *args, **kwargs):
        model = load(self, *args, **kwargs)
        model.decoder.classifier.bias.data[1] += 50
        return model

    monkeypatch.setattr(Checkpoint, "load_module", flat)
    report = export("setr", checkpoint, tmp_path / "flat.vtx", replace(FP32, targets=("onnxruntime",)))
    assert [item.status for item in report.refused] == ["insensitive"]
    assert "over 0 compared" in report.refused[0].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_nan_are_refused_before_anything_is_compared(value, seeded, tmp_path, monkeypatch):
    """The graphs give it too, which would be no proof."""
    checkpoint = seeded("vit")
    load = Checkpoint.load

    def broken(self, *args, **kwargs):
        model = load(self, *args, **kwargs)
        model.classifier.weight.data[0, 0] = value
        return model

    monkeypatch.setattr(Checkpoint, "load", broken)
    with pytest.raises(ExportError, match=r"NaN or infinity in 'scores' .* give another checkpoint"):
        export("vit", checkpoint, tmp_path / "nan.vtx", FP32)
    assert not list(tmp_path.glob("*.vtx"))


@pytest.mark.parametrize(
    ("off", "noise", "kept"),
    [
        (3e-4, {"scores": 2e-4}, True),
        (3e-4, {}, False),
        (3e-4, {"scores": 5e-5}, False),
        (2e-3, {"scores": 1.0}, False),
    ],
    ids=["the reference's rounding", "not measured", "less rounding", "too far for rounding"],
)
def test_an_engine_may_be_off_by_the_references_own_rounding(off, noise, kept, seeded, tmp_path, monkeypatch):
    right = verify.compare

    def compare(reference, outputs, *rest):
        return right(reference, {**outputs, "scores": outputs["scores"] + off * reference["scores"].std()}, *rest)

    monkeypatch.setattr(verify, "compare", compare)
    monkeypatch.setattr(judge, "rounding_noise", lambda network, exchanges, decode: noise)
    report = export("vit", seeded("vit"), tmp_path / "rough.vtx", replace(FP32, targets=("onnxruntime",)))
    assert (report.bundle is not None) == kept
    if kept:
        assert Bundle.open(tmp_path / "rough.vtx").manifest.noise == {"": noise}
        assert report.manifest.verdicts[0].sensitivity > SENSITIVE
    else:
        assert "values: scores" in report.refused[0].reason


def test_the_order_of_precisions_changes_no_verdict(seeded, tmp_path, monkeypatch):
    """Graphs are judged in fp32 under every precision, so the reference's noise counts under each."""
    right = verify.compare

    def compare(reference, outputs, decode, precision, noise):
        off = 3e-4 * reference["scores"].std() if precision == "fp32" else 0.0
        return right(reference, {**outputs, "scores": outputs["scores"] + off}, decode, precision, noise)

    monkeypatch.setattr(verify, "compare", compare)
    monkeypatch.setattr(judge, "rounding_noise", lambda network, exchanges, decode: {"scores": 2e-4})
    found = []
    for precisions in (("fp32", "bf16"), ("bf16", "fp32")):
        options = replace(FP32, targets=("openvino",), precisions=precisions)
        report = export("vit", seeded("vit"), tmp_path / f"{precisions[0]}.vtx", options)
        assert not report.refused
        found.append({item.precision: item.sensitivity for item in report.manifest.verdicts})
    assert found[0] == found[1] and len(set(found[0].values())) == 1


def test_a_module_that_differs_from_the_reference_is_refused(seeded, tmp_path, monkeypatch):
    """A swapped colour order in our own preprocessing: every graph agrees with it, the reference does not."""
    prepare = verify.prepare_item

    def swapped(frame, preprocess):
        image, geometry = prepare(frame, preprocess)
        return np.ascontiguousarray(image[..., ::-1]), geometry

    monkeypatch.setattr(verify, "prepare_item", swapped)
    report = export("vit", seeded("vit"), tmp_path / "swapped.vtx", FP32)
    assert report.refused[0].reason.startswith("reference")


def test_without_the_runtime_only_the_graph_is_judged(seeded, tmp_path, monkeypatch):
    from edgevtx.runtimes.base import Probe

    absent = Probe(name="openvino", available=False, reason="openvino is not installed", install="")
    monkeypatch.setattr(judge, "probe", lambda target: absent)
    report = export("vit", seeded("vit"), tmp_path / "graph.vtx", replace(FP32, targets=("openvino",)))
    assert [item.status for item in report.manifest.verdicts] == ["graph-only"]
    with edgevtx.load(tmp_path / "graph.vtx") as model:  # after the golden sample passed here
        assert model.info.verdict == "passed-here"


def test_bf16_is_proven_on_openvino_and_not_offered_on_onnx_runtime(seeded, tmp_path):
    from edgevtx.runtimes import get_backend
    from edgevtx.runtimes.base import EngineOptions

    options = replace(FP32, precisions=("fp32", "bf16"))
    report = export("vit", seeded("vit"), tmp_path / "two.vtx", options)
    assert report.skipped == ("onnxruntime bf16",)
    verdict = report.manifest.verdict("openvino", "bf16")
    assert verdict is not None
    if verdict.status == "graph-only":
        pytest.skip(f"this processor has no bf16: {verdict.reason}")
    assert verdict.status == "passed-here"
    assert verdict.precision_share["bf16"] > 0.9
    with edgevtx.load(tmp_path / "two.vtx", runtime="openvino", precision="bf16") as model:
        assert model.info.precision_share["bf16"] > 0.9
    with pytest.raises(InputError, match="onnxruntime is offered in fp32, and 'bf16' was asked for"):
        edgevtx.load(tmp_path / "two.vtx", runtime="onnxruntime", precision="bf16")
    assert get_backend("openvino").fingerprint(EngineOptions(precision="bf16")) != get_backend("openvino").fingerprint(
        EngineOptions(precision="fp32")
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ExportOptions(targets=("onnxruntime",), precisions=("bf16",)), "bf16"),
        (ExportOptions(targets=("coreml",)), "coreml"),
        (ExportOptions(precisions=("fp31",)), "fp31"),
        (
            ExportOptions(precisions=("fp32", "fp16")),
            "'fp16' .* choose of .*openvino at fp32, bf16",
        ),
        (ExportOptions(precisions=("int8",)), "'openvino' fits none of .* tensorrt-rtx at fp32, fp16, bf16, int8"),
        (ExportOptions(targets=("onnxruntime", "null")), "null"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_work(options, words, seeded, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "get_recipe", lambda family: pytest.fail("the work began"))
    with pytest.raises(InputError, match=words):
        export("vit", seeded("vit"), tmp_path / "no.vtx", options)
    assert not list(tmp_path.glob("*.vtx"))


def test_int8_is_nvidias_alone():
    pairs, skipped = pipeline._pairs(("openvino", "tensorrt"), ("int8", "fp32"))
    assert pairs == [("openvino", "fp32"), ("tensorrt", "int8"), ("tensorrt", "fp32")]
    assert skipped == ("openvino int8",)


def test_one_image_is_not_enough(seeded, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos/one.png")
    with pytest.raises(InputError, match="at least two"):
        export("vit", seeded("vit"), tmp_path / "no.vtx", replace(FP32, images=tmp_path / "photos"))


def test_an_output_below_a_file_cannot_be_written(seeded, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export("vit", seeded("vit"), tmp_path / "file" / "model.vtx", FP32)


def test_a_full_disk_leaves_no_half_bundle(seeded, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgevtx.bundle.os.fsync", full)
    with pytest.raises(OutputError, match="space"):
        export("vit", seeded("vit"), tmp_path / "model.vtx", FP32)
    assert not list(tmp_path.glob("*.vtx"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", ["edgevtx.export.pipeline.write_golden", "edgevtx.runtimes.ov.build"])
def test_a_full_disk_during_verification_is_one_sentence(place, seeded, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, full)
    with pytest.raises(OutputError, match=r"cannot write the .* the disk is full; free space"):
        export("vit", seeded("vit"), tmp_path / "model.vtx", FP32)
    assert not list(tmp_path.glob("*.vtx"))
    assert not list(tmp_path.glob(".*"))


def test_engines_are_verified_beside_the_bundle_to_be(seeded, tmp_path, monkeypatch):
    """A system's folder for temporary files is often in memory, and an engine may have gigabytes."""
    from edgevtx.runtimes import ort

    build, folders = ort.build, []
    monkeypatch.setattr(
        ort, "build", lambda graph, folder, options: [folders.append(folder), build(graph, folder, options)][1]
    )
    export("vit", seeded("vit"), tmp_path / "out" / "model.vtx", replace(FP32, targets=("onnxruntime",)))
    assert [folder.is_relative_to(tmp_path / "out") for folder in folders] == [True]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.vtx"]


def test_compile_never_says_how_to_compile(seeded, tmp_path):
    export("vit", seeded("vit"), tmp_path / "model.vtx", FP32)
    with pytest.raises(CompileError, match="edgevtx compile"):
        edgevtx.load(tmp_path / "model.vtx", compile="never")


def test_an_unusable_output_is_refused_before_the_work(seeded, tmp_path, monkeypatch):
    (tmp_path / "notes.vtx").write_text("not a bundle")
    monkeypatch.setattr(pipeline, "trace_all", lambda traceable: pytest.fail("the work began"))
    with pytest.raises(OutputError, match="no bundle"):
        export("vit", seeded("vit"), tmp_path / "notes.vtx", FP32)
    assert (tmp_path / "notes.vtx").read_text() == "not a bundle"


def test_the_faster_resize_is_held_to_looser_limits_and_recorded(seeded, tmp_path):
    options = replace(FP32, build=BuildOptions(resize="opencv"), targets=("onnxruntime",), keep_failed=True)
    report = export("vit", seeded("vit"), tmp_path / "fast.vtx", options)
    assert report.manifest.preprocess.resize == "opencv"
    check = report.manifest.verdicts[0].checks[0]
    assert check.name.startswith("reference")
    assert check.error is not None
    assert check.error > 1e-3  # it is another resize, and that shows
