#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, without a network: install from a folder of wheels, run the GPU's tests, and measure.
#
#     scripts/gpu_check.sh WHEELS [OUT]
#
# WHEELS needs edgevtx's own dependencies, pycuda, pytest, hypothesis and onnx. What else lies there is used:
# tensorrt-rtx-cu13 or tensorrt (or the system's TensorRT, which JetPack has), onnxruntime-gpu, and for exporting and
# for the comparison torch with the export extra. Without torch, WHEELS/bundles must have what
# `scripts/export_tiny_bundles.py WHEELS/bundles tensorrt tensorrt-rtx` makes elsewhere, or no family is tested.
# pycuda comes as source alone: `pip wheel pycuda` on a machine with CUDA's headers, of the same Python and processor;
# see docs/tensorrt.md.
#
# OUT (default out/gpu-check) gets machine.txt, tests.txt, tests.xml and the benchmark's tables. The exit code is that
# of the tests.
set -euo pipefail
wheels=$(cd "${1:?usage: scripts/gpu_check.sh WHEELS [OUT]}" && pwd)
cd "$(dirname "$0")/.."
mkdir -p "${2:-out/gpu-check}"
out=$(cd "${2:-out/gpu-check}" && pwd)
venv=${VENV_GPU:-$PWD/.venv-gpu}

# JetPack's TensorRT and OpenCV are the system's
python3 -m venv --system-site-packages "$venv"
python="$venv/bin/python"
install() { "$python" -m pip install --quiet --no-index --find-links "$wheels" "$@"; }
install "click>=8.1" "msgspec>=0.18.6" "numpy>=1.26" "pillow>=10.1" "platformdirs>=4" "rich>=13" \
    pycuda pytest hypothesis onnx
for extra in tensorrt-rtx-cu13 tensorrt onnxruntime-gpu torch transformers onnx-ir onnxscript safetensors scipy \
    scikit-image opencv-python-headless; do
    if "$python" -c "import importlib.metadata as m; m.version('$extra')" 2>/dev/null; then
        continue # the system's is used as found
    fi
    install "$extra" 2>/dev/null || echo "not in $wheels, so left out: $extra"
done

export PYTHONPATH=$PWD EDGEVTX_CACHE=$out/cache EDGEVTX_BENCH_DIR=$out/bench
{
    date --utc --iso-8601=seconds
    nvidia-smi || cat /etc/nv_tegra_release || true
    "$python" --version
    "$python" -m pip list
    "$python" -m edgevtx doctor || true
} >"$out/machine.txt" 2>&1

if ! "$python" - 2>&1 <<'EOF' | tee --append "$out/machine.txt"; then
from edgevtx.errors import EdgevtxError
from edgevtx.runtimes.cuda import find_gpus

try:
    print(*find_gpus("tensorrt"), sep="\n")
except EdgevtxError as error:
    raise SystemExit(f"nothing was tested: {error}") from None
EOF
    exit 1
fi

bundles=$wheels/bundles
if [ ! -d "$bundles" ] && "$python" -c 'import torch, transformers, onnxscript' 2>/dev/null; then
    bundles=$out/bundles
    "$python" scripts/export_tiny_bundles.py "$bundles" tensorrt tensorrt-rtx
fi
[ ! -d "$bundles" ] || export EDGEVTX_GPU_BUNDLES=$bundles

status=0
"$python" -m pytest -m gpu -rs --junitxml "$out/tests.xml" tests/gpu 2>&1 | tee "$out/tests.txt" || status=$?
if "$python" -c 'import transformers, onnxscript, skimage' 2>/dev/null; then
    "$python" bench/gpu.py --out "$out" || echo "the benchmark did not finish" >&2
else
    echo "the benchmark was left out: it exports its models, and $wheels lacks the export extra or scikit-image" >&2
fi
echo "results are in $out; what has run on which GPU belongs into docs/tensorrt.md"
exit "$status"
