"""OpenCV, which is imported when it is first needed: what its build has, and which step mends what it has not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes import host

_WHEELS = tuple(f"opencv-{kind}python{ui}" for kind in ("", "contrib-") for ui in ("", "-headless"))


def import_cv2(purpose: str) -> Any:
    """OpenCV, or `RuntimeUnavailableError` that says what needs it and how it is installed."""
    try:
        import cv2
    except Exception as error:  # one that was built for numpy 1 raises AttributeError under numpy 2
        raise RuntimeUnavailableError(
            f"{purpose} needs OpenCV, which cannot be imported ({error}); {opencv_step(error)}"
        ) from None
    return cv2


def opencv_step(error: Exception) -> str:
    """The step that mends an OpenCV which cannot be imported."""
    if int(np.__version__.partition(".")[0]) >= 2 and re.search(r"numpy|_ARRAY_API", str(error)):
        return 'pip install "numpy<2", which this build of OpenCV was made for'
    if host.TEGRA.is_file():
        return (
            "sudo apt install nvidia-jetpack, which has OpenCV, and python3 -m venv --system-site-packages for an "
            "environment with it"
        )
    again = "" if isinstance(error, ModuleNotFoundError) else " --force-reinstall"
    return f'pip install "edgevtx[opencv]"{again}, or use the system\'s own build'


def built_with(cv2: Any, name: str) -> bool:
    """Whether OpenCV's own account of its build says yes to "FFMPEG", "GStreamer", "v4l/v4l2"."""
    return re.search(rf"^\s*{re.escape(name)}:\s*YES", cv2.getBuildInformation(), re.MULTILINE) is not None


def gstreamer_step() -> str:
    """The step that gives an OpenCV with GStreamer: it is the system's, which a wheel of pip's would hide."""
    wheels = [name for name in _WHEELS if _is_installed(name)]
    remove = f"pip uninstall {' '.join(wheels)}, whose wheels lack it, and use" if wheels else "use"
    return f"{remove} the system's OpenCV in an environment of python3 -m venv --system-site-packages"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def quiet(cv2: Any) -> Iterator[None]:
    """Keep OpenCV's own warnings off the terminal while a capture opens: a failure is reported by us, once."""
    try:
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    except AttributeError:
        yield
        return
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
