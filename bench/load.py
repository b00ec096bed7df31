"""The second load of a bundle against the runtime's own load of the same engine file.

Demand: `edgevtx.load` with the engine in the cache takes at most 1.2 times what the runtime itself takes to open that
artifact: OpenVINO its blob, ONNX Runtime its saved optimised graph; ViT-B and RT-DETR-R18.
Prediction: 10 to 20 ms of our own (manifest, sizes and times of the files, device queries), a ratio of 1.02 to 1.15,
the larger the smaller the model; our imports, 50 ms, come on top once a process.

Each sample is a fresh process, the two interleaved, page cache warm. Numpy, the vendor's package and edgevtx are
imported before the clock starts; the seconds of our imports are a column of their own, and the ratio with them another.
The bare load is the vendor's fastest that we know: OpenVINO's blob mapped into memory, ONNX Runtime's graph with its
optimiser off.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from common import Report, in_fresh_process, ratio
from models import bundle

STEPS = ("imports", "Bundle.open", "choose_runtime", "prepare_engine", "open_prepared", "accept")


def load_bare(runtime: str, folder: Path) -> Any:
    """What `runtimes` does to open an engine, and nothing else: an object that could run now."""
    if runtime == "openvino":
        import openvino

        tensor = openvino.Tensor(np.memmap(folder / "engine.blob", np.uint8, mode="c"), shared_memory=True)
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().import_model(tensor, "CPU", hints)
        return tensor, model.create_infer_request()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(folder / "engine.onnx"), options, providers=["CPUExecutionProvider"])


def load_ours(runtime: str, path: Path, steps: dict[str, float]) -> Any:
    """`edgevtx.load`; `steps` takes the seconds of each of its steps."""
    from edgevtx import predictor

    def clocked(owner: Any, attribute: str, label: str) -> None:
        inner = getattr(owner, attribute)

        def call(*positional: Any, **named: Any) -> Any:
            begin = perf_counter()
            found = inner(*positional, **named)
            steps[label] = perf_counter() - begin
            return found

        setattr(owner, attribute, call)

    clocked(predictor.Bundle, "open", "Bundle.open")
    for name in STEPS[2:]:
        clocked(predictor, name, name)
    return predictor.load(path, runtime=runtime, precision="fp32", compile="never", allow_unverified=True)


def child(who: str, runtime: str, path: Path) -> None:
    """One sample, printed as JSON: seconds of the load, and by step where it is ours."""
    importlib.import_module(runtime)
    steps: dict[str, float] = {}
    if who == "ours":
        start = perf_counter()
        importlib.import_module("edgevtx.predictor")
        importlib.import_module("edgevtx.runtimes").get_backend(runtime)
        steps["imports"] = perf_counter() - start
    start = perf_counter()
    keep = load_bare(runtime, path) if who == "bare" else load_ours(runtime, path, steps)
    print(json.dumps({"seconds": perf_counter() - start, "steps": steps}))
    del keep


def engine_folder(path: Path, runtime: str) -> tuple[Path, float]:
    """The folder of the bundle's cached engine, built now if it is not there, and the seconds of its compilation."""
    import edgevtx
    from edgevtx.bundle import Bundle
    from edgevtx.engines import prepare_engine
    from edgevtx.runtimes.base import EngineOptions

    with edgevtx.load(path, runtime=runtime, precision="fp32", compile="force", allow_unverified=True) as model:
        compiled = model.info.load_seconds
    return prepare_engine(Bundle.open(path), runtime, EngineOptions(), compile="never").folder, compiled


def compare(name: str, runtime: str, rounds: int, warmup: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The samples of one model on one runtime: first load and steps, and seconds by who loads."""
    path = bundle(name)
    folder, first = engine_folder(path, runtime)
    samples: dict[str, list[float]] = {"ours": [], "bare": []}
    steps: dict[str, list[float]] = {step: [] for step in STEPS}
    for index in range(-warmup, rounds):
        for who in ("ours", "bare") if index % 2 else ("bare", "ours"):
            place = path if who == "ours" else folder
            found = in_fresh_process(Path(__file__), "--child", who, runtime, str(place))
            if index < 0:
                continue
            samples[who].append(found["seconds"])
            for step, seconds in found["steps"].items():
                steps[step].append(seconds)
    with_imports = [load + imports for load, imports in zip(samples["ours"], steps["imports"], strict=True)]
    facts = {"first": first, "with imports": ratio(with_imports, samples["bare"])}
    return facts | {"steps": {step: 1e3 * float(np.median(times)) for step, times in steps.items()}}, samples


@click.command()
@click.option("--rounds", default=12, show_default=True, help="Fresh processes for each of the two.")
@click.option("--warmup", default=2, show_default=True)
@click.option("--model", "models", multiple=True, default=["vit_b16_224", "rtdetr_r18_640"], show_default=True)
@click.option("--runtime", "runtimes", multiple=True, default=["openvino", "onnxruntime"], show_default=True)
@click.option("--child", "sample", nargs=3, hidden=True, help="WHO RUNTIME PATH: one sample.")
def main(
    rounds: int, warmup: int, models: tuple[str, ...], runtimes: tuple[str, ...], sample: tuple[str, str, str] | None
) -> None:
    """Measure the second load against the runtime's own."""
    if sample:
        child(sample[0], sample[1], Path(sample[2]))
        return
    report = Report("load", "Loading a bundle whose engine is cached", {"rounds": rounds, "warm-up": warmup})
    table = report.table(
        "Seconds, medians of fresh processes",
        *("model", "runtime", "first load", "second load", "bare", "ratio [95%]", "with our imports"),
    )
    parts = report.table("Our imports, and where the second load goes, ms", "model", "runtime", *STEPS)
    for name in models:
        for runtime in runtimes:
            facts, samples = compare(name, runtime, rounds, warmup)
            found = ratio(samples["ours"], samples["bare"])
            medians = [float(np.median(samples[who])) for who in ("ours", "bare")]
            table.add(name, runtime, facts["first"], *medians, str(found), str(facts["with imports"]))
            parts.add(name, runtime, *(facts["steps"][step] for step in STEPS))
            report.demand(f"second load of {name} over {runtime}'s own", "<= 1.2", found)
            report.raw[f"{name} {runtime}"] = samples
    report.notes.append("the first load compiles, writes the engine to the cache and replays the golden sample")
    report.finish()


if __name__ == "__main__":
    main()
