#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, without a network: install from a folder of wheels, run the GPU's tests, and measure.
#
#     scripts/gpu_check.sh WHEELS [OUT]
#
# WHEELS is made where there is a network, on a machine with CUDA's headers and the same Python, processor and system,
# in a clone. pip takes along what the packages themselves need (pycuda's pytools, mako, siphash24, ...), and builds
# those that come as source alone, as pycuda does:
#
#     pip wheel --wheel-dir WHEELS ".[cuda]" pytest hypothesis onnx
#     pip wheel --wheel-dir WHEELS tensorrt-rtx-cu13                  # or tensorrt; a Jetson has JetPack's
#     pip wheel --wheel-dir WHEELS onnxruntime-gpu                    # for ONNX Runtime's CUDA provider
#     pip wheel --wheel-dir WHEELS ".[export,opencv]" scikit-image    # to export here, and to compare with torch
#
# For a Jetson add "numpy<2" to each line (JetPack's OpenCV breaks with numpy 2). Made on another machine than one:
#
#     pip download --dest WHEELS --only-binary=:all: --python-version 3.10 --platform manylinux_2_17_aarch64 \
#         --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_31_aarch64 \
#         --platform manylinux_2_35_aarch64 "click>=8.1" "msgspec>=0.18.6" "numpy>=1.26,<2" "pillow>=10.1" \
#         "platformdirs>=4" "rich>=13" pytest hypothesis onnx pytools mako siphash24 \
#         "exceptiongroup>=1" "tomli>=2" typing_extensions
#
# (JetPack 7 has Python 3.12, and --python-version 3.12. The last line is what pytest needs on Python 3.10: pip asks the
# Python that runs it, and not --python-version, which packages another one needs.)
# and on the Jetson, once: PATH=/usr/local/cuda/bin:$PATH pip wheel --no-deps --wheel-dir WHEELS pycuda
#
# Without torch no family is tested, and nothing is measured, but for what lies in WHEELS already:
#
#     python scripts/export_tiny_bundles.py WHEELS/bundles tensorrt tensorrt-rtx    # to be tested, on another machine
#     python bench/gpu.py --export WHEELS/models --target tensorrt                  # to be measured, or bundles of yours
#
# OUT (default out/gpu-check) gets machine.txt, tests.txt, tests.xml and the benchmark's tables, those of bundles in
# of-bundles. The exit code is that of the tests.
set -euo pipefail
wheels=$(cd "${1:?usage: scripts/gpu_check.sh WHEELS [OUT]}" && pwd)
cd "$(dirname "$0")/.."
mkdir -p "${2:-out/gpu-check}"
out=$(cd "${2:-out/gpu-check}" && pwd)
venv=${VENV_GPU:-$PWD/.venv-gpu}

# JetPack's TensorRT and OpenCV are the system's, and its OpenCV was built for numpy 1
numpy="numpy>=1.26"
[ ! -e "${NV_TEGRA_RELEASE:-/etc/nv_tegra_release}" ] || numpy="numpy>=1.26,<2"
python3 -m venv --system-site-packages "$venv"
python="$venv/bin/python"
# numpy each time: none of the others may replace it
install() { "$python" -m pip install --quiet --no-index --find-links "$wheels" "$numpy" "$@"; }
install "click>=8.1" "msgspec>=0.18.6" "pillow>=10.1" "platformdirs>=4" "rich>=13" pycuda pytest hypothesis onnx
# what can be imported is used as found, whoever installed it: a distribution's cv2 has no name that pip knows
while read -r package check; do
    if ! "$python" -c "$check" 2>/dev/null </dev/null; then
        install "$package" 2>/dev/null </dev/null || echo "not in $wheels, so left out: $package"
    fi
done <<'EOF'
tensorrt-rtx-cu13 import tensorrt_rtx
tensorrt import tensorrt
onnxruntime-gpu import onnxruntime; assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
torch import torch
transformers import transformers
onnx-ir import onnx_ir
onnxscript import onnxscript
safetensors import safetensors
scipy import scipy
scikit-image import skimage
opencv-python-headless import cv2
EOF

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
measured=$wheels/models
[ -d "$measured" ] || measured=$bundles
exports=0
"$python" -c 'import torch, transformers, onnxscript' 2>/dev/null || exports=$?
if [ "$exports" = 0 ]; then # beside torch, in the same run
    "$python" bench/gpu.py --out "$out" || echo "the benchmark did not finish" >&2
fi
if [ -d "$wheels/models" ] || { [ "$exports" != 0 ] && [ -d "$measured" ]; }; then
    "$python" bench/gpu.py --bundles "$measured" --out "$out/of-bundles" || echo "the benchmark of bundles did not finish" >&2
elif [ "$exports" != 0 ]; then
    echo "the benchmark was left out: there is neither $wheels/models nor the export extra" >&2
fi
echo "results are in $out; what has run on which GPU belongs into docs/tensorrt.md"
exit "$status"
