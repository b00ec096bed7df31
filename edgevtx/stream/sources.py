"""Where frames come from: an image, a folder of images, a video file, a camera, a network stream or a pipeline.

    with open_source("clip.mp4") as source:
        for frame in source:
            model(frame.image)

Images are read by Pillow. Video, cameras and network streams need OpenCV, which is imported when the first of
them is opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import RuntimeUnavailableError, SourceError
from edgevtx.stream.opencv import built_with, gstreamer_step, import_cv2, quiet

PIPELINE = "gst:"
"""What a pipeline of GStreamer begins with, in place of a URL's scheme."""

_TOLD = ("sensor-id", "sensor_id", "device", "location")  # an element's properties that are no secrets
_QUOTES = "\"'"
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 10_000
CLOSE_SECONDS = 1.0  # how long `close` waits for another thread that is reading
_EXACT_COUNT = {".mp4", ".mov", ".m4v", ".avi"}  # containers that list their frames; others give an estimate


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    `image` is (H,W,3) uint8 BGR, upright. `index` counts from 0 in the source; a frame that was skipped leaves a
    gap. `captured` is when it was taken (camera, stream) or read (file), in unix seconds; `monotonic` is the same
    moment in seconds of `time.monotonic`, which no correction of the clock moves. `source` is the file, or the
    camera's or stream's name without credentials. `position` is the place in a video file in seconds.
    """

    image: NDArray[np.uint8]
    index: int
    captured: float
    source: str
    position: float | None = None
    monotonic: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Skipped:
    """A file that gave no result, and why; `index` and `source` are as those of a `Frame`."""

    index: int
    source: str
    error: str

    def __str__(self) -> str:
        return self.error if self.source in self.error else f"{self.source}: {self.error}"


class Source:
    """An iterable of `Frame`, to be iterated once; a context manager.

    `live` says that frames come at their own pace and that a late reader must drop, not queue. `stills` says that
    they are single images, with no time between them. `fps`, `size` (height, width) and `count` are what the source
    announces, None where it does not. `skips` says that a frame which cannot be used is no reason to end: the next one
    has nothing to do with it. `skipped` and `notes` grow while the source is read: files that could not be read, a
    video that was cut short.
    """

    live = False
    stills = False
    skips = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.fps: float | None = None
        self.size: tuple[int, int] | None = None
        self.count: int | None = None
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Give the device or file back; closing twice is allowed."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(spec: str | Path) -> Source:
    """Open an image, a folder, a video file, a camera ("0"), a URL ("rtsp://...") or a pipeline ("gst:... ! appsink").

    A pipeline is GStreamer's, as `gst-launch-1.0` takes it; it ends in BGR frames and `appsink`.
    Raises `SourceError` if there is no such source or it gives no frames, `RuntimeUnavailableError` if it needs
    OpenCV and that is not installed, or was built without GStreamer. An existing file of the name "0" is opened as a
    file.
    """
    text = str(spec)
    path = Path(spec)
    if text.startswith(PIPELINE):
        return Capture(Pipeline(text.removeprefix(PIPELINE).strip()), name=pipeline_name(text), live=True)
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        return Capture(text, name=redact(text), live=True)
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        return ImageFile(path) if _is_image(path) else Capture(path, name=text, live=False)
    if text.isdecimal():
        return Capture(int(text), name=f"camera {text}", live=True)
    if path.exists():
        return Capture(path, name=text, live=True)  # a device node such as /dev/video0
    raise SourceError(
        f"{text} does not exist; give an image, a folder of images, a video file, a camera index, a URL or a pipeline "
        f'of GStreamer ("{PIPELINE}... ! appsink")'
    )


def redact(url: str) -> str:
    """A URL without user name and password, so that no log or result carries a camera's credentials."""
    return re.sub(r"//[^/?#]*@", "//", url)


def pipeline_name(text: str) -> str:
    """A pipeline's first element with what tells two cameras apart: of all else, passwords may be a part."""
    element, *further = redact(text.removeprefix(PIPELINE)).partition("!")[0].split(None, 1) or [""]
    rest = "".join(further)
    pairs = re.findall(r"([\w:-]+)\s*=\s*(\"[^\"]*\"|'[^']*'|\S+)", rest)
    told = [f"{key}={re.split('[?;#]', value.strip(_QUOTES))[0]}" for key, value in pairs if key in _TOLD]
    return " ".join([PIPELINE + element, *told])


# -- images ----------------------------------------------------------------------------------------------------


class ImageFile(Source):
    """One image."""

    stills = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.count = 1
        self.path = path

    def __iter__(self) -> Iterator[Frame]:
        from edgevtx.images import read_image

        yield Frame(read_image(self.path), 0, time.time(), self.name)


class ImageFolder(Source):
    """The images directly in a folder, by name. What cannot be read as an image is skipped, and is in `skipped`."""

    stills = True
    skips = True

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        try:
            self.paths = sorted(path for path in folder.iterdir() if path.is_file())
        except OSError as error:
            raise SourceError(f"cannot list {folder}: {error.strerror}; check its permissions") from None
        if not self.paths:
            raise SourceError(f"the folder {folder} holds no files; give a folder with images directly in it")
        self.count = len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        from edgevtx.images import read_image

        given = 0
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path)
            except SourceError as error:
                self.skipped.append(Skipped(index, str(path), str(error)))
                continue
            yield Frame(image, index, time.time(), str(path))
            given += 1
        if not given:
            raise SourceError(f"none of the {len(self.paths)} files in {self.name} is an image that can be read")


def _is_image(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return str(image.format) != "MPEG"  # Pillow recognises such a video, and cannot read it
    except UnidentifiedImageError:
        return False
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
    except (Image.DecompressionBombError, SyntaxError, ValueError, EOFError):
        return True  # `read_image` says what is wrong with it


# -- video -----------------------------------------------------------------------------------------------------


class Pipeline(str):
    """A pipeline of GStreamer, as `gst-launch-1.0` takes it, that ends in `appsink`."""


class Capture(Source):
    """A video file, a camera, a network stream or a pipeline, through OpenCV. Rotation metadata is applied.

    `live` is what the address suggests; a video file behind a URL or in a pipeline is found to be none.
    Of a file that ends within a frame, the whole frames are given and `notes` says how many are missing.
    `close` may be called while another thread reads: that thread's iteration ends.
    """

    def __init__(self, address: str | int | Path, *, name: str, live: bool) -> None:
        super().__init__(name)
        self._address = address
        self._reading = threading.Lock()  # OpenCV crashes if a capture is released while a thread is in it
        self._capture = _open_capture(address, name)
        self.fps, self.size, self.count = _announced(self._capture)
        # a URL or pipeline whose frames are counted is a file
        self.live = live and not (isinstance(address, str) and self.count)

    def __iter__(self) -> Iterator[Frame]:
        read, held = 0, None  # of a file, a frame is held back until another one has followed
        while (frame := self._read(read)) is not None:
            read += 1
            if self.live:
                yield frame
                continue
            if held is not None:
                yield held
            held = frame
        if self._capture is None:
            return
        # FFmpeg may have decoded the half frame that a file ends in (OpenCV 4.11 heeds no option against it)
        if held is not None and (read == 1 or not self._ends_early(read)):
            yield held
            held = None
        self._note_end(read - (held is not None))

    def _read(self, index: int) -> Frame | None:
        """The next frame; None at the end, and once the source was closed."""
        import cv2

        with self._reading:
            capture = self._capture
            if capture is None or not capture.grab():
                return None
            captured, monotonic = time.time(), time.monotonic()
            whole, image = capture.retrieve()
            position = None if self.live else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if not whole:
            return None
        # OpenCV gives a pipeline's frames as they come
        if isinstance(self._address, Pipeline) and (image.ndim != 3 or image.shape[2] != 3):
            raise SourceError(f"{self.name} gives frames of shape {image.shape}, not (H,W,3) BGR; {_BGR}")
        return Frame(image, index, captured, self.name, position, monotonic)

    def _ends_early(self, given: int) -> bool:
        slack = 0 if Path(self.name).suffix.lower() in _EXACT_COUNT else 1 + given // 50
        return self.count is not None and given + slack < self.count

    def _note_end(self, given: int) -> None:
        if not given:
            raise SourceError(f"{self.name} opened but gave no frame; {_advice(self._address)}")
        if self.live:
            raise SourceError(f"{self.name} stopped after {given} frames; {_advice(self._address)}")
        if self._ends_early(given):
            self.notes.append(
                f"{self.name} gave {given} whole frames where its header announces {self.count}: "
                "the file is cut short or damaged"
            )

    def close(self) -> None:
        capture, self._capture = self._capture, None
        # From a camera that hangs nothing is taken away: its thread frees the capture when it comes back, or never.
        if capture is not None and self._reading.acquire(timeout=CLOSE_SECONDS):
            try:
                capture.release()
            finally:
                self._reading.release()


def _open_capture(address: str | int | Path, name: str) -> Any:
    cv2 = import_cv2(f"reading {name}")
    if isinstance(address, Pipeline):
        _check_pipeline(cv2, address, name)
    with quiet(cv2), _ffmpeg_options(address):
        if isinstance(address, str):
            backend = cv2.CAP_GSTREAMER if isinstance(address, Pipeline) else cv2.CAP_FFMPEG
            timeouts = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS
            ]  # fmt: skip
            capture = cv2.VideoCapture(address, backend, timeouts)
        else:
            capture = cv2.VideoCapture(address if isinstance(address, int) else str(address))
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"cannot open {name}; {_advice(address)}")
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # GStreamer's captures do not know it, and say so
    return capture


def _check_pipeline(cv2: Any, pipeline: Pipeline, name: str) -> None:
    """Raise what OpenCV would only tell on the terminal, and not as an error."""
    if not built_with(cv2, "GStreamer"):
        raise RuntimeUnavailableError(
            f"reading {name} needs an OpenCV with GStreamer, and {cv2.__version__} here was built without; "
            f"{gstreamer_step()}"
        )
    if re.search(r"(?<![\w-])appsink(?![\w-])", pipeline) is None:
        raise SourceError(f"{name} is a pipeline without appsink, from which frames are taken; {_BGR}")


def _announced(capture: Any) -> tuple[float | None, tuple[int, int] | None, int | None]:
    """Frames per second, (height, width) and frame count of an opened capture; None where it says nothing sane."""
    import cv2

    fps = capture.get(cv2.CAP_PROP_FPS)
    height, width = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return (
        fps if 0 < fps <= 1000 else None,
        (height, width) if height > 0 and width > 0 else None,
        count if count > 0 else None,
    )


_BGR = 'end the pipeline in "! videoconvert ! video/x-raw,format=BGR ! appsink"'


def _advice(address: str | int | Path) -> str:
    if isinstance(address, Pipeline):
        return (
            "check that the camera is connected and that no other program uses it, try the pipeline with "
            f"gst-launch-1.0 and fakesink in place of appsink, and {_BGR}"
        )
    if isinstance(address, int):
        return "check that the camera is connected, that no other program uses it, and your access to /dev/video*"
    if isinstance(address, str):
        return "check the address, the network and the credentials"
    return "it is no image or video that can be read, or it is damaged"


@contextlib.contextmanager
def _ffmpeg_options(address: str | int | Path) -> Iterator[None]:
    """Have FFmpeg drop the packet that a truncated file ends in: decoded, it is a frame with a grey part.

    OpenCV takes FFmpeg's options from the environment alone. The user's own options stay, and win.
    """
    wanted = {"OPENCV_FFMPEG_LOGLEVEL": "-8"}
    if isinstance(address, Path):
        wanted["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "fflags;discardcorrupt"
    ours = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)
