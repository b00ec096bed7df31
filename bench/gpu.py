"""NVIDIA engines on this GPU, beside torch in the same run and beside the time that bytes and operations allow.

For each model, interleaved: the engine without and with a CUDA graph, the whole call of the predictor with the host's
and with the GPU's resize, torch eager and `torch.compile` under fp16 autocast, and ONNX Runtime's CUDA provider in
fp32. All take uint8 pixels of the host and give arrays of the host; "on the GPU" has its pixels there already.

What bytes and operations allow: the plan's bytes, its inputs and outputs once over the memory, or its multiply-adds on
the matrix units, whichever takes longer. Both rates are measured here, by a copy of 1 GB and by a product of 8192x8192
matrices in fp16, since what a data sheet promises depends on clocks and power. Weights that stay in the L2 cache from
one call to the next can beat the bytes. Of plans of dynamic sizes it is not known.
Prediction: engines within 1.5 times of what is allowed for ViT-B, 2 to 4 times for detectors at batch 1; a graph saves
10 to 30% of those whose kernels are short.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, Report, interleave, milliseconds, photographs, quantiles
from models import MODELS, Model, build_options, open_checkpoint, sources_digest

TARGETS = ("tensorrt", "tensorrt-rtx")
DEFAULT = ("vit_b16_224", "dinov2_s14_518", "rtdetr_r18_640", "detr_r50_800")


@dataclass
class Rates:
    """What this GPU does: bytes a second over its memory, and multiply-adds a second of fp16 matrices."""

    bytes: float
    products: float

    def allow(self, size: int, work: int) -> float:
        """The least milliseconds for so many bytes and multiply-adds."""
        return 1e3 * max(size / self.bytes, work / self.products)


def bundle_for(model: Model, targets: tuple[str, ...]) -> Path:
    """The model's bundle with graphs in fp32 and fp16, exported where these sources have not made it yet."""
    from edgevtx.export.pipeline import ExportOptions, export

    key = hashlib.sha256(f"{model!r} {targets} {sources_digest()}".encode()).hexdigest()[:12]
    out = FOLDER / "bundles" / f"{model.name}-gpu-{key}"
    if not (out / "manifest.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        precisions = ("fp16", "fp32") if targets else ("fp32",)
        options = ExportOptions(
            targets=(*targets, "onnxruntime"), precisions=precisions, build=build_options(model), keep_failed=True,
            overwrite=True, name=model.name,
        )  # fmt: skip
        export(model.family, open_checkpoint(model), out, options)
    return out


def measure_rates(torch: Any) -> Rates:
    """Copy and multiply large enough that nothing else counts; the best of ten."""

    def best(work: Callable[[], object]) -> float:
        def run() -> None:
            work()
            torch.cuda.synchronize()

        return min(milliseconds(run) for _ in range(10)) / 1e3

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    matrix = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    return Rates(2 * (1 << 30) / best(lambda: target.copy_(source)), 8192**3 / best(lambda: matrix @ matrix))


# -- who runs --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def engines(
    path: Path, target: str, inputs: dict[str, Any], notes: list[str]
) -> Iterator[tuple[dict[str, Callable[[], object]], Any]]:
    """The ways to run a target's fp16 engine, by name, and its plan's record; what it lacks is noted."""
    import edgevtx
    from edgevtx.bundle import Bundle
    from edgevtx.engines import prepare_engine
    from edgevtx.errors import InputError
    from edgevtx.runtimes import get_backend
    from edgevtx.runtimes.base import EngineOptions
    from edgevtx.runtimes.plan import PLAN, read_plan

    backend: Any = get_backend(target)
    made = prepare_engine(Bundle.open(path), target, EngineOptions(precision="fp16", device="GPU"))
    frames = itertools.cycle(photographs())
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
        model = opened.enter_context(
            edgevtx.load(path, runtime=target, precision="fp16", device="GPU", allow_unverified=True)
        )
        work[f"{target} whole call"] = lambda: model(next(frames))
        try:
            resizing = opened.enter_context(
                edgevtx.load(path, runtime=target, precision="fp16", device="GPU", allow_unverified=True, resize="gpu")
            )
        except InputError as error:
            notes.append(f"{path.name}: {error}")
        else:
            work[f"{target} whole call, GPU resize"] = lambda: resizing(next(frames))
        yield work, read_plan(made.folder / PLAN)


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
@click.option("--model", "names", multiple=True, default=DEFAULT, help="Names of bench/models.py.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the tables; bench/results by default.")
def main(rounds: int, warmup: int, targets: tuple[str, ...], names: tuple[str, ...], out: Path | None) -> None:
    """Measure engines on this GPU."""
    from edgevtx.errors import EdgevtxError, RuntimeUnavailableError
    from edgevtx.runtimes import probe
    from edgevtx.runtimes.cuda import find_gpus

    try:
        gpu = str(find_gpus("tensorrt")[0])
    except RuntimeUnavailableError as error:
        raise SystemExit(f"nothing was measured: {error}") from None
    torch = usable_torch()
    report = Report("gpu", f"NVIDIA engines on {gpu}", {"GPU": gpu, "rounds": rounds, "warm-up": warmup, "batch": 1})
    table = report.table(
        "Milliseconds a call", "model", "who", "median", "p95", "allowed by bytes and operations", "times of that"
    )
    rates = None if torch is None else measure_rates(torch)
    if rates is not None:
        report.settings["measured"] = (
            f"{rates.bytes / 1e9:.0f} GB/s, {rates.products / 1e12:.0f} T multiply-adds/s fp16"
        )
    usable = {target: probe(target) for target in targets}
    for target, found in usable.items():
        if not found.available:
            report.notes.append(f"{target} was not run: {found.reason}")
    here = tuple(target for target, found in usable.items() if found.available)
    for name in names:
        print(f"{name} ...", flush=True)
        path = bundle_for(MODELS[name], here)
        inputs, outputs = golden_sample(path)
        with contextlib.ExitStack() as opened:
            work: dict[str, Callable[[], object]] = {}
            allowed: dict[str, float] = {}
            for target in here:
                try:
                    ways, record = opened.enter_context(engines(path, target, inputs, report.notes))
                except EdgevtxError as error:
                    report.notes.append(f"{name} on {target} was not run: {error}")
                    continue
                work |= ways
                if rates is not None and not record.profiles:  # of dynamic sizes the work is not known
                    size = record.size + sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
                    allowed |= dict.fromkeys(ways, rates.allow(size, sum(layer.work for layer in record.layers)))
            try:
                work["onnxruntime CUDA fp32"] = opened.enter_context(cuda_provider(path, inputs))
            except EdgevtxError as error:
                report.notes.append(f"{name} on ONNX Runtime's CUDA provider was not run: {error}")
            if torch is not None:
                work |= in_torch(torch, MODELS[name], inputs, report.notes)
            for who, times in interleave(work, rounds, warmup).items():
                found = quantiles(times)
                least = allowed.get(who)
                times_of = None if least is None else found["median"] / least
                table.add(name, who, found["median"], found["p95"], least, times_of)
                report.raw[f"{name} {who}"] = times
    if torch is None:
        report.notes.append("torch with CUDA is not installed: there is nothing beside the engines, and no rates")
    report.notes.append("torch runs under autocast to fp16, as its users do; its copies to and from the GPU are in it")
    report.finish(*(() if out is None else (out,)))


def golden_sample(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and outputs of a bundle's golden sample."""
    from edgevtx.bundle import Bundle

    golden = Bundle.open(path).golden()
    return {name: np.ascontiguousarray(array) for name, array in golden.inputs.items()}, golden.outputs


if __name__ == "__main__":
    main()
