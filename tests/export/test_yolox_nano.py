"""A real detector: the published YOLOX-Nano (COCO, 416 px), imported and run on real frames.

`yolox_nano.onnx`, `vtest.avi` (of OpenCV's samples: pedestrians on a campus) and a street photograph with a bus,
`bus.jpg`, are looked for in `EDGEVTX_TEST_DATA`, or in `shared/data` beside the checkout; the photograph also in the
package ultralytics, which ships it. None of them is part of the project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")

import edgevtx  # noqa: E402
from edgevtx.export.labels import COCO  # noqa: E402
from edgevtx.export.onnx_file import OnnxFile  # noqa: E402
from edgevtx.export.onnx_graph import build  # noqa: E402
from edgevtx.export.onnx_settings import ImportOptions  # noqa: E402
from edgevtx.export.parity import compare_results  # noqa: E402
from edgevtx.export.pipeline import ExportOptions, export  # noqa: E402
from edgevtx.export.recipe import BuildOptions  # noqa: E402
from edgevtx.results import Detections  # noqa: E402

OPTIONS = BuildOptions(labels=COCO)


@pytest.fixture(scope="module")
def file(data_file: Callable[[str], Path]) -> OnnxFile:
    return OnnxFile.open(data_file("yolox_nano.onnx"), ImportOptions(decode="yolox"))


@pytest.fixture(scope="module")
def model(file: OnnxFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgevtx.Predictor]:
    out = tmp_path_factory.mktemp("yolox") / "yolox.vtx"
    report = export("onnx", file, out, ExportOptions(build=OPTIONS))
    assert [item.status for item in report.manifest.verdicts] == ["passed-here", "passed-here"]
    with edgevtx.load(out) as loaded:
        yield loaded


def test_it_finds_the_bus_and_the_persons_on_a_street(
    model: edgevtx.Predictor, file: OnnxFile, data_file: Callable[[str], Path]
) -> None:
    frame = edgevtx.read_image(data_file("bus.jpg"))
    found = model(frame)
    assert isinstance(found, Detections)
    confident = found[found.scores > 0.5]
    assert confident.labels[0] == "bus" and confident.labels.count("bus") == 1
    assert confident.labels.count("person") >= 3 and set(confident.labels) == {"bus", "person"}
    reference = build(file, OPTIONS).reference(frame)
    assert compare_results(reference, model(frame, threshold=0.0)).passed


@pytest.mark.parametrize("number", [0, 200, 400])
def test_it_finds_the_pedestrians_of_a_real_video(
    number: int, model: edgevtx.Predictor, file: OnnxFile, data_file: Callable[[str], Path]
) -> None:
    video = cv2.VideoCapture(str(data_file("vtest.avi")))
    video.set(cv2.CAP_PROP_POS_FRAMES, number)
    frame = video.read()[1]
    video.release()
    found = model(frame)
    assert isinstance(found, Detections)
    persons = found[(found.class_ids == COCO.index("person")) & (found.scores > 0.5)]
    assert len(persons) >= 4
    width, height = (persons.boxes[:, 2:] - persons.boxes[:, :2]).T
    assert (height > 1.4 * width).all()  # they stand
    assert (height < 0.4 * frame.shape[0]).all()
    # they are darker than the road on which they walk
    for x0, y0, x1, y1 in persons.boxes.round().astype(int).clip(0):
        box, around = frame[y0:y1, x0:x1], frame[max(0, y0 - 20) : y1 + 20, max(0, x0 - 20) : x1 + 20]
        assert np.percentile(box, 20) < np.percentile(around, 20)
    reference = build(file, OPTIONS).reference(frame)
    check = compare_results(reference, model(frame, threshold=0.0))
    assert check.passed and check.compared >= 40, check


def test_one_person_is_one_box(model: edgevtx.Predictor, data_file: Callable[[str], Path]) -> None:
    """Without suppression the same frame gives every person several times."""
    video = cv2.VideoCapture(str(data_file("vtest.avi")))
    frame = video.read()[1]
    video.release()
    outputs = model.infer(model.prepare(frame))
    found = model(frame)
    assert isinstance(found, Detections)
    assert len(found) < (outputs["scores"][0] > 0.25).sum() / 2
