"""The camera program on a recording: it sees the fire, keeps a picture, and stops cleanly."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgevtx.images import read_image
from edgevtx.results import Detections
from edgevtx.stream.pipeline import Record
from edgevtx.stream.sources import Frame

SAMPLES = Path(__file__).resolve().parents[2] / "samples"

MAIN = SAMPLES / "camera_app" / "main.py"


@pytest.fixture(scope="module")
def camera_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("camera_app_main", MAIN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(index: int, seen: bool) -> Record:
    found = Detections(np.array([[10, 10, 40, 40]], np.float32), np.array([0.9], np.float32), np.array([0]), ("smoke",))
    frame = Frame(np.full((90, 120, 3), 100, np.uint8), index, 0.0, "camera 0")
    return Record(frame, found if seen else Detections.empty(), {}, 0.04)


@pytest.mark.parametrize(
    ("seen", "reported_at"),
    [
        ("", []),
        ("..#.#.##..", []),  # never long enough
        ("..###.....", [4]),
        ("..########", [4]),  # once, however long it stays
        ("###.###..#", [2, 6]),  # gone, and back
    ],
)
def test_it_reacts_once_to_what_stays(seen, reported_at, camera_app, tmp_path, capsys):
    watch = camera_app.Watch(tmp_path / "seen")
    for index, mark in enumerate(seen):
        watch(record(index, mark == "#"))
    assert sorted(path.name for path in watch.folder.iterdir()) == [f"{index:06d}.jpg" for index in reported_at]
    assert capsys.readouterr().out.count("smoke 90%, 40 ms") == len(reported_at)


def test_it_sees_the_fire_in_a_recording(run_sample, fire_bundle, fire_clip, tmp_path):
    done = run_sample("camera_app/main.py", fire_bundle, fire_clip, "--out", tmp_path / "seen")
    assert done.returncode == 0, done.stderr
    assert "30 frames" in done.stdout
    assert re.search(r"^frame \d+: .*(smoke|flame) \d+%", done.stdout, re.MULTILINE), done.stdout
    pictures = sorted((tmp_path / "seen").iterdir())
    assert pictures and read_image(pictures[0]).shape == (540, 960, 3)


def test_ctrl_c_ends_it_with_a_report(fire_bundle, fire_clip, samples_environment, tmp_path):
    endless = tmp_path / "photos"  # long enough that the signal comes in the middle
    endless.mkdir()
    import cv2

    _, frame = cv2.VideoCapture(str(fire_clip)).read()
    for index in range(400):
        cv2.imwrite(str(endless / f"{index:04d}.jpg"), frame)
    words = [sys.executable, str(MAIN), str(fire_bundle), str(endless), "--out", str(tmp_path / "seen")]
    process = subprocess.Popen(
        words, env=samples_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and "watches" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "frames" in out and "400 frames" not in out and "Traceback" not in error


@pytest.mark.parametrize("source", ["nowhere.mp4", "98"])
def test_a_source_that_does_not_open_is_one_sentence(source, run_sample, fire_bundle, tmp_path):
    done = run_sample("camera_app/main.py", fire_bundle, source, "--out", tmp_path / "seen")
    assert done.returncode == 1
    assert done.stderr.startswith("camera_app: ") and "Traceback" not in done.stderr
