#!/usr/bin/env bash
# All benchmarks in an order in which the later ones find the bundles of the earlier; tables under bench/results.
#
#     bench/run_all.sh [PYTHON [NAME...]]      all of them, or those named
#
# About 25 minutes on 2 server cores, nearly half of it `routes`. Run it on a machine that does nothing else: the load
# average beforehand is in every table.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
names=("${@:2}")
[ ${#names[@]} -gt 0 ] || names=(import_cost families overhead throughput load peers routes masks denoise local_attention)
for name in "${names[@]}"; do
    echo "== $name"
    time "$python" "bench/$name.py"
done
