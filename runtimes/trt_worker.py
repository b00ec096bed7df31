"""The compiling itself, in a process of its own: `edgevtx.runtimes.trt_build` starts it.

NVIDIA's compilers are known to crash on some graphs, and to be killed where memory runs out; that must not take a
camera's process with it. What is measured here is the compiler's memory alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from edgevtx import cache, disk
from edgevtx.archive import digest_file
from edgevtx.errors import CompileError, EdgevtxError, OutputError
from edgevtx.runtimes import host, precision, sample, trt_layers, trt_memory
from edgevtx.runtimes.base import EngineOptions, PlanOptions
from edgevtx.runtimes.plan import PLAN, Origin, PlanRecord, Profile, encode_record, origin, record_path
from edgevtx.runtimes.trt_build import advice
from edgevtx.runtimes.trt_log import Messages, make_logger, tidy
from edgevtx.runtimes.trt_profiles import OpenInput, profiles

_SHOWN = 5  # errors in one message

_MIB = 1 << 20


def main() -> None:
    """Read a request from standard input, compile, and answer in lines of JSON: "log", "progress", "error"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this one stops it
    request = json.loads(sys.stdin.read())
    asked = request["options"]
    options = EngineOptions(**{**asked, "plan": msgspec.convert(asked["plan"], PlanOptions)})
    try:
        graph, folder = Path(request["graph"]), Path(request["folder"])
        compile_plan(request["package"], graph, folder, options, request["device"], _tell)
    except EdgevtxError as error:
        _tell("error", [type(error).__name__, str(error)])


def _tell(kind: str, value: Any) -> None:
    try:
        sys.stdout.write(json.dumps({kind: value}) + "\n")  # in one piece: TensorRT's own threads tell as well
        sys.stdout.flush()
    except BrokenPipeError:  # nobody waits for the plan any more
        os._exit(1)


def compile_plan(
    package: str,
    graph: Path,
    folder: Path,
    options: EngineOptions,
    device: str,
    tell: Callable[[str, Any], None],
) -> None:
    """Write the plan and its record; see `edgevtx.runtimes.trt_build.build_plan`, which says what is raised."""
    target = package.replace("_", "-")
    trt = host.import_package(package, target=target, extra=target)
    source, said, started = origin(graph), Messages(), time.perf_counter()

    def refuse(errors: list[str]) -> NoReturn:
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise CompileError(
            f"{target} {trt.__version__} cannot compile {graph.name} for {options.gpu} in {options.precision}: "
            f"{'; '.join(errors[:_SHOWN]) or 'it gave no reason'}{more}. {advice(options.plan)}"
        )

    logger = make_logger(trt, said, lambda text: tell("log", text))
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        refuse([explain(parser.get_error(index)) for index in range(parser.num_errors)])
    layers = trt_layers.layers(trt, network)
    share = trt_layers.shares(layers)
    least = precision.LEAST_SHARES[options.precision]
    precision.require(options.precision, share, target=target, device=options.gpu, least=least)
    config = builder.create_builder_config()
    ranges = _profiles(builder, config, network, graph, source, options.plan)
    workspace = _configure(trt, config, options)
    timing = _TimingCache(trt, target, config, options.gpu)
    monitor = _monitor(trt, lambda text: tell("progress", text))
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        refuse(said.errors)
    timing.keep()
    data = memoryview(plan)
    record = PlanRecord(
        name=source.name,
        part=source.part,
        bundle=source.digest,
        graph=graph.name,
        graph_sha256=digest_file(graph),
        target=target,
        target_version=trt.__version__,
        gpu=options.gpu,
        device=device,
        precision=options.precision,
        precision_share=share,
        inputs=trt_layers.specs(network.get_input(index) for index in range(network.num_inputs)),
        outputs=trt_layers.specs(network.get_output(index) for index in range(network.num_outputs)),
        profiles=ranges,
        layers=layers,
        size=data.nbytes,
        sha256=sha256(data).hexdigest(),
        compile_seconds=round(time.perf_counter() - started, 3),
        asked=options.plan,
        workspace_mb=workspace,
        memory_mb=options.memory_mb,
        builder_gpu_mb=said.gpu_mb,
        warnings=tuple(said.warnings),
    )
    try:
        (folder / PLAN).write_bytes(data)
        record_path(folder / PLAN).write_bytes(encode_record(record))
    except OSError as error:
        raise OutputError(f"cannot write the plan {folder / PLAN}: {disk.explain(error)}") from error


def explain(error: Any) -> str:
    """A `ParserError` in words: "node NAME (OPERATOR) in module PATH: what is wrong". Names are the graph's."""
    name, operator = error.node_name(), error.node_operator()
    where = f"node {name} ({operator})" if name else "the graph"
    module = name.partition("/")[0] if "/" in name else ""  # a rewrite's nodes are MODULE/OPERATOR/WHAT
    kind = error.code().name.lower().replace("_", " ")
    said = tidy(error.desc())
    what = kind if said in ("", "false") else f"{kind}, {said}"  # "false" is a check that has no words
    return f"{where}{f' in module {module}' if module else ''}: {what}"


# -- the builder's settings ------------------------------------------------------------------------------------


def _flags(trt: Any) -> int:
    # TensorRT 10 must be told; what is to come knows nothing else
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(trt: Any, config: Any, options: EngineOptions) -> int | None:
    """Set precision, memory and architecture; returns the limit of the workspace in MiB, None for the builder's own."""
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector of other tools
    limit = options.plan.workspace_mb or trt_memory.unified_workspace_mb()
    if limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit * _MIB)
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, options.gpu.upper()), 0)
    return limit


def _profiles(
    builder: Any, config: Any, network: Any, graph: Path, source: Origin, asked: PlanOptions
) -> tuple[Profile, ...]:
    """Add the profiles that a graph of dynamic shapes needs; none where all are static."""
    opened = [
        OpenInput(spec.name, spec.shape, tuple(item.get_dimension_name(axis) for axis in range(len(spec.shape))))
        for item in (network.get_input(index) for index in range(network.num_inputs))
        for spec in trt_layers.specs([item])
    ]
    found = profiles(opened, sample.golden(graph, "input", source.part), source.size, asked)
    for ranges in found:
        made = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            made.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(made) < 0:
            raise CompileError(
                f"the shapes {ranges} are no optimisation profile of {graph.name}; ask for other frames or another "
                "batch, or export the bundle again"
            )
    return found


class _TimingCache:
    """What TensorRT measured of its kernels, kept for the next build on this device. TensorRT-RTX measures nothing."""

    def __init__(self, trt: Any, target: str, config: Any, gpu: str) -> None:
        self._config = config if target == "tensorrt" else None
        self._subject = f"timing cache of {target} {trt.__version__} on {gpu}"
        if self._config is not None:
            earlier = config.create_timing_cache(cache.recall(self._subject) or b"")
            # of another GPU of that architecture, or damaged: measured anew, rather than never again
            if earlier is None or config.set_timing_cache(earlier, False) is False:
                config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self) -> None:
        """Keep what was added."""
        measured = self._config.get_timing_cache() if self._config is not None else None
        if measured is not None:
            cache.remember(self._subject, bytes(measured.serialize()))


def _monitor(trt: Any, tell: Callable[[str], None]) -> Any:
    """An `IProgressMonitor` that tells the steps of the whole build, and the phases within them."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._whole, self._place = "", ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._whole, self._steps = phase_name, num_steps
                self.step_complete(phase_name, -1)
            else:
                tell(f"{self._place}: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._whole:
                self._place = f"{phase_name} {step + 1}/{self._steps}"
                tell(self._place)
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
