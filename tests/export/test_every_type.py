"""Every type that a recipe reads as a bundle: its answer on both runtimes, a second input size, `edgevtx run`."""

from __future__ import annotations

import json
from functools import cache

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
cv2 = pytest.importorskip("cv2")
from click.testing import CliRunner  # noqa: E402

import edgevtx  # noqa: E402
from edgevtx.cli import cli  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe  # noqa: E402
from edgevtx.export.samples import load_clips, load_photos, move_over  # noqa: E402
from edgevtx.images import read_image, write_image  # noqa: E402
from tests.export.kinds import CONFIGURED, each, each_configured  # noqa: E402
from tests.export.onnx_files import STYLES, network  # noqa: E402

RUNTIMES = ("openvino", "onnxruntime")
EVERYTHING = {"threshold": 0.0}  # seeded detectors are sure of little
LIMITS = {"Detections": EVERYTHING, "PanopticSegmentation": EVERYTHING}


@pytest.fixture(scope="module")
def exported(config_folder, another_size, photos, tmp_path_factory):
    """(family, kind, another=) -> the report of a tiny bundle's export, and its traceable; the same one each time.

    `another`: of a second input size, with a dynamic batch.
    """

    @cache
    def make(family, kind, another=False):
        folder, options = tmp_path_factory.mktemp("bundle"), ExportOptions()
        if family == "onnx":
            source = OnnxFile.open(network(folder / "x.onnx", kind), STYLES[kind])
            (folder / "photos").mkdir()
            for name in ("chelsea", "portrait"):  # to these networks the flat parts of rendered scenes are all equal
                write_image(folder / "photos" / f"{name}.png", photos[name])
            options = ExportOptions(images=folder / "photos")
        else:
            kind, _, task = kind.partition(" ")
            changes = another_size(family) if another else {}
            source = Checkpoint.open(config_folder(family, kind, **changes), seed=0)
            options = ExportOptions(build=BuildOptions(task=task or None, batch=None if another else 1))
        report = export(family, source, folder / f"{family}.vtx", options)
        return report, get_recipe(family).build(source, options.build)

    return make


def result_of(family, kind):
    recipe = get_recipe(family)
    return recipe.results.get(kind.partition(" ")[2], recipe.result)


@each_configured
def test_every_type_goes_from_checkpoint_to_the_answer_of_the_reference(family, kind, exported, photos):
    report, traceable = exported(family, kind)
    assert [(item.target, item.status) for item in report.manifest.verdicts] == [
        (runtime, "passed-here") for runtime in RUNTIMES
    ]
    clip = traceable.preprocess.clip
    # not of the verification; on coffee the seeded masks merge into one segment, which would prove nothing
    photo = photos["astronaut" if family == "detr_panoptic" else "coffee"]
    frame = photo if clip is None else move_over(photo, clip.frames)
    reference = traceable.reference(frame)
    for runtime in RUNTIMES:
        with edgevtx.load(report.bundle, runtime=runtime) as model:
            assert model.info.verdict == "passed-here"
            assert model.info.precision_share.get("f32", 0) > 0.99
            found = model(frame, **LIMITS.get(result_of(family, kind), {}))
            assert type(found).__name__ == result_of(family, kind)
            if traceable.task == "prompt":  # answered without a prompt, which the reference is not: test_sam
                continue
            check = compare_results(reference, found)
            assert check.passed and check.compared >= 5, check


# test_attention_cnn exports the other blocks at a second size
SECOND = [case for case in CONFIGURED if case[0] != "attention_cnn" or case[1] == "sagan_resnet"]


@each(SECOND)
def test_a_dynamic_batch_and_another_input_size_go_to_both_runtimes(family, kind, exported):
    report, _ = exported(family, kind, another=True)
    assert report.manifest.image_input.shape[0] is None
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2
    clip = report.manifest.preprocess.clip
    frames = [photo.frame for photo in (load_photos(None) if clip is None else load_clips(None, clip))]
    for runtime in RUNTIMES:
        with edgevtx.load(report.bundle, runtime=runtime) as model:
            assert len(model.batch(frames)) == len(frames) == 4


# -- drawn by `edgevtx run` --------------------------------------------------------------------------------------

# a type for each task of each family, and of clips; rows of the JSON stand under these words
DRAWN = {(family, task_kind.partition(" ")[2]): (family, task_kind) for family, task_kind in reversed(CONFIGURED)}
DRAWN |= {"clips": ("attention_cnn", "nonlocal_video_resnet"), "import": ("onnx", "yolox")}
ROWS = {
    "Classification": ("classes",),
    "Detections": ("detections",),
    "Features": ("features",),
    "Masks": ("masks",),
    "PanopticSegmentation": ("segments", "masks", "detections"),
    "SemanticSegmentation": ("segmentation",),
}
OPTIONS = {
    "Detections": ["--threshold", 0.3],
    "PanopticSegmentation": ["--threshold", 0.3],
    "Masks": ["--points", "200,150"],
}


def test_every_family_is_drawn():
    assert {family for family, _ in DRAWN.values()} == set(FAMILIES)
    assert {result_of(*case) for case in DRAWN.values()} == set(ROWS)


@each(list(DRAWN.values()))
def test_edgevtx_run_draws_it_and_writes_its_json(family, kind, exported, photos, tmp_path):
    report, traceable = exported(family, kind)
    out, clip, photo = tmp_path / "out", traceable.preprocess.clip, photos["astronaut"]
    source = tmp_path / "shown.png"
    if clip is None:
        write_image(source, photo)
    else:
        source = write_video(tmp_path / "shown.mp4", move_over(photo, 2 * clip.frames), clip.fps)
    result = result_of(family, kind)
    arguments = ["run", report.bundle, source, "--out", out, *OPTIONS.get(result, [])]
    found = CliRunner().invoke(cli, [str(item) for item in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.stderr
    lines = [json.loads(line)["result"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert tuple(lines[-1]) == ROWS[result] and all(lines[-1].values())
    assert result != "Features" or ("maps" in lines[-1]["features"]) == (family == "swin")
    if clip is None:
        drawn = read_image(out / "annotated" / "shown.png")
        assert len(lines) == 1 and drawn.shape == photo.shape and (drawn != photo).any()
    else:
        drawn = read_video(out / "annotated.mp4")
        assert len(lines) == len(drawn) == 2 * clip.frames


def write_video(path, frames, fps):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    capture.release()
    return frames
