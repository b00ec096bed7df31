"""NVIDIA engines on this GPU, beside torch in the same run and beside the time that bytes and operations allow.

For each model, interleaved: the engine without and with a CUDA graph, the whole call of the predictor with the host's
and with the GPU's resize, torch eager and `torch.compile` under fp16 autocast, and ONNX Runtime's CUDA provider in
fp32. All take uint8 pixels of the host and give arrays of the host; "on the GPU" has its pixels there already. "alone"
is the device's own time by events: of the engine, and of the copies to and from it. Frames of the whole call have one
size; where the plan takes others, "sizes change" has upright and lying ones in turn.

What bytes and operations allow: the plan's bytes, its inputs and outputs once over the memory, or its multiply-adds on
the matrix units, whichever takes longer. Both rates are measured here, by a copy of 256 MiB and, where torch is, by a
product of 8192x8192 matrices in fp16, since what a data sheet promises depends on clocks and power. Without torch the
bytes alone count. Weights that stay in the L2 cache from one call to the next can beat the bytes. Of plans of dynamic
sizes it is not known.
Prediction: engines within 1.5 times of what is allowed for ViT-B, 2 to 4 times for detectors at batch 1; a graph saves
10 to 30% of those whose kernels are short.

    python bench/gpu.py                       # exports its models: needs torch and the export extra
    python bench/gpu.py --export FOLDER       # on another machine: their bundles, and nothing is measured
    python bench/gpu.py --bundles FOLDER      # measures bundles, these or yours: needs neither

With `--softmax-low` bundles are exported whose softmax runs in the lower precision too, which `edgevtx export` never
does: what its fp32 costs is the difference to the same models without. Their answers are not to be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, Report, Times, interleave, photographs, quantiles
from device import Rates, Timed, measure_rates
from models import MODELS, Model, build_options, open_checkpoint, sources_digest

from edgevtx.runtimes.cuda import Device
from edgevtx.runtimes.trt_loaded import Loaded

TARGETS = ("tensorrt", "tensorrt-rtx")
FOLDER_OPTION = click.Path(path_type=Path, file_okay=False)
DEFAULT = ("vit_b16_224", "dinov2_s14_518", "rtdetr_r18_640", "detr_r50_800")


def bundle_for(model: Model, targets: tuple[str, ...], precision: str, softmax_low: bool) -> Path:
    """The model's bundle with graphs in this precision and in fp32, exported where these sources have not done it."""
    from edgevtx.export.pipeline import ExportOptions, export

    key = hashlib.sha256(f"{model!r} {targets} {precision} {softmax_low} {sources_digest()}".encode()).hexdigest()[:12]
    out = FOLDER / "bundles" / f"{model.name}-gpu-{key}"
    if not (out / "manifest.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        precisions = (precision, "fp32") if targets and precision != "fp32" else ("fp32",)
        options = ExportOptions(
            targets=(*targets, "onnxruntime"), precisions=precisions, build=build_options(model), keep_failed=True,
            overwrite=True, name=model.name,
        )  # fmt: skip
        export(model.family, open_checkpoint(model), out, options)
    return out


def let_softmax_run_low() -> None:
    """Have what is exported from now on run softmax, and the scores before it, as the products do."""
    from edgevtx.export.rewrite import low_precision

    low_precision.FOLLOWERS |= {"Softmax"}
    del low_precision._EXACT_USES["Softmax"]


# -- who runs --------------------------------------------------------------------------------------------------


@dataclass
class Ways:
    """How a target's engine is run, by name; the one that notes the device's times; its plan's record."""

    work: dict[str, Callable[[], object]]
    timed: Timed
    record: Any


@contextlib.contextmanager
def engines(path: Path, target: str, precision: str, inputs: dict[str, Any], notes: list[str]) -> Iterator[Ways]:
    """The ways to run a target's engine; what it lacks is noted."""
    import edgevtx
    from edgevtx.bundle import Bundle
    from edgevtx.engines import prepare_engine
    from edgevtx.errors import InputError
    from edgevtx.runtimes import get_backend
    from edgevtx.runtimes.base import EngineOptions
    from edgevtx.runtimes.plan import PLAN, read_plan

    backend: Any = get_backend(target)
    made = prepare_engine(Bundle.open(path), target, EngineOptions(precision=precision, device="GPU"))
    record = read_plan(made.folder / PLAN)
    pictures = camera_frames(notes)
    frames = itertools.cycle(pictures)
    options = {"runtime": target, "precision": precision, "device": "GPU", "allow_unverified": True}
    load = partial(edgevtx.load, path, **options)
    with contextlib.ExitStack() as opened:
        work: dict[str, Callable[[], object]] = {}
        for name, graphs in (("engine", False), ("engine, CUDA graph", True)):
            engine = replace(backend, graphs=graphs).open(made.graph_path, made.folder, made.options)
            opened.enter_context(contextlib.closing(engine))
            runtime = opened.enter_context(engine.new_runtime())
            work[f"{target} {name}"] = partial(runtime.run, inputs)
            if not graphs and (torch := usable_torch()) is not None:
                there = {key: torch.from_numpy(value).cuda() for key, value in inputs.items()}
                work[f"{target} on the GPU"] = partial(runtime.run, there)
        device = Device(0, target)
        loaded = Loaded(importlib.import_module(backend.package), target, device, made.folder / PLAN, record, False)
        opened.callback(loaded.leave, loaded.owner)
        timed = opened.enter_context(contextlib.closing(Timed(loaded)))
        model = opened.enter_context(load())
        work[f"{target} whole call"] = lambda: model(next(frames))
        if any(None in spec.shape[1:] for spec in record.inputs):
            turned = itertools.cycle([pictures[0], np.ascontiguousarray(np.rot90(pictures[0]))])
            work[f"{target} whole call, sizes change"] = lambda: model(next(turned))
        try:
            resizing = opened.enter_context(load(resize="gpu"))
        except InputError as error:
            notes.append(f"{path.stem}: {error}")
        else:
            work[f"{target} whole call, GPU resize"] = lambda: resizing(next(frames))
        yield Ways(work, timed, record)


def camera_frames(notes: list[str]) -> list[Any]:
    """Frames (1080,1920,3) uint8 BGR: photographs, or rendered ones where scikit-image is not there."""
    from edgevtx.profile import synthetic_frames

    note = "scikit-image is not installed: frames are rendered, and no photographs"
    try:
        return photographs()
    except ImportError:
        if note not in notes:
            notes.append(note)
        return list(synthetic_frames((1080, 1920), 4))


def those_that_run(
    work: dict[str, Callable[[], object]], name: str, notes: list[str]
) -> dict[str, Callable[[], object]]:
    """Without those that refuse what they are given, as models of prompts and clips do a frame: these are noted."""
    from edgevtx.errors import EdgevtxError

    found = {}
    for who, call in work.items():
        try:
            call()
        except EdgevtxError as error:
            notes.append(f"{name} {who} was not run: {error}")
        else:
            found[who] = call
    return found


@contextlib.contextmanager
def cuda_provider(path: Path, inputs: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """ONNX Runtime's CUDA provider in fp32."""
    import edgevtx

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    with (
        edgevtx.load(
            path, runtime="onnxruntime", precision="fp32", providers=providers, allow_unverified=True
        ) as model,
        model.engine.new_runtime() as runtime,
    ):
        yield lambda: runtime.run(inputs)


def usable_torch() -> Any:
    """torch with CUDA, or None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def in_torch(torch: Any, model: Model, inputs: dict[str, Any], notes: list[str]) -> dict[str, Callable[[], object]]:
    """The recipe's module, eager and compiled, from pixels of the host to arrays of the host; what fails is noted."""
    from edgevtx.export.recipe import get_recipe

    traceable = get_recipe(model.family).build(open_checkpoint(model), build_options(model))
    module = traceable.module.eval().cuda()
    locked = [torch.from_numpy(array).pin_memory() for array in inputs.values()]

    def call(forward: Any) -> object:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            return [tensor.cpu().numpy() for tensor in forward(*(item.cuda(non_blocking=True) for item in locked))]

    found = {}
    for name, forward in (("torch eager", module), ("torch.compile", torch.compile(module))):
        try:
            call(forward)  # where it is compiled
        except Exception as error:  # whatever the compiler stumbles over is a finding, and no end of the run
            notes.append(f"{model.name} in {name} was not run: {type(error).__name__}: {str(error).splitlines()[:1]}")
        else:
            found[name] = partial(call, forward)
    return found


# -- the run ---------------------------------------------------------------------------------------------------


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Timed calls of each, interleaved.")
@click.option("--warmup", default=20, show_default=True)
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("--precision", default="fp16", show_default=True, help="Of the engines.")
@click.option("--model", "names", multiple=True, default=DEFAULT, help="Names of bench/models.py.")
@click.option("--bundles", type=FOLDER_OPTION, help="Measure the bundles (*.vtx) of this folder, and export nothing.")
@click.option("--export", "export_to", type=FOLDER_OPTION, help="Write the models' bundles here, and measure nothing.")
@click.option("--softmax-low", is_flag=True, help="Export softmax in that precision too, to see what its fp32 costs.")
@click.option("--out", type=FOLDER_OPTION, help="Folder of the tables; bench/results by default.")
def main(
    rounds: int, warmup: int, targets: tuple[str, ...], precision: str, names: tuple[str, ...], bundles: Path | None,
    export_to: Path | None, softmax_low: bool, out: Path | None,
) -> None:  # fmt: skip
    """Measure engines on this GPU."""
    from edgevtx.errors import RuntimeUnavailableError
    from edgevtx.runtimes import probe
    from edgevtx.runtimes.cuda import find_gpus

    if softmax_low:
        let_softmax_run_low()
    if export_to is not None:
        there = [name for name in names if (export_to / f"{name}.vtx").exists()]
        if there:
            raise SystemExit(f"{export_to} has {', '.join(there)} already; remove them, or name another folder")
        for name in names:
            print(f"exporting {name} ...", flush=True)
            shutil.copytree(bundle_for(MODELS[name], targets, precision, softmax_low), export_to / f"{name}.vtx")
        return
    try:
        gpu = str(find_gpus("tensorrt")[0])
    except RuntimeUnavailableError as error:
        raise SystemExit(f"nothing was measured: {error}") from None
    given = {} if bundles is None else {path.stem: path for path in sorted(bundles.glob("*.vtx"))}
    if bundles is not None and not given:
        raise SystemExit(f"nothing was measured: {bundles} holds no bundles (*.vtx)")
    torch = usable_torch()
    rates = measure_rates(torch)
    settings = {"GPU": gpu, "rounds": rounds, "warm-up": warmup, "batch": 1, "precision": precision, "measured": rates}
    report = Report("gpu", f"NVIDIA engines on {gpu}", {key: str(value) for key, value in settings.items()})
    table = report.table(
        "Milliseconds a call", "model", "who", "median", "p95", "allowed by bytes and operations", "times of that"
    )
    usable = {target: probe(target) for target in targets}
    report.notes += [f"{target} was not run: {found.reason}" for target, found in usable.items() if not found.available]
    here = tuple(target for target, found in usable.items() if found.available)
    for name in given or names:
        print(f"{name} ...", flush=True)
        path = given.get(name) or bundle_for(MODELS[name], here, precision, softmax_low)
        beside = None if given or torch is None else partial(in_torch, torch, MODELS[name])
        times, allowed = measure(name, path, here, precision, rates, beside, (rounds, warmup), report.notes)
        for who, taken in times.items():
            found = quantiles(taken)
            least = allowed.get(who)
            times_of = None if least is None else found["median"] / least
            table.add(name, who, found["median"], found["p95"], least, times_of)
            report.raw[f"{name} {who}"] = taken
    report.notes += [
        word for word in (lacking(torch, bool(given)), "copies alone are nothing where memory is shared") if word
    ]
    report.finish(*(() if out is None else (out,)))


def measure(
    name: str, path: Path, targets: tuple[str, ...], precision: str, rates: Rates,
    beside: Callable[[dict[str, Any], list[str]], dict[str, Callable[[], object]]] | None,
    counts: tuple[int, int], notes: list[str],
) -> tuple[dict[str, Times], dict[str, float]]:  # fmt: skip
    """Milliseconds of one model's runs by who ran it, and the least that bytes and operations allow; see `interleave`.

    `counts` are the timed and the warm-up rounds. What did not run is noted.
    """
    from edgevtx.errors import EdgevtxError

    inputs, outputs = golden_sample(path)
    with contextlib.ExitStack() as opened:
        work: dict[str, Callable[[], object]] = {}
        allowed: dict[str, float] = {}
        timed: dict[str, Timed] = {}
        for target in targets:
            try:
                ways = opened.enter_context(engines(path, target, precision, inputs, notes))
            except EdgevtxError as error:
                notes.append(f"{name} on {target} was not run: {error}")
                continue
            timed[f"{target} by events"] = ways.timed
            work |= {**ways.work, f"{target} by events": partial(ways.timed.run, inputs)}
            record = ways.record
            if not record.profiles:  # of dynamic sizes the work is not known
                size = record.size + sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
                least = rates.allow(size, sum(layer.work for layer in record.layers))
                allowed |= dict.fromkeys([*ways.work, f"{target} engine alone"], least)
        try:
            work["onnxruntime CUDA fp32"] = opened.enter_context(cuda_provider(path, inputs))
        except EdgevtxError as error:
            notes.append(f"{name} on ONNX Runtime's CUDA provider was not run: {error}")
        if beside is not None:
            work |= beside(inputs, notes)
        times = interleave(those_that_run(work, name, notes), *counts)
        for who in [who for who in timed if who in times]:
            execution = timed[who]
            del times[who]  # the host's time, with that of the events
            times |= {f"{who.split()[0]} {what}": found for what, found in execution.rows(counts[0]).items()}
    return times, allowed


def lacking(torch: Any, bundles: bool) -> str:
    """What a report says of torch."""
    if torch is None:
        return (
            "torch with CUDA is not installed: there is nothing beside the engines, and what is allowed counts bytes "
            "alone"
        )
    if bundles:
        return "bundles hold no module of torch: there is nothing beside the engines"
    return "torch runs under autocast to fp16, as its users do; its copies to and from the GPU are in it"


def golden_sample(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and outputs of a bundle's golden sample."""
    from edgevtx.bundle import Bundle

    golden = Bundle.open(path).golden()
    return {name: np.ascontiguousarray(array) for name, array in golden.inputs.items()}, golden.outputs


if __name__ == "__main__":
    main()
