"""ONNX Runtime. An engine is the optimised graph that it saves; opening it optimises nothing again.

Precision is in the graph, and the CPU provider multiplies in fp32 whatever the graph says of fp16, and not at all
in bf16; so it is read from the profile of one run. Threads spin for work by ONNX Runtime's default, which is left
as it is: it gives the lowest latency, at the price of a busy core between frames.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from edgevtx.errors import CompileError, InputError, OutputError, RuntimeUnavailableError
from edgevtx.runtimes import context, host, precision, sample
from edgevtx.runtimes.base import Arrays, BuildReport, Engine, EngineOptions, Probe, Runtime, TensorSpec

TARGET = "onnxruntime"
PRECISIONS = ("fp32",)
MODEL, WEIGHTS = "engine.onnx", "engine.bin"

CPU = "CPUExecutionProvider"
# these compile whole subgraphs, which ONNX Runtime cannot save: their engine is the bundle's own graph
_COMPILING = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "OpenVINOExecutionProvider")
# CUDA's default multiplies fp32 in tf32
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}

_DTYPES = {
    "float": "float32", "float16": "float16", "double": "float64", "uint8": "uint8", "int8": "int8", "bool": "bool",
    "int32": "int32", "int64": "int64", "uint16": "uint16", "int16": "int16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
_TYPES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64", "int8": "i8", "uint8": "i8"}

_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv")
_TRANSPOSED = ("ConvTranspose",)
_PRODUCTS = (
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "MatMulInteger", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulNBits", "GemmFloat8",
)  # fmt: skip
_ATTENTIONS = ("Attention", "MultiHeadAttention")


def probe() -> Probe:
    """Whether ONNX Runtime can be used here, its version and execution providers."""
    try:
        ort = _package()
    except RuntimeUnavailableError as error:
        return host.unavailable(TARGET, "onnxruntime", error)
    return Probe(TARGET, True, version=str(ort.__version__), devices=tuple(ort.get_available_providers()))


def fingerprint(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`. Threads are no part of it: the saved graph does not depend on them."""
    ort = _package()
    providers = _providers(ort, options)
    facts = {
        "onnxruntime": f"{ort.__version__} {ort.get_build_info() if hasattr(ort, 'get_build_info') else ''}".strip(),
        "providers": ",".join(providers),
        "precision": options.precision,
        "processor": host.processor(),
    }
    if providers != (CPU,) and (driver := host.nvidia_driver()):
        facts["driver"] = driver
    return facts


def place(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`: the fingerprint says it all."""
    return {}


def build(graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
    """Optimise `graph`, save it, and prove its precision by one profiled run; see `base.Backend`.

    Raises `OutputError` where the engine cannot be saved, such as on a full disk.
    """
    ort = _package()
    providers = _providers(ort, options)
    settings = _settings(ort, options, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if not set(providers) & set(_COMPILING):
        settings.optimized_model_filepath = str(folder / MODEL)
        # weights in a file of their own: no 2 GB limit, and opening maps it
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="profile-", dir=folder) as profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(profile) / "run")
        try:
            session = _session(ort, graph, settings, providers)
        except CompileError as error:
            _check_graph(ort, graph, options, providers)
            raise OutputError(
                f"ONNX Runtime opens {graph.name}, but cannot save its engine in {folder}: free space on that disk, or "
                "choose another folder"
            ) from error
        seconds = time.perf_counter() - started
        found = precision.shares(_work(_profile(session, graph)))
    precision.require(options.precision, found, target=TARGET, device=providers[0])
    return BuildReport(
        target=TARGET,
        target_version=str(ort.__version__),
        device=_device(providers),
        precision_share=found,
        compile_seconds=seconds,
        options={"providers": ",".join(providers), "graph_optimization_level": "ORT_ENABLE_ALL"},
    )


def open(graph: Path, folder: Path, options: EngineOptions) -> Engine:  # noqa: A001 -- the protocol's name
    """Open the saved graph; see `base.Backend`. One that ONNX Runtime refuses raises `CompileError`."""
    ort = _package()
    providers = _providers(ort, options)
    levels = ort.GraphOptimizationLevel
    if set(providers) & set(_COMPILING):
        session = _session(ort, graph, _settings(ort, options, levels.ORT_ENABLE_ALL), providers)
    else:
        session = _session(ort, folder / MODEL, _settings(ort, options, levels.ORT_DISABLE_ALL), providers)
    inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())
    names = [spec.name for spec in outputs]

    def execute(feeds: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:  # the bindings have no common base of their exceptions
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise InputError(f"ONNX Runtime cannot run this engine on {shapes}: {host.first_line(error)}") from error

    def new_runtime() -> Runtime:
        return context.Context(TARGET, inputs, outputs, execute)  # a session may be run by several threads at once

    return context.engine(TARGET, str(ort.__version__), _device(providers), new_runtime)


def _package() -> Any:
    ort = host.import_package("onnxruntime", target=TARGET, extra="onnxruntime")
    if not hasattr(ort, "InferenceSession"):  # what a half-removed onnxruntime-gpu beside onnxruntime leaves
        raise RuntimeUnavailableError(
            "runtime onnxruntime was asked for, but its package is hollow (two builds of it were installed over each "
            "other); uninstall every onnxruntime package and install one"
        )
    ort.set_default_logger_severity(3)  # errors alone: warnings about missing GPUs reach every user otherwise
    return ort


def _providers(ort: Any, options: EngineOptions) -> tuple[str, ...]:
    """The execution providers to use, checked for presence, the precision and the device."""
    if options.device not in ("CPU", "AUTO") and not options.providers:
        raise RuntimeUnavailableError(
            f"ONNX Runtime chooses its device by execution providers, but device {options.device} was asked for; "
            f"pass providers=, of {', '.join(ort.get_available_providers())}"
        )
    providers = options.providers or (CPU,)
    present = ort.get_available_providers()
    if missing := [name for name in providers if name not in present]:
        raise RuntimeUnavailableError(
            f"ONNX Runtime has no execution provider {', '.join(missing)} here, only {', '.join(present)}; "
            "choose of these, or install the build of ONNX Runtime that has it"
        )
    if options.precision not in PRECISIONS:
        raise RuntimeUnavailableError(
            f"ONNX Runtime is offered in {', '.join(PRECISIONS)} (its CPU provider multiplies in nothing else), but "
            f"{options.precision} was asked for; choose precision fp32 or another runtime"
        )
    return providers


def _device(providers: tuple[str, ...]) -> str:
    return providers[0].removesuffix("ExecutionProvider")


def _settings(ort: Any, options: EngineOptions, level: Any) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = level
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    return settings


def _session(ort: Any, model: Path, settings: Any, providers: tuple[str, ...]) -> Any:
    asked = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in providers]
    try:
        session = ort.InferenceSession(str(model), settings, providers=asked)
    except Exception as error:  # the bindings have no common base of their exceptions
        raise CompileError(
            f"ONNX Runtime {ort.__version__} cannot open {model.name}: {host.first_line(error)}; "
            "compile or export the bundle again, or choose another runtime"
        ) from error
    # a provider whose libraries are missing is left out with a line on the log, and the CPU computes instead
    if left := [name for name in providers if name not in session.get_providers()]:
        raise RuntimeUnavailableError(
            f"execution provider {', '.join(left)} is built in but does not start here (ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}); install its driver and libraries, or choose another provider"
        )
    session.disable_fallback()
    return session


def _check_graph(ort: Any, graph: Path, options: EngineOptions, providers: tuple[str, ...]) -> None:
    """Raise `CompileError` where `graph` cannot be opened, even without saving anything.

    ONNX Runtime's own words are the same for a graph that it refuses and a disk that is full.
    """
    _session(ort, graph, _settings(ort, options, ort.GraphOptimizationLevel.ORT_ENABLE_ALL), providers)


def _specs(nodes: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        specs.append(TensorSpec(node.name, shape, _DTYPES.get(kind, kind)))
    return tuple(specs)


def _profile(session: Any, graph: Path) -> list[dict[str, Any]]:
    """The operations of one run, as ONNX Runtime's profile states them."""
    try:
        session.run(None, sample.inputs(graph, _specs(session.get_inputs())))
    except Exception as error:  # the bindings have no common base of their exceptions
        raise CompileError(
            f"ONNX Runtime built {graph.name}, but cannot run it once to read its precision: {host.first_line(error)}"
        ) from error
    path = Path(session.end_profiling())
    try:
        events = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ONNX Runtime does not say that it could not write all of it
        raise OutputError(
            f"ONNX Runtime's profile of {graph.name} in {path.parent} cannot be read: {host.first_line(error)}; free "
            "space on that disk, or choose another folder"
        ) from error
    return [event["args"] for event in events if event.get("name", "").endswith("_kernel_time")]


def _work(operations: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """(type, multiply-adds) of every convolution, matrix product and attention that was run."""
    for operation in operations:
        inputs = [next(iter(item.items())) for item in operation.get("input_type_shape", []) if item]
        outputs = [shape for item in operation.get("output_type_shape", []) for shape in item.values()]
        if inputs and outputs:
            amount = _operation_work(operation["op_name"], [shape for _, shape in inputs], outputs[0])
            if amount:
                yield _TYPES.get(inputs[0][0], inputs[0][0]), amount


def _operation_work(name: str, inputs: list[list[int]], out: list[int]) -> int:
    # weights that were packed for the processor are not listed among the inputs
    if name in _PRODUCTS:
        return precision.product_work(inputs[0], out)
    weights = next((shape for shape in inputs[1:] if len(shape) == len(inputs[0])), None)
    if name in _CONVOLUTIONS:
        return precision.convolution_work(weights or [1, inputs[0][1]], out)
    if name in _TRANSPOSED:
        return precision.convolution_work(weights or [1, out[1]], inputs[0])
    if name in _ATTENTIONS:
        key = weights or inputs[0]
        return precision.attention_work(inputs[0], prod(key) * inputs[0][-2] // max(prod(inputs[0]), 1))
    return 0
