"""What the backends ask of this machine: its processor, its drivers, an optional package."""

from __future__ import annotations

import functools
import hashlib
import importlib
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevtx.errors import RuntimeUnavailableError
from edgevtx.runtimes.base import Probe

# in the words of CUDA, TensorRT and C++: "out of memory", "CUDA_ERROR_OUT_OF_MEMORY", "OutOfMemory", "std::bad_alloc"
_NO_MEMORY = re.compile(r"out[ _]?of[ _]?memory|bad[ _]alloc", re.IGNORECASE)

TEGRA = Path("/etc/nv_tegra_release")
"""A Jetson has this file: one line with its release of L4T."""


# extra -> what installs it on a Jetson, and what installs it again. Its TensorRT is JetPack's: no package may hide it.
# pycuda is compiled there, and what it needs is left alone: JetPack's OpenCV breaks with numpy 2
_JETPACK = "sudo apt install nvidia-jetpack, and python3 -m venv --system-site-packages for an environment with it"
_NVCC = "PATH=/usr/local/cuda/bin:$PATH"
_ON_JETSON = {
    "tensorrt": (_JETPACK, _JETPACK),
    "tensorrt-rtx": ("tensorrt in its place: TensorRT-RTX is not made for a Jetson",) * 2,
    "cuda": (
        f'{_NVCC} pip install pycuda "numpy<2"; it is compiled with the system\'s nvcc',
        f"{_NVCC} pip install --force-reinstall --no-cache-dir --no-deps pycuda; it is compiled for the CUDA here",
    ),
}


def install_command(extra: str, *, again: bool = False) -> str:
    """The command that installs an extra of edgevtx, or installs it again."""
    jetson = TEGRA.is_file()
    if jetson and extra in _ON_JETSON:
        return _ON_JETSON[extra][again]
    return f'pip install "edgevtx[{extra}]"' + (
        " --force-reinstall" + (' "numpy<2"' if jetson else "") if again else ""
    )


def driver_step() -> str:
    """The step that gives this machine the driver's library, libcuda.so.1."""
    if TEGRA.is_file():
        return "sudo apt install --reinstall nvidia-l4t-cuda; a container is to be started with --runtime nvidia"
    return "install the driver, for CUDA 12 or newer"


def gpu_step() -> str:
    """The step where the driver's library is there, and finds no GPU or does not start."""
    if TEGRA.is_file():
        return "sudo usermod -aG video,render $USER, and log in again"
    return "check it with nvidia-smi"


def import_package(package: str, *, target: str, extra: str) -> Any:
    """Import a vendor's package, or raise `RuntimeUnavailableError` with the command that installs it."""
    try:
        module: ModuleType = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"runtime {target} was asked for, but the package {error.name or package} is not installed; "
            f"install it with: {install_command(extra)}"
        ) from None
    except (ImportError, OSError) as error:  # installed, and broken: a missing system library, a foreign build
        raise RuntimeUnavailableError(
            f"runtime {target} was asked for, but the package {package} does not load ({first_line(error)}); "
            f"install it again with: {install_command(extra, again=True)}"
        ) from None
    return module


def unavailable(target: str, extra: str, error: RuntimeUnavailableError) -> Probe:
    """The probe of a runtime that is not usable here; its reason is the error's without what was asked."""
    reason = str(error).split(";")[0].split(", but ", 1)[-1]
    return Probe(name=target, available=False, reason=reason, install=install_command(extra))


def first_line(error: BaseException) -> str:
    """The line of a vendor's message that says something: the last one that is not a source location or a check."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '", "[ERROR]"))]
    return (said or lines or [type(error).__name__])[0][:300]


def lacks_memory(words: str) -> bool:
    """Whether a vendor's message speaks of memory that could not be had."""
    return _NO_MEMORY.search(words) is not None


def advise(words: str, otherwise: str) -> str:
    """What to do about a GPU's error of these words: what helps against a lack of memory, or `otherwise`."""
    return "free memory of the GPU, or use a smaller batch, size or model" if lacks_memory(words) else otherwise


@functools.cache
def processor() -> str:
    """The processor's name, architecture and instruction sets as one short text: an engine is built for these.

    The instruction sets are hashed; on systems without /proc/cpuinfo the name alone must do.
    """
    name, flags = "", ""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "CPU part"):
            name = value
        elif key in ("flags", "Features"):
            flags = " ".join(sorted(value.split()))
            break
    name = name or platform.processor() or "unknown"  # the last resort: it runs a program
    return f"{platform.machine()} {name} {hashlib.sha256(flags.encode()).hexdigest()[:12]}"


def nvidia_driver() -> str:
    """The version line of NVIDIA's kernel driver, empty where there is none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""
