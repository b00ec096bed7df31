from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import sys
import types
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import OutputError
from edgevtx.results import Classification
from edgevtx.stream import sinks
from edgevtx.stream.pipeline import Record
from edgevtx.stream.sinks import AnnotatedImages, AnnotatedVideo, JsonLines
from edgevtx.stream.sources import Frame, Skipped


@pytest.fixture
def record(picture: Any) -> Any:
    def make(
        index: int = 0,
        source: str = "clip.mp4",
        size: tuple[int, int] = (96, 128),
        captured: float = 0.0,
        monotonic: float = 0.0,
    ) -> Record:
        position = None if source.endswith((".png", ".gif")) else index / 25
        frame = Frame(picture(index, *size), index, captured or 1_700_000_000.25 + index, source, position, monotonic)
        result = Classification(np.array([7], np.int64), np.array([0.5], np.float32), ("thing",))
        return Record(frame, result, {"engine": 1.25}, 0.125)

    return make


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, which fails as a full disk does.

    Only around the call under test: the test run's own report may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_holds_the_frame_its_times_and_its_result(tmp_path: Path, record: Any) -> None:
    with JsonLines(tmp_path / "results.jsonl") as sink:
        for index in range(3):
            sink.write(record(index))
            lines = (tmp_path / "results.jsonl").read_text().splitlines()  # in the file already
            assert len(lines) == index + 1
    row = json.loads(lines[2])
    assert row == {
        "frame": 2,
        "source": "clip.mp4",
        "captured": "2023-11-14T22:13:22.250Z",
        "captured_unix": 1_700_000_002.25,
        "position_seconds": 0.08,
        "age_ms": 125.0,
        "stages_ms": {"engine": 1.25},
        "result": {"classes": [{"class_id": 7, "label": "thing", "score": 0.5}]},
    }
    assert datetime.fromisoformat(row["captured"].replace("Z", "+00:00")) == datetime.fromtimestamp(
        row["captured_unix"], timezone.utc
    )


def test_a_skipped_file_has_a_line_with_its_error(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "results.jsonl") as sink:
        sink.skip(Skipped(3, "photos/a.txt", "photos/a.txt is not an image"))
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert row == {"frame": 3, "source": "photos/a.txt", "error": "photos/a.txt is not an image"}


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonLines(path)
    sink.write(record(0))
    line = path.stat().st_size
    with file_limit(int(2.5 * line)):
        sink.write(record(1))
        with pytest.raises(OutputError, match=r"cannot write .*results\.jsonl"):
            sink.write(record(2))
    sink.close()
    assert [json.loads(row)["frame"] for row in path.read_text().splitlines()] == [0, 1]
    assert path.read_bytes().endswith(b"\n")


def test_a_full_disk_behind_standard_output_is_said(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=Full()))
    with pytest.raises(OutputError, match="standard output: the disk is full"):
        JsonLines(None).write(record())


def test_a_run_without_frames_leaves_no_file(tmp_path: Path) -> None:
    JsonLines(tmp_path / "results.jsonl").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make", [JsonLines, lambda path, **k: AnnotatedVideo(path, fps=25, **k)], ids=["lines", "video"]
)
def test_an_existing_file_is_kept_unless_overwrite(tmp_path: Path, make: Any, record: Any) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        make(path)
    assert path.read_text() == "precious"
    with make(path, overwrite=True) as sink:
        sink.write(record())
    assert path.read_bytes() != b"precious"


def test_annotated_images_keep_their_names(tmp_path: Path, record: Any) -> None:
    from edgevtx.images import read_image

    folder = tmp_path / "deep" / "annotated"
    with AnnotatedImages(folder) as sink:
        for name in ("a.png", "b.gif"):
            sink.write(record(0, f"photos/{name}"))
        sink.write(record(5, "clip.mp4"))
        with pytest.raises(OutputError, match="exists"):
            sink.write(record(0, "others/a.png"))
    assert sorted(path.name for path in folder.iterdir()) == ["000005.jpg", "a.png", "b.gif.png"]
    np.testing.assert_array_equal(read_image(folder / "a.png"), record(0).result.draw(record(0).frame.image))


def test_annotated_video_has_every_frame_with_its_result_drawn(tmp_path: Path, record: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "new" / "annotated.mp4"
    with AnnotatedVideo(path, fps=25) as sink:
        for index in range(8):
            sink.write(record(index))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == 25
    for index in range(8):
        whole, image = capture.read()
        assert whole
        drawn = record(index).result.draw(record(index).frame.image)
        assert np.abs(image.astype(int) - drawn).mean() < 8
    assert not capture.read()[0]
    capture.release()


def test_a_live_video_plays_at_the_speed_of_the_source(tmp_path: Path, record: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "annotated.mp4"
    with AnnotatedVideo(path, fps=10, realtime=True) as sink:
        for index, monotonic in enumerate([100.0, 100.5, 101.0]):
            sink.write(record(index, monotonic=monotonic))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 11
    capture.release()


@pytest.mark.parametrize("step", [3600, -3600])
def test_a_live_video_does_not_follow_the_clock(tmp_path: Path, record: Any, step: int) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "annotated.mp4"
    with AnnotatedVideo(path, fps=10, realtime=True) as sink:
        for index in range(4):
            captured = 1_700_000_000 + index / 10 + (step if index > 1 else 0)
            sink.write(record(index, captured=captured, monotonic=5 + index / 10))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_a_long_gap_of_a_live_video_is_shortened(tmp_path: Path, record: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "annotated.mp4"
    with AnnotatedVideo(path, fps=2, realtime=True) as sink:
        for index, monotonic in enumerate([5.0, 5.5, 3605.5, 3606.0]):
            sink.write(record(index, monotonic=monotonic))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 2 + 20 + 1  # ten seconds of the gap
    assert sink.notes == [f"{path} leaves out 3590 s in which no frame came"]


def test_the_disk_may_fill_while_a_frame_is_repeated(
    tmp_path: Path, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    free = iter([sinks._SPARE_BYTES] * 3)
    monkeypatch.setattr(sinks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": next(free, 0)}))
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=10, realtime=True)
    sink.write(record(0, monotonic=5.0))
    with pytest.raises(OutputError, match="full; it holds the 3 frames before"):
        sink.write(record(1, monotonic=6.0))
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_video_whose_source_changes_size_ends_complete(tmp_path: Path, record: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=25)
    sink.write(record(0))
    with pytest.raises(OutputError, match="128x96 to 64x48"):
        sink.write(record(1, size=(48, 64)))
    sink.close()
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_a_video_is_closed_before_the_disk_is_full(
    tmp_path: Path, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=25)
    for index in range(4):
        sink.write(record(index))
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(sinks.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="full; it holds the 4 frames before"):
        sink.write(record(4))
    sink.close()
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_a_video_that_was_not_written_is_noticed(tmp_path: Path, record: Any) -> None:
    pytest.importorskip("cv2")
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=25)
    with file_limit(2000):
        for index in range(20):
            sink.write(record(index))
        with pytest.raises(OutputError, match="of the 20 frames"):
            sink.close()


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        AnnotatedImages(tmp_path / "file" / "folder")
    with pytest.raises(OutputError, match="cannot write"):
        JsonLines(tmp_path / "missing" / "results.jsonl")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="permission denied"):
            AnnotatedImages(tmp_path / "locked")
