#!/usr/bin/env bash
# Imitates JetPack 6 as far as a workstation can: Python 3.10, numpy 1.26, OpenCV 4.8, and the oldest runtimes that
# edgevtx supports. The bundles of every family are exported by the main environment (argument 1: its python) and
# must load and agree here. It is an imitation: no Jetson, no aarch64, no TensorRT.
set -euo pipefail
main=${1:?usage: test_jetpack_like.sh PYTHON_OF_MAIN_ENVIRONMENT}
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV_JETPACK:-$root/.venv-jetpack}

find_python310() {
    local candidate
    for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python; do
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.10 was not found; install it (Debian's, pyenv's or uv's) and run this again" >&2
    return 1
}

if [ ! -e "$venv/.installed" ] || [ "$root/pyproject.toml" -nt "$venv/.installed" ]; then
    "$(find_python310)" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    "$venv/bin/python" -m pip install --quiet "numpy==1.26.*" "opencv-python-headless==4.8.*" \
        "onnxruntime==1.23.*" "openvino==2025.0.*" "pillow==10.1.*" "msgspec==0.18.6" "click==8.1.*" \
        "platformdirs==4.0.*" "rich==13.*" pytest pytest-xdist hypothesis onnx  # onnx: the tests build graphs with it
    "$venv/bin/python" -m pip install --quiet --no-deps --editable "$root"
    touch "$venv/.installed"
fi

bundles=$(mktemp -d)
trap 'rm -rf "$bundles"' EXIT
cd "$root"
"$main" scripts/export_tiny_bundles.py "$bundles"
EDGEVTX_TEST_BUNDLES="$bundles" EDGEVTX_CACHE="$bundles/cache" "$venv/bin/python" -m pytest -q --numprocesses auto --maxprocesses 8 \
    --dist loadfile -m "not slow and not gpu" tests/floor tests/runtimes tests/stream tests/decode tests/profile tests/test_*.py
