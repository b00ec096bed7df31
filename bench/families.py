"""One full-size model a family from checkpoint to answer: export, verdicts, loading and the time of a call.

Demand: each goes through `export` and `load`, and passes verification in fp32; the times are for information. So are
the verdicts of bf16: random weights leave more selections close than trained ones, and a refusal is an answer too.
Prediction: export below two minutes a model, most of it verification; engines as in the table of the exporters'
routes (`bench/routes.py`); a whole call 6 to 12 ms above its engine.

Architectures are the published ones, weights are random and seeded, frames are photographs at 1080p. The runtimes and
precisions of one model are interleaved. Loading is measured here, in this process, with the engine compiled (first)
and from the cache (second); `bench/load.py` measures it in fresh processes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from common import RESULTS, Report, Table, photographs
from models import MODELS, PRECISIONS, Model, export_model

STAGES = ("build", "trace", "lower", "reference", "verify", "pack")


Pair = tuple[str, str]  # target, precision


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of a bundle's directory."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def by_stage(seconds: dict[str, float]) -> list[float]:
    """The seconds of an export by stage; "verify TARGET PRECISION" are added up."""
    return [sum(value for name, value in seconds.items() if name.split()[0] == stage) for stage in STAGES]


def measure(path: Path, pairs: list[Pair], rounds: int, warmup: int) -> dict[Pair, dict[str, Any]]:
    """Load every pair of target and precision twice, then call them interleaved: seconds and milliseconds."""
    import edgevtx

    found: dict[Pair, dict[str, Any]] = {}
    models = {}
    for pair in pairs:
        options: dict[str, Any] = {"runtime": pair[0], "precision": pair[1], "allow_unverified": True}
        with edgevtx.load(path, **options, compile="force") as first:
            seconds = first.info.load_seconds
        models[pair] = edgevtx.load(path, **options)
        info = models[pair].info
        found[pair] = {"first": seconds, "second": info.load_seconds, "info": info, "engine": [], "whole": []}
    clip = getattr(next(iter(models.values())), "clip", None)
    frames = itertools.cycle(photographs() if clip is None else ([frame] * clip.frames for frame in photographs()))
    for index in range(-warmup, rounds):
        for pair in pairs if index % 2 else reversed(pairs):
            frame = next(frames)
            start = perf_counter()
            models[pair](frame)
            whole = 1e3 * (perf_counter() - start)
            if index >= 0:
                found[pair]["whole"].append(whole)
                found[pair]["engine"].append(models[pair].stages["engine"])
    for model in models.values():
        model.close()
    return found


@click.command()
@click.option("--rounds", default=12, show_default=True, help="Timed calls of each runtime and precision.")
@click.option("--warmup", default=2, show_default=True)
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS, show_default=True)
@click.option("--model", "names", multiple=True, default=list(MODELS), help="Names of bench/models.py; all by default.")
def main(rounds: int, warmup: int, precisions: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Export, load and call one full-size model a family."""
    settings = {"rounds": rounds, "warm-up": warmup, "frame": "1920x1080", "weights": "random, seeded"}
    report = Report("families", "One full-size model a family", settings)
    exports = report.table("Export, seconds by stage", "model", *STAGES, "whole", "bundle MB", "graphs")
    calls = report.table(
        "On this machine: verdict, seconds to load, ms in the median",
        *("model", "runtime", "precision", "verdict", "executed as"),
        *("first load", "second load", "engine", "whole call", "beside the engine"),
    )
    report.keep_others(names, RESULTS)
    for name in names:
        print(f"{name} ...", flush=True)
        run_model(MODELS[name], precisions, (rounds, warmup), report, exports, calls)
        report.write(RESULTS)  # a large model that the machine cannot hold must not cost the others
    report.finish()


def run_model(
    model: Model, precisions: tuple[str, ...], rounds: tuple[int, int], report: Report, exports: Table, calls: Table
) -> None:
    """Export and measure one model into the report's tables."""
    start = perf_counter()
    done = export_model(model, precisions=precisions)
    whole, out = perf_counter() - start, done.bundle
    exports.add(model.name, *by_stage(done.seconds), whole, size_mb(out), len(done.manifest.graphs))
    verdicts = {(item.target, item.precision): item for item in done.manifest.verdicts}
    for pair, item in measure(out, list(verdicts), *rounds).items():
        share = ", ".join(f"{kind} {part:.0%}" for kind, part in item["info"].precision_share.items())
        times = [float(np.median(item[key])) for key in ("engine", "whole")]
        beside = float(np.median(np.array(item["whole"]) - np.array(item["engine"])))
        loads = (item["first"], item["second"])
        calls.add(model.name, *pair, verdicts[pair].status, share, *loads, *times, beside)
        report.raw[f"{model.name} {' '.join(pair)}"] = {key: item[key] for key in ("engine", "whole")}
    report.raw[f"{model.name} export"] = done.seconds
    for pair, verdict in verdicts.items():
        if verdict.status != "passed-here":
            report.notes.append(f"{model.name} {' '.join(pair)} is {verdict.status}: {verdict.reason}")
    report.notes += [f"{model.name}: {note}" for note in model.notes]
    exact = [verdict.status == "passed-here" for (_, precision), verdict in verdicts.items() if precision == "fp32"]
    report.demand(f"{model.name}: share of fp32 verdicts that are passed-here", ">= 1", sum(exact) / len(exact))


if __name__ == "__main__":
    main()
