"""Pipelines of GStreamer, by an OpenCV whose captures are made up: pip's builds, which the tests run on, have none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import RuntimeUnavailableError, SourceError
from edgevtx.stream import opencv, sources
from edgevtx.stream.live import newest
from edgevtx.stream.sources import open_source, pipeline_name

cv2 = pytest.importorskip("cv2")

CSI = (
    "gst:nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! nvvidconv ! "
    "video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"
)
SECRETS = "gst:rtspsrc location=rtsp://user:hidden@camera/live user-pw=hidden ! decodebin ! videoconvert ! appsink"


class FakeCapture:
    """A capture of so many frames (4,6,3); it notes how it was opened and that it was released."""

    def __init__(self, frames: int, opened: bool = True, channels: int = 3, **announced: float) -> None:
        self.left, self.opened, self.announced, self.asked = frames, opened, announced, ()
        self.frame = np.full((4, 6, channels), 7, np.uint8)
        self.released = 0

    def __call__(self, *arguments: Any) -> FakeCapture:
        self.asked = arguments
        return self

    def isOpened(self) -> bool:  # noqa: N802 -- OpenCV's name
        return self.opened

    def get(self, key: int) -> float:
        return self.announced.get({cv2.CAP_PROP_FPS: "fps", cv2.CAP_PROP_FRAME_COUNT: "count"}.get(key, ""), -1.0)

    def set(self, key: int, value: float) -> bool:
        return False

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, Any]:
        return True, self.frame

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def gstreamer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCapture]:
    """gstreamer(frames, ...) -> the capture that an OpenCV with GStreamer opens, whatever it is asked for."""

    def make(frames: int = 3, **facts: Any) -> FakeCapture:
        capture = FakeCapture(frames, **facts)
        monkeypatch.setattr(cv2, "VideoCapture", capture)
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Video I/O:\n    GStreamer:   YES (1.20.3)\n")
        return capture

    return make


def test_a_pipeline_is_opened_by_gstreamer_with_timeouts(gstreamer: Callable[..., FakeCapture]) -> None:
    capture = gstreamer(fps=30.0)
    with open_source(CSI) as source:
        assert (source.live, source.fps, source.count) == (True, 30.0, None)
        frame = next(iter(source))
    pipeline, backend, options = capture.asked
    assert pipeline == CSI.removeprefix("gst:") and backend == cv2.CAP_GSTREAMER
    timeouts = dict(zip(options[::2], options[1::2], strict=True))
    assert timeouts == {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: sources.OPEN_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: sources.READ_TIMEOUT_MS,
    }
    assert (frame.image == 7).all() and frame.image.shape == (4, 6, 3)
    assert (frame.index, frame.source, frame.position) == (0, "gst:nvarguscamerasrc sensor-id=1", None)
    assert capture.released == 1


@pytest.mark.parametrize(("frames", "words"), [(0, "opened but gave no frame"), (3, "stopped after 3 frames")])
def test_a_pipeline_that_stalls_or_ends_is_an_error_that_says_what_to_do(
    gstreamer: Callable[..., FakeCapture], frames: int, words: str
) -> None:
    gstreamer(frames)  # a read that runs into OpenCV's timeout fails like the last one
    with pytest.raises(SourceError, match=words) as caught, open_source(CSI) as source:
        list(source)
    assert "gst-launch-1.0" in str(caught.value) and "connected" in str(caught.value)


def test_a_late_reader_gets_a_pipeline_s_newest_frame(gstreamer: Callable[..., FakeCapture]) -> None:
    gstreamer(5)
    with open_source(CSI) as source:
        frames = newest(iter(source), threading.Event())
        first = next(frames)
        with pytest.raises(SourceError, match="stopped after 5 frames"):
            while True:
                last = next(frames, first)
                assert last.index >= first.index
                first = last


def test_a_file_in_a_pipeline_is_no_camera(gstreamer: Callable[..., FakeCapture]) -> None:
    gstreamer(3, count=3.0)
    spec = "gst:filesrc location=clip.mp4 ! decodebin ! videoconvert ! video/x-raw,format=BGR ! appsink"
    with open_source(spec) as source:
        assert not source.live and source.name == "gst:filesrc location=clip.mp4"
        assert len(list(source)) == 3 and source.notes == []


def test_a_pipeline_that_does_not_start_is_an_error(gstreamer: Callable[..., FakeCapture]) -> None:
    capture = gstreamer(opened=False)
    with pytest.raises(SourceError, match="cannot open gst:nvarguscamerasrc sensor-id=1; check that the camera"):
        open_source(CSI)
    assert capture.released == 1


@pytest.mark.parametrize("spec", ["gst:", "gst:v4l2src ! videoconvert", "gst:v4l2src ! myappsink ! fakesink"])
def test_a_pipeline_without_appsink_is_refused(gstreamer: Callable[..., FakeCapture], spec: str) -> None:
    capture = gstreamer()
    with pytest.raises(SourceError, match=r"without appsink.*! videoconvert ! video/x-raw,format=BGR ! appsink"):
        open_source(spec)
    assert capture.asked == ()


@pytest.mark.parametrize("channels", [1, 2])
def test_frames_that_are_not_bgr_are_refused_with_the_elements_that_convert(
    gstreamer: Callable[..., FakeCapture], channels: int
) -> None:
    gstreamer(channels=channels)
    with pytest.raises(SourceError, match=r"not \(H,W,3\) BGR; end the pipeline in"), open_source(CSI) as source:
        next(iter(source))


@pytest.mark.parametrize(
    ("wheels", "words"),
    [({"opencv-python-headless": "5.0"}, "pip uninstall opencv-python-headless"), ({}, "use the system's OpenCV")],
)
def test_an_opencv_without_gstreamer_says_where_one_with_it_is(
    gstreamer: Callable[..., FakeCapture], monkeypatch: pytest.MonkeyPatch, wheels: dict[str, str], words: str
) -> None:
    capture = gstreamer()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Video I/O:\n    GStreamer:   NO\n")
    monkeypatch.setattr(opencv, "_is_installed", lambda package: package in wheels)
    with pytest.raises(RuntimeUnavailableError, match="needs an OpenCV with GStreamer") as caught:
        open_source(SECRETS)
    assert words in str(caught.value) and "--system-site-packages" in str(caught.value)
    assert "hidden" not in str(caught.value) and capture.asked == ()


def test_no_error_no_log_and_no_record_has_a_pipeline_s_secrets(
    gstreamer: Callable[..., FakeCapture], caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for facts in ({"opened": False}, {"frames": 0}, {"frames": 1}, {"channels": 1}):
        gstreamer(**facts)
        with pytest.raises(SourceError) as caught, open_source(SECRETS) as source:
            said += [frame.source for frame in source]
        said.append(str(caught.value))
    everything = " ".join([*said, caplog.text, *capfd.readouterr()])
    assert "gst:rtspsrc location=rtsp://camera/live" in everything
    assert "hidden" not in everything and "user" not in everything


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("gst:v4l2src device=/dev/video2 ! x ! appsink", "gst:v4l2src device=/dev/video2"),
        ("gst: v4l2src  device = /dev/video2 io-mode=2!x ! appsink", "gst:v4l2src device=/dev/video2"),
        ("gst:videotestsrc ! appsink", "gst:videotestsrc"),
        ('gst:rtspsrc location="rtsp://a:b!c@h/live" user-id=a ! appsink', "gst:rtspsrc location=rtsp://h/live"),
        ('gst:rtspsrc user-pw="a location=b" ! appsink', "gst:rtspsrc"),
        ("gst:souphttpsrc location=http://h/x?password=a cookies=a ! appsink", "gst:souphttpsrc location=http://h/x"),
        ("gst:souphttpsrc\tlocation=http://h/x;token=a ! appsink", "gst:souphttpsrc location=http://h/x"),
        ("gst: ! appsink", "gst:"),
        ("gst:rtspsrc user-pw=location=a location=rtsp://h/x ! appsink", "gst:rtspsrc location=rtsp://h/x"),
    ],
)
def test_a_pipeline_s_name_has_its_camera_and_no_more(spec: str, name: str) -> None:
    assert pipeline_name(spec) == name
