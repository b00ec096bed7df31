#!/usr/bin/env bash
# All benchmarks in an order in which the later ones find the bundles of the earlier; tables under bench/results.
#
#     bench/run_all.sh [PYTHON]
#
# Run it on a machine that does nothing else: the load average beforehand is in every table.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
for name in import_cost families overhead throughput load routes peers; do
    echo "== $name"
    time "$python" "bench/$name.py"
done
