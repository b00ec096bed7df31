"""Imported ONNX graphs as bundles: exported, verified and run like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

import edgevtx  # noqa: E402
from edgevtx.compare import compare  # noqa: E402
from edgevtx.errors import CheckpointError  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.onnx_graph import build  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.export.trace import trace  # noqa: E402
from edgevtx.images import write_image  # noqa: E402
from edgevtx.preprocess import prepare  # noqa: E402
from edgevtx.results import Detections  # noqa: E402
from edgevtx.runtimes.base import Array  # noqa: E402
from tests.export.onnx_files import SIZE, STYLES, Written, network  # noqa: E402

each_style = pytest.mark.parametrize("style", STYLES)


@pytest.fixture
def pictures(tmp_path: Path, photos: dict[str, Array]) -> Path:
    """A folder of two photographs to verify on: these networks give the flat parts of rendered scenes equal scores."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("chelsea", "portrait"):
        write_image(folder / f"{name}.png", photos[name])
    return folder


@each_style
def test_it_is_exported_and_gives_the_references_answer(
    style: str, tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    path = network(tmp_path / f"{style}.onnx", style)
    file = OnnxFile.open(path, STYLES[style])
    report = export("onnx", file, tmp_path / "model.vtx", ExportOptions(images=pictures))
    assert [item.status for item in report.manifest.verdicts] == ["passed-here"] * 2, report.manifest.verdicts
    assert report.manifest.provenance.checkpoint == path.name
    assert report.manifest.provenance.checkpoint_sha256 == file.sha256
    frame = photos["coffee"]
    reference = build(file, BuildOptions()).reference(frame)
    for runtime in ("openvino", "onnxruntime"):
        with edgevtx.load(tmp_path / "model.vtx", runtime=runtime) as model:
            found = model(frame, threshold=0.0)
            check = compare_results(reference, found)
            assert check.passed and check.compared >= 5, check
            if isinstance(found, Detections):
                assert 2 <= len(model(frame)) < len(found)  # what scores above the default is some, not all


@each_style
@pytest.mark.parametrize("batch", [2, None])
def test_a_batch_gives_what_its_frames_give_alone(
    style: str, batch: int | None, tmp_path: Path, photos: dict[str, Array]
) -> None:
    alone = build(OnnxFile.open(network(tmp_path / "one.onnx", style), STYLES[style]), BuildOptions())
    how = Written(shape=("batch", 3, *SIZE) if batch is None else (batch, 3, *SIZE))
    several = build(OnnxFile.open(network(tmp_path / "n.onnx", style, how), STYLES[style]), BuildOptions(batch=batch))
    names = ("coffee", "chelsea", "portrait")[: batch or 3]
    frames = np.stack([prepare(photos[name], alone.preprocess)[0] for name in names])
    together = several.module(torch.from_numpy(frames))
    for index, frame in enumerate(frames):
        values = alone.module(torch.from_numpy(frame[None]))
        names_of = [spec.name for spec in alone.outputs]
        one = {name: value.numpy() for name, value in zip(names_of, values, strict=True)}
        row = {name: value.numpy()[index : index + 1] for name, value in zip(names_of, together, strict=True)}
        checks = compare(one, row, alone.decode, "fp32")  # rows of equal scores may swap their places
        assert all(check.passed for check in checks), checks


def test_a_dynamic_batch_is_exported(
    tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    path = network(tmp_path / "n.onnx", "yolov8", Written(shape=("batch", 3, *SIZE)))
    options = ExportOptions(build=BuildOptions(batch=None), images=pictures)
    report = export("onnx", OnnxFile.open(path, STYLES["yolov8"]), tmp_path / "model.vtx", options)
    assert not report.refused
    frames = [photos[name] for name in ("coffee", "chelsea", "flower")]
    with edgevtx.load(tmp_path / "model.vtx") as model:
        for one, found in zip([model(frame) for frame in frames], model.batch(frames), strict=True):
            np.testing.assert_allclose(found.boxes, one.boxes, atol=1e-2)


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 22, 23])
def test_graphs_of_every_opset_become_one_that_the_targets_read(opset: int, tmp_path: Path) -> None:
    path = network(tmp_path / "old.onnx", "yolov8", Written(opset=min(opset, 17)))
    if opset > 17:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    expected = build(OnnxFile.open(network(tmp_path / "new.onnx", "yolov8"), STYLES["yolov8"]), BuildOptions())
    found = build(OnnxFile.open(path, STYLES["yolov8"]), BuildOptions())
    assert 20 <= trace(found).opset_imports[""] <= 23
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8))
    for one, other in zip(expected.module(pixels), found.module(pixels), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_weights_in_another_file_are_read_and_hashed(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 64}
    path = network(tmp_path / "big.onnx", "yolox", **options)
    before = OnnxFile.open(path, STYLES["yolox"]).sha256
    build(OnnxFile.open(path, STYLES["yolox"]), BuildOptions())
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[2] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert OnnxFile.open(path, STYLES["yolox"]).sha256 != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"big\.onnx keeps its weights in weights\.bin, which is missing"):
        OnnxFile.open(path, STYLES["yolox"])


def test_an_open_size_is_fixed_and_the_grid_follows(tmp_path: Path) -> None:
    how = Written(shape=("n", 3, "h", "w"))
    path = network(tmp_path / "open.onnx", "yolov5-raw", how)
    with pytest.raises(CheckpointError, match=r"cannot be run on images \[1, 3, 128, 128\]: .* give another --size"):
        # its reshape has the rows and columns of another size
        build(OnnxFile.open(path, replace(STYLES["yolov5-raw"], size=(128, 128))), BuildOptions())
    traceable = build(OnnxFile.open(path, replace(STYLES["yolov5-raw"], size=SIZE)), BuildOptions())
    assert traceable.inputs[0].shape == (1, *SIZE, 3)


@pytest.mark.parametrize(
    ("stated", "labels"),
    [
        ("{0: 'ant', 1: 'bee', 2: 'fly'}", ("ant", "bee", "fly")),
        ("['ant', \"bee's\", 'a, [b]: c']", ("ant", "bee's", "a, [b]: c")),
        ("{0: 7, 1: 8, 2: 9}", ("7", "8", "9")),
        ("{0: 'ant', 2: 'bee', 3: 'fly'}", None),
        ("__import__('os')", None),
        ("[[['ant', 'bee', 'fly']]]", None),
        ("['a' * 9, 'b', 'c']", None),
        ("[" * 100_000, None),
        ("[" + "'ant', " * 1_000_000 + "]", None),
        ("", None),
    ],
    ids=["dict", "list", "numbers", "gap", "code", "nested", "operator", "deep", "long", "none"],
)
def test_names_are_read_from_the_metadata_without_running_it(
    stated: str, labels: tuple[str, ...] | None, tmp_path: Path
) -> None:
    how = Written(metadata=(("names", stated), ("license", "MIT")))
    file = OnnxFile.open(network(tmp_path / "named.onnx", "yolov8", how), STYLES["yolov8"])
    assert build(file, BuildOptions()).labels == (labels or ("class 0", "class 1", "class 2"))
    assert build(file, BuildOptions(labels=("a", "b", "c"))).labels == ("a", "b", "c")
    assert file.licence == "MIT"


def test_a_wrong_wrapper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    from edgevtx.export import onnx_nodes

    grid = onnx_nodes._grid
    monkeypatch.setattr(onnx_nodes, "_grid", lambda found: (grid(found)[0][..., ::-1], grid(found)[1]))
    file = OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), STYLES["yolox"])
    report = export("onnx", file, tmp_path / "model.vtx", ExportOptions())
    assert report.bundle is None
    assert report.refused[0].reason.startswith("reference")


def test_denoising_is_verified_and_changes_what_the_network_sees(
    tmp_path: Path, photos: dict[str, Array], pictures: Path, empty_cache: Path
) -> None:
    from edgevtx.rules import Lark

    file = OnnxFile.open(network(tmp_path / "x.onnx", "yolox"), STYLES["yolox"])
    answers = {}
    for how in (None, Lark(smoothing=2.5)):
        out = tmp_path / f"{how is None}.vtx"
        options = ExportOptions(denoise=how, targets=("onnxruntime",), images=pictures)
        report = export("onnx", file, out, options)
        assert not report.refused
        assert report.manifest.preprocess.denoise == how
        with edgevtx.load(out) as model:
            answers[how] = model(photos["coffee"], threshold=0.0)
            assert ("denoise" in model.stages) == (how is not None)
    (plain, denoised) = answers.values()
    assert not np.array_equal(plain.scores, denoised.scores)
