"""A short clip of fires, made once, and a way to run a sample as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def samples_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a sample's process: this checkout, and a cache that the tests of this folder share."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(ROOT), "EDGEVTX_CACHE": str(cache)}


@pytest.fixture(scope="session")
def run_sample(samples_environment: dict[str, str]) -> Run:
    """run_sample("latency/main.py", argument, ...) -> the finished process."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(SAMPLES / script), *map(str, arguments)]
        return subprocess.run(words, env=samples_environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def fire_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 30 frames in which fires start: 540x960 px, 25 frames per second."""
    cv2 = pytest.importorskip("cv2")
    from samples.forest_fire.scenes import render_clip

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (960, 540))
    for scene in render_clip(14, 30, (540, 960)):
        video.write(scene.frame)
    video.release()
    return path
