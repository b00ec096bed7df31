#!/usr/bin/env bash
# Tests of the TensorRT runtime with the real pycuda, over a driver library that is made here (tests/runtimes/over_pycuda.py):
# what pycuda does with our calls is pycuda's own, and no GPU is needed, nor used. pycuda and NVIDIA's headers are taken from
# the package index; pycuda is compiled without cuRAND, in some minutes.
set -euo pipefail
python=${1:?usage: test_pycuda.sh PYTHON_OF_MAIN_ENVIRONMENT [PYTEST_ARGUMENT...]}
shift
project=$(cd "$(dirname "$0")/.." && pwd)
cd "$project"
# absolute, as it is run in other folders; its links are not followed, which would leave the virtual environment
python=$(command -v "$python")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
pycuda=2026.1
built=${PYCUDA_FOLDER:-${TMPDIR:-/tmp}}/edgevtx-pycuda # a folder of its own, which is made anew when pycuda is
mkdir -p "$built"
built=$(cd "$built" && pwd)
made="pycuda $pycuda, $("$python" --version)"

if [ "$(cat "$built/.made" 2>/dev/null)" != "$made" ]; then
    rm -rf "${built:?}"/* "$built/.made"
    mkdir -p "$built/source" "$built/headers" "$built/site" "$built/stub"
    "$python" -m pip download --quiet --no-deps --no-binary pycuda --dest "$built" "pycuda==$pycuda"
    tar --extract --file "$built"/pycuda-*.tar.gz --directory "$built/source" --strip-components 1
    "$python" -m pip install --quiet --no-deps --target "$built/headers" \
        "nvidia-cuda-runtime-cu12==12.9.79" "nvidia-cuda-profiler-api-cu12==12.9.79"
    headers=$(find "$built/headers" -type d -name include | paste --serial --delimiters=,)
    # linked against nothing of it yet: which functions pycuda wants is read from what is compiled
    gcc -shared -x c /dev/null -o "$built/stub/libcuda.so" -Wl,-soname,libcuda.so.1
    (
        cd "$built/source"
        "$python" configure.py --no-cuda-enable-curand --cuda-root="$built" --cuda-inc-dir="$headers" \
            --cudadrv-lib-dir="$built/stub" --cudart-lib-dir="$built/stub" >/dev/null
    )
    "$python" -m pip install --quiet --no-deps --target "$built/site" "$built/source" 2>"$built/build.log"
    "$python" -m pip install --quiet --target "$built/site" --no-deps pytools mako markupsafe siphash24
    echo "$made" >"$built/.made"
fi
# Python runs this as it starts, also in the processes that tests start
cat >"$built/site/sitecustomize.py" <<'PYTHON'
from tests.runtimes import fake_machine, over_pycuda

over_pycuda.start(fake_machine.Machine())
PYTHON
functions=$(
    nm --dynamic --undefined-only "$built"/site/pycuda/_driver*.so | grep --only-matching ' cu[A-Z]\w*'
    grep --only-matching '^    "cu[A-Z]\w*": (' runtimes/libcuda.py | grep --only-matching 'cu\w*'
)
# shellcheck disable=SC2086
PYTHONPATH=. "$python" -m tests.runtimes.over_pycuda "$built" $(printf '%s\n' $functions | sort --unique)

[ $# -gt 0 ] || set -- tests/gpu/test_device.py $(grep --files-with-matches 'fake_gpu\|machine: Machine' tests/runtimes/test_*.py)
EDGEVTX_TEST_PYCUDA=$built LD_LIBRARY_PATH=$built PYTHONPATH=$project:$built/site \
    "$python" -m pytest -q -p no:cacheprovider "$@"
