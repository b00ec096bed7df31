"""The latency sample: every engine of a bundle, measured, printed and written."""

from __future__ import annotations

import json


def test_every_engine_of_the_bundle_is_measured(run_sample, fire_bundle, tmp_path):
    target = tmp_path / "latency.json"
    done = run_sample("latency/main.py", fire_bundle, "--size", "320x240", "--frames", "5", "--json", target)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert [item["model"]["runtime"] for item in found] == ["openvino", "onnxruntime"]
    for item in found:
        assert item["frame_size"] == [240, 320]
        assert set(item["stages"]) == {"preprocess", "engine", "decode", "total"}
        assert item["stages"]["total"]["n"] == 5
    assert done.stdout.count("frames per second") == 2


def test_no_bundle_is_one_sentence(run_sample, tmp_path):
    done = run_sample("latency/main.py", tmp_path / "none.vtx")
    assert done.returncode == 1
    assert done.stderr.startswith("latency: ") and "Traceback" not in done.stderr
