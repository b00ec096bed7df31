"""Compile a graph into a TensorRT plan: `tensorrt` on its own device, `tensorrt-rtx` for any architecture it knows.

Networks are strongly typed: the graph says what is computed in which type, and TF32 is off, so that fp32 is fp32. All
that a plan's users ask is recorded here, since a plan can be opened on its own GPU alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgevtx import cache, disk
from edgevtx.archive import digest_file
from edgevtx.errors import CompileError, OutputError, RuntimeUnavailableError
from edgevtx.runtimes import host, precision, sample, trt_layers, trt_log
from edgevtx.runtimes.base import BuildReport, EngineOptions
from edgevtx.runtimes.plan import PLAN, Origin, PlanRecord, Profile, encode_record, origin, record_path
from edgevtx.runtimes.trt_profiles import OpenInput, profile

log = logging.getLogger(__name__)

_SHOWN = 5  # errors in one message
_MIB = 1 << 20

# Ampere is the first architecture that multiplies in bf16
_LEAST_SM = {"bf16": 80}

_TEGRA = Path("/etc/nv_tegra_release")
_MEMORY = Path("/proc/meminfo")


def build_plan(package: str, graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
    """Compile `graph` (its weights file beside it) into `folder`: the plan and its record, see `edgevtx.runtimes.plan`.

    `package` is "tensorrt" or "tensorrt_rtx"; `options.gpu` the architecture, which for `tensorrt` must be that of the
    device. Raises `RuntimeUnavailableError` for a missing package and an architecture that it does not compile for,
    `CompileError` with the graph's node and module where the graph is refused or another precision came out, and
    `OutputError` where the folder cannot be written.
    """
    target = package.replace("_", "-")
    trt = host.import_package(package, target=target, extra=target)
    source, started = origin(graph), time.perf_counter()
    check_gpu(trt, target, options)
    with trt_log.collect() as said:
        logger = trt_log.logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph)):
            raise CompileError(_refusal(target, trt, graph, options, _parser_errors(parser)))
        layers = trt_layers.layers(trt, network)
        share = trt_layers.shares(layers)
        precision.require(options.precision, share, target=target, device=options.gpu)
        config = builder.create_builder_config()
        profiles = _profiles(builder, config, network, graph, source)
        workspace = _configure(trt, target, config, options)
        timing = _TimingCache(trt, target, config, options.gpu)
        monitor = _monitor(trt, options.progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.interrupted is not None:
            raise monitor.interrupted
        if plan is None:
            raise CompileError(_refusal(target, trt, graph, options, said.errors))
        timing.keep()
    seconds = time.perf_counter() - started
    tensors = [[get(i) for i in range(n)] for get, n in _ends(network)]
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
        precision=options.precision,
        precision_share=share,
        inputs=trt_layers.specs(tensors[0]),
        outputs=trt_layers.specs(tensors[1]),
        profiles=profiles,
        layers=layers,
        size=data.nbytes,
        sha256=sha256(data).hexdigest(),
        compile_seconds=round(seconds, 3),
        workspace_mb=workspace,
        builder_memory_mb=said.memory_mb,
        warnings=tuple(said.warnings),
    )
    _write(folder / PLAN, data, record)
    log.info("%s %s: %d warnings, builder memory %d MB", target, graph.name, len(said.warnings), said.memory_mb)
    return BuildReport(
        target=target,
        target_version=trt.__version__,
        device=options.gpu,
        precision_share=share,
        compile_seconds=seconds,
        options={"workspace_mb": str(workspace or ""), "builder_memory_mb": str(said.memory_mb)},
        warnings=tuple(said.warnings),
    )


def architectures(trt: Any) -> tuple[str, ...]:
    """The architectures that a package compiles for without having the device ("sm86", ...); none for TensorRT."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return tuple(name.lower() for name in known if name.startswith("SM"))


def check_gpu(trt: Any, target: str, options: EngineOptions) -> None:
    """Raise `RuntimeUnavailableError` unless the package compiles for `options.gpu`, and that has the precision."""
    known = architectures(trt)
    if known and options.gpu not in known:
        raise RuntimeUnavailableError(
            f"{target} {trt.__version__} compiles for {', '.join(known)}, but {options.gpu or 'no GPU'} was asked for; "
            "choose of these, or for a Jetson compile with --target tensorrt on the device itself"
        )
    least = _LEAST_SM.get(options.precision, 0)
    if int(options.gpu.removeprefix("sm") or 0) < least:
        raise RuntimeUnavailableError(
            f"{options.gpu} cannot multiply in {options.precision}, sm{least} and newer can; choose another precision"
        )


# -- the builder's settings ------------------------------------------------------------------------------------


def _flags(trt: Any) -> int:
    # TensorRT 10 must be told; what is to come knows nothing else
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(trt: Any, target: str, config: Any, options: EngineOptions) -> int | None:
    """Set precision, memory and architecture; returns the limit of the workspace in MiB, None for the builder's own."""
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
    limit = options.workspace_mb or _unified_memory_mb()
    if limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit * _MIB)
    if options.gpu in architectures(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, options.gpu.upper()), 0)
    return limit


def _unified_memory_mb() -> int | None:
    """Half of a Jetson's free memory, which host and GPU share and the builder would take all of; None elsewhere."""
    if not _TEGRA.is_file():
        return None
    found = [line.split()[1] for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(found[0]) // 2048 if found else None


def _profiles(builder: Any, config: Any, network: Any, graph: Path, source: Origin) -> tuple[Profile, ...]:
    """Add the profile that a graph of dynamic shapes needs; none where all are static."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    opened = [
        OpenInput(
            name=item.name,
            shape=tuple(None if size < 0 else size for size in item.shape),
            names=tuple(item.get_dimension_name(axis) for axis in range(len(item.shape))),
        )
        for item in inputs
    ]
    ranges = profile(opened, sample.golden(graph, "input", source.part), source.size)
    if not ranges:
        return ()
    made = builder.create_optimization_profile()
    for name, shapes in ranges.items():
        made.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(made) < 0:
        raise CompileError(f"the shapes {ranges} are no optimisation profile of {graph.name}; export the bundle again")
    return (ranges,)


class _TimingCache:
    """What TensorRT measured of its kernels, kept for the next build on this device. TensorRT-RTX measures nothing."""

    def __init__(self, trt: Any, target: str, config: Any, gpu: str) -> None:
        self._config = config if target == "tensorrt" else None
        self._subject = f"timing cache of {target} {trt.__version__} on {gpu}"
        if self._config is not None:
            config.set_timing_cache(config.create_timing_cache(cache.recall(self._subject) or b""), False)

    def keep(self) -> None:
        """Keep what was added."""
        if self._config is not None:
            cache.remember(self._subject, bytes(self._config.get_timing_cache().serialize()))


def _monitor(trt: Any, progress: Callable[[str], None] | None) -> Any:
    """An `IProgressMonitor` that tells `progress` and the log; Ctrl-C within it stops the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        interrupted: BaseException | None = None

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            try:
                text = f"compile: {phase} {done}/{self._steps.get(phase, done)}"
                log.debug(text)
                if progress is not None:
                    progress(text)
            except BaseException as error:  # the bindings would print it and go on
                self.interrupted = error

    return Monitor()


# -- what the compiler refuses ---------------------------------------------------------------------------------


def _refusal(target: str, trt: Any, graph: Path, options: EngineOptions, errors: list[str]) -> str:
    more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    return (
        f"{target} {trt.__version__} cannot compile {graph.name} for {options.gpu} in {options.precision}: "
        f"{'; '.join(errors[:_SHOWN]) or 'it gave no reason'}{more}. Export the bundle again for this version, or "
        "choose another precision or runtime"
    )


def _parser_errors(parser: Any) -> list[str]:
    """What the parser refused, each with the graph's node and the module that it comes from."""
    return [explain(parser.get_error(index)) for index in range(parser.num_errors)]


def explain(error: Any) -> str:
    """A `ParserError` in words: "node NAME (OPERATOR) in module PATH: what is wrong". Names are the graph's."""
    name, operator = error.node_name(), error.node_operator()
    where = f"node {name} ({operator})" if name else "the graph"
    module = name.rpartition("/")[0]
    return f"{where}{f' in module {module}' if module else ''}: {' '.join(error.desc().split())}"


# -- what comes out --------------------------------------------------------------------------------------------


def _ends(network: Any) -> tuple[tuple[Callable[[int], Any], int], ...]:
    return (network.get_input, network.num_inputs), (network.get_output, network.num_outputs)


def _write(path: Path, data: memoryview, record: PlanRecord) -> None:
    try:
        path.write_bytes(data)
        record_path(path).write_bytes(encode_record(record))
    except OSError as error:
        raise OutputError(f"cannot write the plan {path}: {disk.explain(error)}") from error
