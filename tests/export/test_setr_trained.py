"""The trained tiny SETR on photographs with fires painted in: class maps that have something to show.

It takes the whole way: bundle, runtime, predictor, command line; whole frames, and large ones in sliding windows.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import edgevtx  # noqa: E402
from edgevtx.cli import main  # noqa: E402
from edgevtx.export import setr  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import SAME_PIXELS, compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.windows import window_corners  # noqa: E402
from samples.forest_fire.scenes import paste_onto  # noqa: E402

CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "tiny_setr"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
WINDOWS = {"size": [256, 256], "stride": [171, 171]}
SLIDING = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 288, "longest_edge": 640}}


@cache
def burning(name):
    """A photograph with 15 smoke columns and 15 flames: the scene."""
    from skimage import data

    return paste_onto(np.ascontiguousarray(getattr(data, name)()[..., ::-1]), seed=1, count=30)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    """The checkpoint, asked to look at larger images in windows."""
    folder = tmp_path_factory.mktemp("sliding") / "setr"
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "window": WINDOWS}))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **SLIDING}))
    return folder


@pytest.fixture(scope="module")
def bundles(sliding, tmp_path_factory):
    """(checkpoint's folder, bundle), verified: whole frames and windows."""
    out = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVTX_CACHE", str(out / "cache"))
        made = {}
        for name, folder in (("whole", CHECKPOINT), ("windows", sliding)):
            report = export("setr", Checkpoint.open(folder), out / f"{name}.vtx", ExportOptions())
            assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2
            made[name] = (folder, out / f"{name}.vtx")
        yield made


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("kind", ["whole", "windows"])
def test_the_class_map_on_a_photograph_is_the_references(kind, name, bundles):
    folder, bundle = bundles[kind]
    reference = setr.build(Checkpoint.open(folder), BuildOptions()).reference(burning(name).frame)
    assert all(area > 2000 for area in reference.areas)  # smoke, flame and background alike
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(bundle, runtime=runtime) as model:
            found = model(burning(name).frame)
            assert (found.class_map == reference.class_map).mean() >= SAME_PIXELS
            assert compare_results(reference, found).passed
            swapped = model(np.ascontiguousarray(burning(name).frame[..., ::-1]))
            assert not compare_results(reference, swapped).passed  # a swapped colour order is noticed


def test_it_finds_smoke_and_flames(bundles):
    """Not only the reference's answer: a good one. Nothing but background would be 0.31 of mean IoU at most."""
    counts = np.zeros((3, 3), np.int64)
    with edgevtx.load(bundles["whole"][1]) as model:
        for name in PHOTOGRAPHS:
            truth, found = burning(name).class_map().astype(np.int64), model(burning(name).frame).class_map
            counts += np.bincount((truth * 3 + found).ravel(), minlength=9).reshape(3, 3)
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert iou.mean() > 0.5, iou
    assert iou.min() > 0.3, iou


def test_frames_of_a_batch_get_their_own_windows(bundles):
    frames = [burning(name).frame for name in ("coffee", "astronaut")]
    turned = np.ascontiguousarray(np.rot90(frames[0]))
    with edgevtx.load(bundles["windows"][1]) as model:
        assert model.batch_size == 1
        alone = [model(frame) for frame in (*frames, turned)]
        together = model.batch([*frames, turned])
        prepared = model.prepare(frames[0])
        corners = window_corners(prepared.geometries[0].input_size, model.manifest.preprocess.windows)
        assert len(prepared.inputs["pixels"]) == len(corners) > 1
        assert set(model.stages) == {"preprocess", "engine", "decode"}
        assert all(value > 0 for value in model.stages.values())
        narrow = model(frames[0][:40])  # smaller than a window
        region = model(frames[0], roi=(100, 50, 500, 350), rotation=180)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.class_map, other.class_map)
    assert narrow.class_map.shape == (40, frames[0].shape[1])
    assert (region.class_map[:50] == -1).all()
    assert set(np.unique(region.class_map[50:350, 100:500])) == {0, 1, 2}


def test_a_dynamic_batch_takes_all_windows_at_once(sliding, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    options = ExportOptions(build=BuildOptions(batch=None), targets=("onnxruntime",))
    report = export("setr", Checkpoint.open(sliding), tmp_path / "any.vtx", options)
    assert not report.refused
    reference = setr.build(Checkpoint.open(sliding), BuildOptions()).reference(burning("coffee").frame)
    with edgevtx.load(tmp_path / "any.vtx") as model:
        assert model.batch_size is None
        assert compare_results(reference, model(burning("coffee").frame)).passed


@pytest.mark.parametrize("kind", ["whole", "windows"])
def test_the_command_line_runs_it_on_an_image_and_a_folder(kind, bundles, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("coffee", "rocket"):
        write_image(photos / f"{name}.png", burning(name).frame)
    bundle = str(bundles[kind][1])
    assert main(["run", bundle, str(photos / "coffee.png")]) == 0
    said = capsys.readouterr().out
    assert "background" in said and "smoke" in said and "flame" in said and "%" in said
    assert main(["run", bundle, str(photos), "--out", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [Path(line["source"]).name for line in lines] == ["coffee.png", "rocket.png"]
    for line in lines:
        rows = line["result"]["segmentation"]["classes"]
        assert {row["label"] for row in rows} == {"background", "smoke", "flame"}
        assert sum(row["area"] for row in rows) == np.prod(line["result"]["segmentation"]["size"])
    assert len(list((tmp_path / "out" / "annotated").iterdir())) == 2
