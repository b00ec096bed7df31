"""What `scripts/gpu_check.sh` installs, by a Python that notes what it is asked: no GPU, and nothing is installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# imports succeed for what FOUND names; `-` is the script's own look at the GPUs, which finds one where GPU is set
STUB = r"""#!/bin/sh
{ printf '%s\037' "$@"; echo; } >> "$LOG"
case "$1 $2" in
    "-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-c "*)
        IFS=" ,"
        for module in ${2%%;*}; do
            case " import $FOUND " in *" $module "*) ;; *) exit 1 ;; esac
        done ;;
    "- ") [ -n "$GPU" ] ;;
esac
"""


def check(folder: Path, *, found: str = "", tegra: bool = False, gpu: bool = False) -> list[list[str]]:
    """Run the script with a folder of wheels; returns the arguments of each call of Python."""
    log, stub = folder / "log", folder / "bin" / "python3"
    for made in (folder / "bin", folder / "wheels"):
        made.mkdir(exist_ok=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    if tegra:
        (folder / "tegra").write_text("# R36")
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "VENV_GPU": str(folder / "venv"),
        "NV_TEGRA_RELEASE": str(folder / "tegra"),
        "FOUND": found,
        "GPU": "1" * gpu,
        "LOG": str(log),
    }
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(folder / "wheels"), str(folder / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (not gpu), done.stdout + done.stderr
    return [line.split("\037")[:-1] for line in log.read_text().splitlines()]


def installs(calls: list[list[str]]) -> list[list[str]]:
    """What each call of pip was to install."""
    return [call[call.index("--find-links") + 2 :] for call in calls if call[:3] == ["-m", "pip", "install"]]


def test_what_the_system_can_import_is_not_installed_over(tmp_path: Path) -> None:
    packages = {name for names in installs(check(tmp_path, found="cv2 tensorrt")) for name in names}
    assert not packages & {"opencv-python-headless", "tensorrt"}
    assert packages >= {"onnxruntime-gpu", "scikit-image", "pycuda", "tensorrt-rtx-cu13"}


def test_what_is_not_there_is_installed(tmp_path: Path) -> None:
    packages = {name for names in installs(check(tmp_path)) for name in names}
    assert packages >= {"opencv-python-headless", "tensorrt"}


@pytest.mark.parametrize(("tegra", "numpy"), [(True, "numpy>=1.26,<2"), (False, "numpy>=1.26")])
def test_on_a_jetson_no_install_may_bring_numpy_2(tmp_path: Path, tegra: bool, numpy: str) -> None:
    calls = installs(check(tmp_path, tegra=tegra))
    assert len(calls) == 12 and all(names[0] == numpy for names in calls)


EXPORTING = "torch transformers onnxscript"


@pytest.mark.parametrize(
    ("folders", "found", "asked"),
    [
        (("bundles", "models"), EXPORTING, ("", "models")),  # torch beside engines is measured wherever it can be
        (("bundles", "models"), "", ("models",)),
        (("bundles",), "", ("bundles",)),
        (("bundles",), EXPORTING, ("",)),
        ((), "", ()),
    ],
)
def test_models_are_measured_beside_torch_and_bundles_that_lie_there(
    tmp_path: Path, folders: tuple[str, ...], found: str, asked: tuple[str, ...]
) -> None:
    for folder in folders:
        (tmp_path / "wheels" / folder).mkdir(parents=True)
    calls = check(tmp_path, found=found, gpu=True)
    wanted = [
        ["--bundles", f"{tmp_path}/wheels/{folder}", "--out", f"{tmp_path}/out/of-bundles"]
        if folder
        else ["--out", f"{tmp_path}/out"]
        for folder in asked
    ]
    assert [call[1:] for call in calls if call[0] == "bench/gpu.py"] == wanted
    assert any(call[:2] == ["-m", "pytest"] for call in calls)
