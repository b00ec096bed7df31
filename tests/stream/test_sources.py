from __future__ import annotations

import functools
import http.server
import struct
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevtx.errors import RuntimeUnavailableError, SourceError
from edgevtx.stream import sources
from edgevtx.stream.sources import Capture, open_source, redact


def save(path: Path, image: Any) -> Path:
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(path)
    return path


def test_image_gives_one_frame_in_bgr(tmp_path: Path, picture: Any) -> None:
    path = save(tmp_path / "a.png", picture(3))
    before = time.time()
    with open_source(path) as source:
        (frame,) = source
    assert source.count == 1 and not source.live
    np.testing.assert_array_equal(frame.image, picture(3))
    assert (frame.index, frame.source, frame.position) == (0, str(path), None)
    assert before <= frame.captured <= time.time()


def test_folder_is_read_by_name_and_says_what_it_skipped(tmp_path: Path, picture: Any) -> None:
    for index, name in enumerate(["b.png", "a.png", "c.png"]):
        save(tmp_path / name, picture(index))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (tmp_path / "deeper").mkdir()
    with open_source(tmp_path) as source:
        names = [Path(frame.source).name for frame in source]
    assert names == ["a.png", "b.png", "c.png"]
    assert [(item.index, item.source) for item in source.skipped] == [
        (2, str(tmp_path / "broken.jpg")),
        (4, str(tmp_path / "notes.txt")),
    ]
    assert "damaged or truncated" in str(source.skipped[0]) and "is not an image" in str(source.skipped[1])


def test_video_frames_come_in_order_with_their_positions(make_video: Any, picture: Any) -> None:
    with open_source(make_video(frames=10)) as source:
        frames = list(source)
    assert isinstance(source, Capture)
    assert (source.fps, source.size, source.count) == (25.0, (96, 128), 10)
    assert [frame.index for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.position for frame in frames], np.arange(10) / 25)
    for index, frame in enumerate(frames):
        assert np.abs(frame.image.astype(int) - picture(index)).mean() < 4  # the codec's loss
    assert source.notes == []


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_of_a_video_is_applied(make_video: Any, picture: Any, degrees: int) -> None:
    with open_source(make_video(rotation=degrees)) as source:
        frame = next(iter(source))
    upright = np.rot90(picture(0), -degrees // 90)
    assert source.size == upright.shape[:2]
    assert frame.image.shape == upright.shape
    assert np.abs(frame.image.astype(int) - upright).mean() < 4


@pytest.mark.parametrize(
    ("name", "fourcc", "index_first"),
    [("cut.avi", "MJPG", False), ("cut.mp4", "mp4v", True), ("cut2.avi", "XVID", False)],
)
@pytest.mark.parametrize("keep", [0.5, 0.61, 0.72])
def test_a_video_that_ends_within_a_frame_gives_the_whole_frames_and_says_so(
    make_video: Any, picture: Any, name: str, fourcc: str, index_first: bool, keep: float
) -> None:
    path = make_video(name, 20, fourcc, index_first=index_first, keep=keep)
    with open_source(path) as source:
        frames = [frame.image for frame in source]
    assert 0 < len(frames) < 20
    for index, image in enumerate(frames):
        assert np.abs(image.astype(int) - picture(index)).mean() < 4
    assert source.notes == [
        f"{path} gave {len(frames)} whole frames where its header announces 20: the file is cut short or damaged"
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.jpg", "does not exist"),
        ("text.txt", "no image or video that can be read"),
        ("empty.mp4", "no image or video that can be read"),
        ("cut.mp4", "no image or video that can be read"),
        ("cut.png", "cut.png"),
        ("huge.png", "huge.png is refused as a possible decompression bomb"),
        ("empty", "holds no files"),
        ("texts", "none of the 1 files"),
        ("97", "camera is connected"),
        ("rtsp://user:secret@127.0.0.1:9/stream", "cannot open rtsp://127.0.0.1:9/stream"),
        ("http://127.0.0.1:9/a.mjpg", "check the address"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    tmp_path: Path, make_video: Any, picture: Any, spec: str, message: str, capfd: Any
) -> None:
    make_video("cut.mp4", keep=0.5)  # its index was at the end
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    whole = save(tmp_path / "whole.png", picture(1)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    huge = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    (tmp_path / "huge.png").write_bytes(huge)
    place = spec if spec == "97" or "://" in spec else str(tmp_path / spec)
    with pytest.raises(SourceError) as caught, open_source(place) as source:
        list(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_video_behind_a_url_is_a_file(make_video: Any) -> None:
    path = make_video(frames=10, index_first=True)
    handler = functools.partial(SilentHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        with open_source(url) as source:
            assert (source.live, source.count, source.name) == (False, 10, url)
            assert [frame.index for frame in source] == list(range(10))
        server.shutdown()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_video_without_opencv_names_the_extra(make_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeUnavailableError, match=r'pip install "edgevtx\[opencv\]"'):
        open_source(path)


def test_closing_twice_is_allowed_and_ends_the_iteration(make_video: Any) -> None:
    source = open_source(make_video())
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


class SlowHandle:
    """A capture whose `grab` takes until `go`; it notes when it is released, and whether a thread is in it then."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.released: list[bool] = []

    def get(self, key: int) -> float:
        return 0.0

    def grab(self) -> bool:
        self.inside.set()
        self.go.wait(60)
        self.inside.clear()
        return True

    def retrieve(self) -> tuple[bool, Any]:
        assert not self.released
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self) -> None:
        self.released.append(self.inside.is_set())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_camera_is_not_released_while_a_thread_is_in_it(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    handle = SlowHandle()
    monkeypatch.setattr(sources, "_open_capture", lambda address, name: handle)
    monkeypatch.setattr(sources, "CLOSE_SECONDS", 0.2 if hangs else 60.0)
    camera = Capture(0, name="camera 0", live=True)
    frames: list[Any] = []
    reader = threading.Thread(target=lambda: frames.extend(camera), daemon=True)
    reader.start()
    assert handle.inside.wait(60)
    if hangs:
        camera.close()
        assert handle.released == []
        handle.go.set()
    else:
        threading.Timer(0.1, handle.go.set).start()
        camera.close()
        assert handle.released == [False]
    reader.join(60)
    assert not reader.is_alive() and len(frames) <= 1


def test_the_users_ffmpeg_options_stay(make_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)
    with open_source(make_video()) as source:
        assert len(list(source)) == 12
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "threads;1"
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("rtsp://user:pass@host:554/live", "rtsp://host:554/live"),
        ("rtsp://host/live?a=b@c", "rtsp://host/live?a=b@c"),
        ("http://host/x.mjpg", "http://host/x.mjpg"),
    ],
)
def test_credentials_are_left_out_of_names(url: str, clean: str) -> None:
    assert redact(url) == clean
