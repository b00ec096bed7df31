"""A predictor that computes nothing, and videos made on the spot."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevtx.results import Classification


@dataclass
class FakePredictor:
    """Answers a frame's top-left blue value as its class id. `fail_at` names a step and the frame it fails at.

    `together` says whether a frame was prepared while the engine ran.
    """

    fail_at: tuple[str, int] | None = None
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("prepare", "infer", "decode"), 0))
    seconds: float = 0.0
    device: str = "GPU"
    together: bool = False
    running: bool = False

    @property
    def info(self) -> Any:
        return SimpleNamespace(device=self.device)

    def _step(self, name: str) -> None:
        if self.fail_at == (name, self.calls[name]):
            raise ValueError(f"{name} failed")
        self.calls[name] += 1

    def prepare(self, frame: Any, **options: Any) -> Any:
        self._step("prepare")
        self.together |= self.running
        return int(frame[0, 0, 0])

    def infer(self, prepared: Any, **options: Any) -> dict[str, Any]:
        import time

        self._step("infer")
        self.running = True
        time.sleep(self.seconds)
        self.running = False
        return {"ids": np.array([prepared], np.int64)}

    def decode(self, outputs: Any, prepared: Any, **options: Any) -> list[Classification]:
        self._step("decode")
        return [Classification(outputs["ids"], np.array([0.5], np.float32), ("thing",))]


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


def draw_picture(index: int, height: int = 96, width: int = 128) -> np.ndarray[Any, Any]:
    """A frame that shows its index: a moving textured bar on a dark ramp; the texture makes every frame cost bytes."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 1] = np.linspace(20, 90, width, dtype=np.uint8)
    texture = np.random.default_rng(index).integers(60, 250, (height // 8, width // 8, 3), dtype=np.uint8)
    bar = texture.repeat(4, axis=0).repeat(4, axis=1)[: height // 2, :40]
    image[height // 3 : height // 3 + bar.shape[0], 2 * index : 2 * index + bar.shape[1]] = bar
    return image


@pytest.fixture
def picture() -> Any:
    """picture(index, height, width) -> the frame that `make_video` writes at `index`"""
    return draw_picture


def set_rotation(path: Path, degrees: int) -> None:
    """Write a rotation (clockwise, for display) into the first track header of an mp4."""
    data = bytearray(path.read_bytes())
    track = data.find(b"tkhd")
    assert track > 0 and data[track + 4] == 0, "a version 0 track header is expected"
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    # ISO 14496-12, 8.3.2: the matrix comes 40 bytes after the version and flags
    data[track + 44 : track + 80] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def move_index_first(path: Path) -> None:
    """Move an mp4's `moov` box before its data, as a file made for streaming has it."""
    data = path.read_bytes()
    boxes, position = [], 0
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        boxes.append((kind, data[position : position + size]))
        position += size
    moov = bytearray(dict(boxes)[b"moov"])
    table = moov.find(b"stco")
    (count,) = struct.unpack(">I", moov[table + 8 : table + 12])
    for entry in range(count):
        at = table + 12 + 4 * entry
        (offset,) = struct.unpack(">I", moov[at : at + 4])
        moov[at : at + 4] = struct.pack(">I", offset + len(moov))
    rest = [(kind, box) for kind, box in boxes if kind != b"moov"]
    path.write_bytes(rest[0][1] + bytes(moov) + b"".join(box for _, box in rest[1:]))


@pytest.fixture
def make_video(tmp_path: Path) -> Any:
    """make_video(name, frames, fourcc, rotation, index_first, keep, fps) -> path; `keep`: the share of bytes kept."""

    def make(
        name: str = "clip.mp4",
        frames: int = 12,
        fourcc: str = "mp4v",
        rotation: int = 0,
        index_first: bool = False,
        keep: float = 1.0,
        fps: float = 25.0,
    ) -> Path:
        cv2 = pytest.importorskip("cv2")
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, (128, 96))
        assert writer.isOpened()
        for index in range(frames):
            writer.write(draw_picture(index))
        writer.release()
        if rotation:
            set_rotation(path, rotation)
        if index_first:
            move_index_first(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        return path

    return make
