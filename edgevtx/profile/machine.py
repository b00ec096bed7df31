"""What machine this is, in words; read from the operating system, and left out where it does not say."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "Pillow", "openvino", "onnxruntime", "opencv-python-headless", "opencv-python")
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
)


def describe() -> dict[str, str | int | float]:
    """System, processor, its vector extensions, usable cores, memory in GB, and the board where it has a name."""
    found: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }
    if features := cpu_features():
        found["cpu_features"] = " ".join(features)
    if memory := memory_gb():
        found["memory_gb"] = memory
    if board := _read("/proc/device-tree/model").rstrip("\0"):
        found["board"] = board
    return found


def versions() -> dict[str, str]:
    """The installed versions of what runs a bundle, without importing any of it."""
    found = {"edgevtx": _version("edgevtx") or _own_version()}
    found.update({name: version for name in PACKAGES if (version := _version(name))})
    return found


def cpu_features() -> list[str]:
    """Those vector extensions of this processor that matter to inference."""
    lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    return [name for name in _FEATURES if name in flags]


def memory_gb() -> float:
    """Physical memory in GB, or the control group's limit where that is lower; 0 where unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0.0
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return round(min(total, int(limit)) / 1e9 if limit.isdecimal() else total / 1e9, 1)


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _own_version() -> str:
    from edgevtx import __version__

    return __version__


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
