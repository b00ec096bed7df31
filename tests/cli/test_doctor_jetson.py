"""What `edgevtx doctor` advises on a Jetson, by files that look like one's: no claim about a real one."""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevtx.cli import doctor
from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes import host, libcuda
from edgevtx.stream import opencv


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Jetson without a program or package of NVIDIA's: the folder that modules are found in first."""
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3\n")
    monkeypatch.setattr(host, "TEGRA", tmp_path / "release")
    monkeypatch.setenv("PATH", "")
    for name in ("cv2", "pycuda", "pycuda.driver", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_modules(patch: pytest.MonkeyPatch, folder: Path, modules: dict[str, str]) -> None:
    """Modules with this code, where there was none."""
    for name, code in modules.items():
        patch.delitem(sys.modules, name, raising=False)
        path = folder / f"{name.replace('.', '/')}.py"
        if any(other.startswith(f"{name}.") for other in modules):
            path = folder / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    importlib.invalidate_caches()


def found(area: str) -> dict[str, doctor.Finding]:
    rows = {"video": doctor._opencv, "nvidia": doctor._nvidia, "runtimes": doctor._runtimes}[area]()
    return {row.name: row for row in rows}


def test_each_line_that_is_unusable_names_a_step(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "LIBRARY", "libno-such-driver.so.1")
    rows = [row for area in ("video", "nvidia", "runtimes") for row in found(area).values()]
    unusable = {row.name: row.help for row in rows if row.level in ("unusable", "broken")}
    assert unusable.keys() >= {"opencv", "driver", "pycuda", "tensorrt", "tensorrt-rtx"}
    steps = ("pip install", "pip uninstall", "sudo ", "tensorrt in its place")
    assert all(any(step in help_ for step in steps) for help_ in unusable.values()), unusable
    for name in ("opencv", "tensorrt", "driver"):  # JetPack's, and no wheel that would hide it
        assert "sudo apt install" in unusable[name] and "pip install" not in unusable[name]


@pytest.mark.parametrize(
    "raised", ["ImportError('numpy.core.multiarray failed to import')", "AttributeError('_ARRAY_API not found')"]
)
@pytest.mark.parametrize(("numpy", "step"), [("2.2.6", 'pip install "numpy<2"'), ("1.26.4", "nvidia-jetpack")])
def test_an_opencv_that_numpy_2_breaks_asks_for_numpy_1(
    jetson: Path, monkeypatch: pytest.MonkeyPatch, raised: str, numpy: str, step: str
) -> None:
    write_modules(monkeypatch, jetson, {"cv2": f"raise {raised}"})
    monkeypatch.setattr(np, "__version__", numpy)
    assert step in found("video")["opencv"].help
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(RuntimeUnavailableError) as caught:
        opencv.import_cv2("reading camera 0")
    assert step in str(caught.value)


def test_an_opencv_that_hides_jetpack_s_is_told(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "Video I/O:\\n  FFMPEG: YES\\n  GStreamer: {}\\n"
    code = f"__version__ = '4.10.0'\ndef getBuildInformation(): return '{build}'.format('NO')\n"
    write_modules(monkeypatch, jetson, {"cv2": code})
    monkeypatch.setattr(opencv, "_is_installed", lambda package: package == "opencv-python-headless")
    row = found("video")["GStreamer"]
    assert row.level == "unusable" and "CSI" in row.value
    assert row.help.startswith("pip uninstall opencv-python-headless") and "--system-site-packages" in row.help
    monkeypatch.setattr(host, "TEGRA", jetson / "none")  # elsewhere FFmpeg does
    assert "GStreamer" not in found("video") and "decoding" not in found("video")


def test_a_pycuda_that_does_not_load_is_built_again_and_nothing_else_is(
    jetson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(monkeypatch, jetson, {"pycuda": "", "pycuda.driver": "raise ImportError('libcurand.so.10')"})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    row = found("nvidia")["pycuda"]
    assert row.level == "unusable" and "libcurand" in row.value
    # edgevtx itself is not what is broken, and numpy 2 would break OpenCV
    assert "--no-deps pycuda" in row.help and "edgevtx" not in row.help and "CUDA here" in row.help


def test_without_the_driver_s_library_the_step_is_the_driver_s(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(monkeypatch, jetson, {"pycuda": "", "pycuda.driver": "raise ImportError('libcuda.so.1')"})
    monkeypatch.setattr(libcuda, "LIBRARY", "libno-such-driver.so.1")
    rows = found("nvidia")
    assert "nvidia-l4t-cuda" in rows["driver"].help and "pycuda" not in rows
    libcuda.load.cache_clear()
    with pytest.raises(RuntimeUnavailableError, match="nvidia-l4t-cuda"):
        libcuda.load()


def test_a_jetson_s_memory_is_reported(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = found("nvidia")["memory"]
    assert row.level == "note" and int(row.value.split()[0]) > 0


def test_reinstalling_on_a_jetson_keeps_numpy_1(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert '"numpy<2"' in host.install_command("onnxruntime", again=True)
    monkeypatch.setattr(host, "TEGRA", jetson / "none")
    steps: Any = [host.install_command(extra, again=True) for extra in ("onnxruntime", "tensorrt", "cuda")]
    assert [step.startswith('pip install "edgevtx[') and "numpy" not in step for step in steps] == [True] * 3
