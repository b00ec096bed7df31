"""`edgevtx doctor`: what this machine has, what is unusable and why. Reads, reports, installs nothing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from edgevtx.cli import common
from edgevtx.versions import in_range

Level = Literal["ok", "unusable", "broken", "note"]

_STYLES = {"ok": "green", "unusable": "yellow", "broken": "bold red", "note": ""}
BASE = ("numpy", "pillow", "msgspec", "platformdirs", "click", "rich")
EXPORT = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors", "scipy")
NVCC = Path("/usr/local/cuda/bin/nvcc")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is usable, what it is, and the command or step that helps where it is not.

    "unusable" is an extra that is not there; "broken" is something required, or present and unusable.
    """

    area: str
    name: str
    level: Level
    value: str
    help: str = ""


@click.command(short_help="Report what this machine has, and lacks.")
@common.json_option
def command(as_json: bool) -> None:
    """Report what this machine has: Python, processor, OpenCV, runtimes and devices, export packages, the cache.

    \b
    Example:
      edgevtx doctor
      edgevtx doctor --json

    Installs nothing. Exit code 1 if something required is broken.
    """
    with common.stages("look around"):
        findings = examine()
    if as_json:
        common.print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    if any(finding.level == "broken" for finding in findings):
        raise SystemExit(1)


def examine() -> list[Finding]:
    """Every finding, in the order of the report."""
    return [*_machine(), *_base(), *_opencv(), *_runtimes(), *_nvidia(), *_export(), *_cache()]


def _machine() -> list[Finding]:
    from edgevtx.profile.machine import describe

    supported = sys.version_info >= (3, 10)
    found = describe()
    python = str(found.pop("python"))
    rows = [Finding("machine", "python", "ok" if supported else "broken", python, "" if supported else "3.10 or newer")]
    if memory := found.pop("memory_gb", None):
        found["memory"] = f"{memory} GB"
    return rows + [Finding("machine", name.replace("_", " "), "note", str(value)) for name, value in found.items()]


def _base() -> list[Finding]:
    from edgevtx.runtimes import host

    rows = []
    again = "pip install --force-reinstall edgevtx" + (' "numpy<2"' if host.TEGRA.is_file() else "")
    for package in BASE:
        module = {"pillow": "PIL"}.get(package, package)
        rows.append(_package("base", package, module, required=True, install=again, again=again))
    return rows


def _package(area: str, package: str, module: str, *, required: bool, install: str, again: str) -> Finding:
    """Import a package and report its version, or why it cannot be imported.

    `install` is the step where something is missing, `again` where what is there does not load.
    """
    bad: Level = "broken" if required else "unusable"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        version = ""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not required and not version:
            return Finding(area, package, "unusable", "not installed", install)
        return Finding(area, package, bad, f"{version} cannot be imported: {error}".strip(), install)
    except Exception as error:  # a vendor's package may raise anything when a library of its is missing
        return Finding(area, package, bad, f"{version} cannot be imported: {error}".strip(), again)
    if too_old := _too_old(package, version):
        return Finding(area, package, bad, too_old, install)
    return Finding(area, package, "ok", version or "installed")


def _too_old(package: str, version: str) -> str:
    """What is wrong with a version that edgevtx's own requirements do not admit; "" where nothing is."""
    try:
        requirements = metadata.requires("edgevtx") or []
    except metadata.PackageNotFoundError:  # run from a source tree that nobody installed
        return ""
    for requirement in requirements:
        found = re.match(r"([\w.-]+)\s*([<>=!~][^;]*)", requirement)
        if found and found[1].lower() == package and version and not in_range(version, found[2]):
            return f"{version}, but edgevtx needs {found[2].strip()}"
    return ""


def _opencv() -> list[Finding]:
    from edgevtx.runtimes import host
    from edgevtx.stream.opencv import built_with, gstreamer_step, opencv_step

    try:
        import cv2
    except ModuleNotFoundError as error:
        help_ = f"{opencv_step(error)}; images work without it"
        return [Finding("video", "opencv", "unusable", "not installed: no video, no cameras", help_)]
    except Exception as error:
        return [Finding("video", "opencv", "unusable", f"cannot be imported: {error}", opencv_step(error))]
    media = {name: built_with(cv2, name) for name in ("FFMPEG", "GStreamer", "v4l/v4l2")}
    value = ", ".join([cv2.__version__, *(f"{name} {'yes' if has else 'no'}" for name, has in media.items())])
    if too_old := _too_old("opencv-python-headless", cv2.__version__):
        return [Finding("video", "opencv", "unusable", too_old, 'pip install "edgevtx[opencv]"')]
    rows = [Finding("video", "opencv", "ok", value)]
    if host.TEGRA.is_file() and not media["GStreamer"]:
        rows.append(Finding("video", "GStreamer", "unusable", "not in this OpenCV: no CSI cameras", gstreamer_step()))
    elif not media["FFMPEG"] and not media["GStreamer"]:
        help_ = 'pip install "edgevtx[opencv]", which has FFmpeg'
        rows.append(Finding("video", "decoding", "unusable", "OpenCV has neither FFmpeg nor GStreamer", help_))
    return rows + [_camera(path) for path in sorted(Path("/dev").glob("video*"))]


def _camera(path: Path) -> Finding:
    if os.access(path, os.R_OK | os.W_OK):
        return Finding("video", str(path), "ok", "readable")
    return Finding("video", str(path), "unusable", "no permission", "sudo usermod -aG video $USER, and log in again")


def _runtimes() -> list[Finding]:
    from edgevtx.runtimes import probe_all

    rows = []
    for probe in probe_all():
        if probe.name == "null":
            continue
        if too_old := _too_old(probe.name, probe.version):
            install = f'pip install --upgrade "edgevtx[{probe.name}]"'
            rows.append(Finding("runtimes", probe.name, "unusable", too_old, install))
        elif probe.available:
            rows.append(Finding("runtimes", probe.name, "ok", f"{probe.version} on {', '.join(probe.devices)}"))
        else:
            reason = ": ".join(word for word in (probe.version, probe.reason) if word)
            rows.append(Finding("runtimes", probe.name, "unusable", reason, probe.install))
    if rows and not any(row.level == "ok" for row in rows):
        help_ = 'pip install "edgevtx[openvino]" or "edgevtx[onnxruntime]"'
        rows.append(Finding("runtimes", "any", "broken", "no runtime is usable: no bundle can run here", help_))
    return rows


def _nvidia() -> list[Finding]:
    """JetPack and the driver, where they are; silence where there is nothing of NVIDIA's."""
    from edgevtx.runtimes import host, trt_memory

    rows = []
    if host.TEGRA.is_file():
        rows.append(Finding("nvidia", "L4T", "note", host.TEGRA.read_text(errors="replace").partition("\n")[0].strip()))
    if jetpack := _output(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"]):
        rows.append(Finding("nvidia", "JetPack", "note", jetpack))
    if driver := _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]):
        rows += [Finding("nvidia", "GPU", "note", line) for line in driver.splitlines()]
    # "NV Power Mode: MAXN" and its number on a line of its own
    if power := _output(["nvpmodel", "-q"]):
        rows.append(Finding("nvidia", "power mode", "note", " ".join(power.split())))
    if host.TEGRA.is_file():
        free = f"{trt_memory.free_mb()} MiB free for compiling, swap space on disks included"
        rows.append(Finding("nvidia", "memory", "note", free))
    if rows and (toolkit := _cuda_toolkit()):
        rows.append(Finding("nvidia", "CUDA", "note", toolkit))
    return rows + _pycuda() if rows else []


def _pycuda() -> list[Finding]:
    """The driver's library, where it is missing, and pycuda, which does not load without it."""
    from edgevtx.runtimes import host, libcuda

    driver = []
    try:
        ctypes.CDLL(libcuda.LIBRARY)
    except OSError as error:
        driver = [Finding("nvidia", "driver", "unusable", str(error), host.driver_step())]
        if importlib.util.find_spec("pycuda"):  # whether it loads is known when the driver is there
            return driver
    steps = {"install": host.install_command("cuda"), "again": host.install_command("cuda", again=True)}
    return [*driver, _package("nvidia", "pycuda", "pycuda.driver", required=False, **steps)]


def _cuda_toolkit() -> str:
    """The CUDA toolkit's version and its compiler, with which pycuda is built; JetPack's is not on the path."""
    compiler = shutil.which("nvcc") or str(NVCC)
    found = re.search(r"release ([\d.]+)", _output([compiler, "--version"]))
    return f"{found[1]}, {compiler}" if found else ""


def _output(command_line: list[str]) -> str:
    if shutil.which(command_line[0]) is None:
        return ""
    try:
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _export() -> list[Finding]:
    """Versions only: importing torch and transformers takes seconds."""
    rows = []
    for package in EXPORT:
        try:
            version = metadata.version(package)
            too_old = _too_old(package, version)
            install = 'pip install "edgevtx[export]"' if too_old else ""
            rows.append(Finding("export", package, "unusable" if too_old else "ok", too_old or version, install))
        except metadata.PackageNotFoundError:
            rows.append(
                Finding(
                    "export", package, "unusable", "not installed; not needed to run", 'pip install "edgevtx[export]"'
                )
            )
    if all(row.level == "unusable" for row in rows):
        return [Finding("export", "export", "unusable", "not installed; not needed to run", rows[0].help)]
    return rows


def _cache() -> list[Finding]:
    from edgevtx import cache

    root = cache.root()
    help_ = "set EDGEVTX_CACHE to a folder that you may write to"
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return [Finding("cache", "folder", "broken", f"{root} cannot be written: every start compiles again", help_)]
    used = sum(entry.size for entry in cache.entries())
    free = shutil.disk_usage(place).free
    return [Finding("cache", "folder", "ok", f"{root}, {common.size(used)} used, {common.size(free)} free")]


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = common.console()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    area = ""
    for finding in findings:
        if finding.area != area:
            if area:
                table.add_row()
            area = finding.area
            table.add_row(Text(area), "", "")
        value = Text(finding.value, _STYLES[finding.level])
        if finding.level in ("unusable", "broken") and finding.help:
            value.append(f"\n-> {finding.help}", "")
        table.add_row(Text(f"  {finding.name}", "not bold"), Text(finding.level, _STYLES[finding.level]), value)
    out.print(table)
