"""What `import edgevtx` costs a program that already needs numpy: seconds, and megabytes of resident memory.

Demand: 0.15 s and 15 MB over `import numpy` alone, at most.
Prediction: below 0.05 s and 3 MB, since the package imports numpy and its own errors and results only.

Each sample is a fresh process that imports one of the two, interleaved; byte code and page cache are warm.
"""

from __future__ import annotations

import click
import numpy as np
from common import Report, in_fresh_process, ratio

CHILD = """
import sys, time
def resident():  # MB, as the kernel counts it (Linux)
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
before = set(sys.modules)
bare = resident()
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
mb, modules = resident() - bare, sorted(set(sys.modules) - before)
import json
print(json.dumps({{"seconds": seconds, "mb": mb, "modules": modules}}))
"""


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Fresh processes for each of the two.")
def main(rounds: int) -> None:
    """Measure `import edgevtx` against `import numpy`."""
    report = Report("import_cost", "What importing edgevtx costs", {"rounds": rounds, "warm-up": 2})
    found: dict[str, list[dict[str, float]]] = {"numpy": [], "edgevtx": []}
    for index in range(-2, rounds):
        for module in ("numpy", "edgevtx") if index % 2 else ("edgevtx", "numpy"):
            sample = in_fresh_process(CHILD.format(module=module), code=True)
            if index >= 0:
                found[module].append(sample)
    seconds = {name: np.array([sample["seconds"] for sample in samples]) for name, samples in found.items()}
    memory = {name: np.array([sample["mb"] for sample in samples]) for name, samples in found.items()}
    table = report.table("Medians over fresh processes", "import", "seconds", "resident MB", "modules")
    for name, samples in found.items():
        table.add(name, np.median(seconds[name]), np.median(memory[name]), len(samples[0]["modules"]))
    added = set(found["edgevtx"][0]["modules"]) - set(found["numpy"][0]["modules"])
    over = (np.median(seconds["edgevtx"] - seconds["numpy"]), np.median(memory["edgevtx"] - memory["numpy"]))
    table.add("difference of pairs", *over, len(added))
    report.demand("seconds over numpy", "<= 0.15", float(over[0]))
    report.demand("resident MB over numpy", "<= 15", float(over[1]))
    report.notes.append(f"edgevtx / numpy in time: {ratio(seconds['edgevtx'], seconds['numpy'])}")
    ours = sum(name.startswith("edgevtx") for name in added)
    report.notes.append(f"of the {len(added)} modules added, {ours} are edgevtx's own")
    report.raw = {"seconds": seconds, "mb": memory, "added": sorted(added)}
    report.finish()


if __name__ == "__main__":
    main()
