#!/usr/bin/env bash
# Proves that the wheel installs alone in a clean environment, and what importing it loads.
set -euo pipefail
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --upgrade pip build
"$work/build/bin/python" -m build --quiet --outdir "$work/dist" "$root"

"$python" -m venv "$work/clean"
"$work/clean/bin/python" -m pip install --quiet --upgrade pip
"$work/clean/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$work"/dist/*.whl
cd "$work"
"$work/clean/bin/python" - <<'PYTHON'
import sys

import edgevtx

heavy = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "PIL", "transformers", "msgspec", "click", "rich"}
loaded = sorted(heavy & set(sys.modules))
assert not loaded, f"import edgevtx loaded {loaded}"
assert "site-packages" in edgevtx.__file__, edgevtx.__file__

import edgevtx.runtimes

for probe in edgevtx.runtimes.probe_all():
    print(f"{probe.name}: {'available' if probe.available else probe.reason}")
PYTHON
"$work/clean/bin/edgevtx" --help >/dev/null
echo "the wheel installs in a clean environment and import edgevtx loads neither torch nor onnx"
