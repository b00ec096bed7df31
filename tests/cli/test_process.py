"""What only a process of its own can show: Ctrl-C, a pipe that closes, the module's own entry."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FRAMES = 3000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (320, 240))
    frame = np.full((240, 320, 3), 90, np.uint8)
    for _ in range(FRAMES):
        writer.write(frame)
    writer.release()
    return path


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1].decode())
        time.sleep(0.05)
    raise AssertionError("no results came")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_complete_files(
    edgevtx_process: Any, bundle: Path, long_clip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "out"
    process = edgevtx_process("run", bundle, long_clip, "--out", out)
    wait_for_lines(out / "results.jsonl", 5, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    text = errors.decode()
    assert process.returncode == 130
    assert "Traceback" not in text and text.strip().endswith("edgevtx: stopped")
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))
    assert len(lines) < FRAMES
    capture = cv2.VideoCapture(str(out / "annotated.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == len(lines)


def test_sigterm_removes_temporary_folders(tmp_path: Path) -> None:
    """As an export has one: gigabytes beside its --out."""
    script = (
        "import sys, tempfile, time\n"
        "from edgevtx import bundle\n"
        "from edgevtx.cli import main\n"
        "def wait(path):\n"
        "    with tempfile.TemporaryDirectory(dir=path):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "bundle.Bundle.open = wait\n"
        "sys.exit(main(['info', sys.argv[1]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert list(tmp_path.iterdir())
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode()) == (130, "edgevtx: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_traceback(edgevtx_process: Any, bundle: Path, long_clip: Path) -> None:
    process = edgevtx_process("run", bundle, long_clip, "--json")
    head = subprocess.run(["head", "-n", "2"], stdin=process.stdout, capture_output=True, check=True)
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.wait(timeout=60)
    assert [json.loads(line)["frame"] for line in head.stdout.splitlines()] == [0, 1]
    assert "Traceback" not in errors and "Exception ignored" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("form", [["--json"], []])
def test_a_full_disk_behind_standard_output_is_one_sentence(
    edgevtx_process: Any, bundle: Path, photo: Path, form: list[str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        process = edgevtx_process("run", bundle, photo, *form, stdout=full)
        _, errors = process.communicate(timeout=60)
    engine, *lines = errors.decode().splitlines()
    assert engine.startswith("colours: ") and process.returncode == 1
    assert lines == ["edgevtx: cannot write to standard output: the disk is full; free space"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [["info"], ["info", "--json"], ["verify", "--json"], ["compile"], ["profile", "--frames", "1", "--json"]],
    ids=" ".join,
)
def test_a_full_standard_output_is_one_sentence(
    edgevtx_process: Any, bundle: Path, arguments: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_full(edgevtx_process, [arguments[0], bundle, *arguments[1:]], unbuffered, monkeypatch)


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["--version"], ["cache", "list", "--json"]])
def test_a_full_standard_output_without_a_bundle_is_one_sentence(
    edgevtx_process: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_full(edgevtx_process, arguments, "", monkeypatch)


def check_full(edgevtx_process: Any, arguments: list[Any], unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("wb") as full:
        process = edgevtx_process(*arguments, stdout=full)
    _, errors = process.communicate(timeout=60)
    assert errors.decode() == "edgevtx: cannot write to standard output: the disk is full; free space\n"
    assert process.returncode == 1


def test_help_is_fast_and_debug_gives_the_traceback(edgevtx_process: Any) -> None:
    out, _ = edgevtx_process("--version").communicate(timeout=60)
    assert out.startswith(b"edgevtx ")
    process = edgevtx_process("--debug", "info", "missing.vtx")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Traceback" in errors and b"InputError" in errors
    process = edgevtx_process("info", "missing.vtx")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.startswith(b"edgevtx: ") and errors.count(b"\n") == 1
