#!/usr/bin/env bash
# The runtime side's tests on ONNX Runtime in an arm64 Debian root under qemu's user emulation, so that no assumption
# of x86 reaches a Jetson. The bundles of every family are exported by the main environment (argument 1: its python).
# Needs root, an apt system, and 2 GB; most of the time it takes is emulation's. It is no Jetson: no GPU, no TensorRT,
# Debian's Python 3.11, and OpenVINO is left out, whose ARM plugin hangs under emulation.
set -euo pipefail
main=${1:?usage: test_aarch64.sh PYTHON_OF_MAIN_ENVIRONMENT [FILE_OR_FOLDER...]}
shift
project=$(cd "$(dirname "$0")/.." && pwd)
root=${ROOT_AARCH64:-/var/tmp/edgevtx-aarch64}
[ "$(id -u)" = 0 ] || { echo "this makes a Debian root with debootstrap and chroot: run it as root" >&2; exit 1; }

if ! command -v debootstrap >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq debootstrap qemu-user-static binfmt-support >/dev/null
fi
# programs that a program starts are emulated as well only where the kernel knows the emulator
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

if [ ! -e "$root/.made" ]; then
    rm -rf "$root"
    mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | head -n 1)}
    debootstrap --arch=arm64 --variant=minbase --include=python3 --foreign bookworm "$root" "$mirror"
    cp "$(command -v qemu-aarch64-static)" "$root/usr/bin/"
    chroot "$root" /debootstrap/debootstrap --second-stage
    touch "$root/.made"
fi
if [ ! -e "$root/opt/.installed" ] || [ "$project/pyproject.toml" -nt "$root/opt/.installed" ]; then
    rm -rf "$root/opt/packages"
    # the workstation's pip, for another platform: nothing is compiled, and nothing runs under emulation for it
    "$main" -m pip install --quiet --target "$root/opt/packages" --only-binary=:all: --python-version 3.11 \
        --implementation cp --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_31_aarch64 \
        "numpy<2" "opencv-python-headless<5" "onnxruntime==1.23.*" pillow msgspec click platformdirs rich \
        pytest hypothesis onnx
    touch "$root/opt/.installed"
fi

cd "$project"
[ $# -gt 0 ] || set -- tests/floor tests/runtimes tests/decode tests/stream tests/test_*.py
files=$(find "$@" -name 'test_*.py' | sort)
[ -n "$files" ] || { echo "no tests are in $*" >&2; exit 1; }
if [ -z "${KEEP_BUNDLES:-}" ]; then # set: those of an earlier run are tested again
    rm -rf "$root/opt/bundles"
    "$main" scripts/export_tiny_bundles.py "$root/opt/bundles"
fi
rm -rf "$root/opt/edgevtx"
mkdir -p "$root/opt/edgevtx"
tar --create --exclude-vcs --exclude='.venv*' --exclude=out . | tar --extract --directory "$root/opt/edgevtx"
trap 'umount --quiet "$root/proc" "$root/sys" || true' EXIT
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
# ONNX Runtime counts the processors there, and aborts while it is imported where it cannot
mountpoint -q "$root/sys" || mount -t sysfs -o ro sysfs "$root/sys"

# One file at a time, each in a process with a time limit: several at a time hung under emulation, and one that hangs
# must not cost the others' results. Panoptic DETR is tried with its fixed graph alone: the one of open batch and size
# takes half a minute here, and under emulation more than half an hour.
failed=()
for file in $files; do
    echo "== $file"
    code=0
    chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 OMP_NUM_THREADS=1 \
        PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/packages:/opt/edgevtx EDGEVTX_CACHE=/tmp/cache \
        EDGEVTX_TEST_BUNDLES=/opt/bundles EDGEVTX_TEST_RUNTIMES=onnxruntime \
        /bin/sh -c 'cd /opt/edgevtx && exec timeout --kill-after 30 "$1" python3 -m pytest -q -p no:cacheprovider \
            -o faulthandler_timeout=600 -m "not slow and not gpu" -k "not detr_panoptic-detr-dynamic-batch" "$2"' \
        pytest "${FILE_SECONDS:-2400}" "$file" || code=$?
    [ "$code" = 0 ] || [ "$code" = 5 ] || failed+=("$file ($code)") # 5: the file has no test for this machine
done
echo "$(echo "$files" | wc -w) files, ${#failed[@]} failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
