"""Where results go: JSON Lines, annotated images, an annotated video.

Nothing that exists is overwritten unless `overwrite=True`. A full disk raises `OutputError`, and what was written
before stays readable: a JSON Lines file ends with a whole line, a video with its index.
"""

from __future__ import annotations

import os
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edgevtx import disk
from edgevtx.errors import OutputError
from edgevtx.stream.opencv import import_cv2
from edgevtx.stream.pipeline import Record
from edgevtx.stream.sources import Skipped

_SPARE_BYTES = 32 << 20  # left free so that a video's index can still be written when the disk fills
_LONGEST_GAP = 10.0  # seconds of a live source without frames that its video shows as a standing picture
_WRITABLE = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Sink:
    """Takes records one by one, in order. `close` completes the files; closing twice is allowed."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def write(self, record: Record) -> None:
        raise NotImplementedError

    def skip(self, skipped: Skipped) -> None:
        """Take note of a file that gave no result."""

    def close(self) -> None:
        pass

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def record_dict(record: Record) -> dict[str, Any]:
    """A record as one JSON-ready object, the `captured` time in UTC."""
    frame = record.frame
    captured = datetime.fromtimestamp(frame.captured, timezone.utc).isoformat(timespec="milliseconds")
    return {
        "frame": frame.index,
        "source": frame.source,
        "captured": captured.replace("+00:00", "Z"),
        "captured_unix": round(frame.captured, 6),
        "position_seconds": None if frame.position is None else round(frame.position, 3),
        "age_ms": round(record.age * 1000, 3),
        "stages_ms": {name: round(value, 3) for name, value in record.stages.items()},
        "result": record.result.to_dict(),
    }


class JsonLines(Sink):
    """One JSON object a line, a line a frame, each in the file before the next frame is handled.

    A file that was skipped has a line too: its number, its name, and the `error`. `path` None is standard output.
    No file is left where nothing was written. `stages_ms` of a line has no "write": the line is written before it
    is known.
    """

    def __init__(self, path: Path | None, *, overwrite: bool = False) -> None:
        super().__init__()
        self.path = path
        self._size = 0
        self._file = -1
        if path is not None:
            claim(path, overwrite)
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            except OSError as error:
                raise _unwritable(path, error) from None

    def write(self, record: Record) -> None:
        self._write(record_dict(record))

    def skip(self, skipped: Skipped) -> None:
        self._write({"frame": skipped.index, "source": skipped.source, "error": skipped.error})

    def _write(self, row: dict[str, Any]) -> None:
        line = msgspec.json.encode(row) + b"\n"
        if self.path is None:
            _print(line)
            return
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            if rest.nbytes < len(line):
                os.ftruncate(self._file, self._size)  # take the half line back
            raise _unwritable(self.path, error) from None
        self._size += len(line)

    def close(self) -> None:
        if self.path is not None and self._file >= 0:
            handle, self._file = self._file, -1
            try:
                os.close(handle)
            except OSError as error:
                raise _unwritable(self.path, error) from None
            if not self._size:
                self.path.unlink(missing_ok=True)


class AnnotatedImages(Sink):
    """Each frame with its result drawn, as an image of the same name in `folder`.

    A name whose format cannot be written gets ".png" appended; frames of a video or camera are numbered.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.overwrite = overwrite
        make_folder(folder)

    def write(self, record: Record) -> None:
        from edgevtx.images import write_image

        path = self.folder / self._name(record)
        claim(path, self.overwrite)
        try:
            write_image(path, record.result.draw(record.frame.image))
        except OutputError:
            path.unlink(missing_ok=True)
            raise

    def _name(self, record: Record) -> str:
        source = Path(record.frame.source)
        if record.frame.position is not None or not source.suffix:
            return f"{record.frame.index:06d}.jpg"
        return source.name if source.suffix.lower() in _WRITABLE else source.name + ".png"


class AnnotatedVideo(Sink):
    """All frames with their results drawn, as one MPEG-4 file (`mp4v`, which every build of OpenCV can write).

    With `realtime` frames are repeated so that the video plays at the speed of a live source that was read with
    gaps; longer ones than ten seconds are shortened to that. The file is opened again after closing: OpenCV reports
    no error while it writes.
    """

    def __init__(self, path: Path, *, fps: float, realtime: bool = False, overwrite: bool = False) -> None:
        super().__init__()
        self.cv2 = import_cv2("writing a video")
        claim(path, overwrite)
        make_folder(path.parent)
        self.path, self.fps, self.realtime = path, fps, realtime
        self._writer: Any = None
        self._size = (0, 0)
        self._written = 0
        self._start = 0.0
        self._shortened = 0.0

    def write(self, record: Record) -> None:
        height, width = record.frame.image.shape[:2]
        if self._writer is None:
            self._open((height, width), record.frame.monotonic)
        if (height, width) != self._size:
            self.close()
            raise OutputError(
                f"the source changed from {self._size[1]}x{self._size[0]} to {width}x{height}; "
                f"{self.path} holds the frames before, write the rest elsewhere"
            )
        picture = record.result.draw(record.frame.image)
        for _ in range(self._repeats(record.frame.monotonic)):
            if shutil.disk_usage(self.path.parent).free < _SPARE_BYTES:
                self.close()
                raise OutputError(f"the disk of {self.path} is full; it holds the {self._written} frames before")
            self._writer.write(picture)
            self._written += 1

    def _repeats(self, moment: float) -> int:
        """How often a frame of `moment` is written, so that the video has come as far as its source."""
        if not self.realtime:
            return 1
        repeats = round((moment - self._start) * self.fps) + 1 - self._written
        most = max(1, round(_LONGEST_GAP * self.fps))
        if repeats <= most:
            return repeats
        excess = (repeats - most) / self.fps
        self._start += excess
        self._shortened += excess
        return most

    def _open(self, size: tuple[int, int], start: float) -> None:
        self._size, self._start = size, start
        try:
            self.path.open("wb").close()  # OpenCV would only say that it could not open, not why
        except OSError as error:
            raise _unwritable(self.path, error) from None
        code = self.cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = self.cv2.VideoWriter(str(self.path), code, self.fps, (size[1], size[0]))
        if not self._writer.isOpened():
            raise OutputError(
                f"this OpenCV cannot write {self.path} (no mp4v encoder); write images instead, "
                'or pip install "edgevtx[opencv]"'
            )

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.release()
        found = self.cv2.VideoCapture(str(self.path))
        frames = int(found.get(self.cv2.CAP_PROP_FRAME_COUNT)) if found.isOpened() else 0
        found.release()
        if self._shortened:
            self.notes.append(f"{self.path} leaves out {self._shortened:.0f} s in which no frame came")
        if frames < self._written:
            raise OutputError(
                f"{self.path} holds {max(0, frames)} of the {self._written} frames written; is the disk full?"
            )


def _print(line: bytes) -> None:
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # who reads had enough, which is no failure
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {disk.explain(error)}") from None


def make_folder(folder: Path) -> None:
    """Create a folder for output, or raise `OutputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {folder}: permission denied; choose another folder")


def claim(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if a file must not be written at `path`."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another place, or overwrite it with --overwrite")
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and a file was to be written there; choose another place")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {(error.strerror or str(error)).lower()}; free space or choose another place"
    )
