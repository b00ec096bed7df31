"""OpenVINO. An engine is the blob that `CompiledModel.export_model` writes; opening it compiles nothing.

Precision is a property of OpenVINO's (`INFERENCE_PRECISION_HINT`), whose default is bf16 on processors that have
it, so it is always set, and read back from the operations that the opened blob executes.

Its CPU plugin merges few element-wise operations where a dimension is open: SAM's decoder takes a fifth to a third
longer. A small engine that is open in its batch therefore has a second form, fixed to the golden sample's shapes, which
are the usual ones.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgevtx.errors import CompileError, InputError, RuntimeUnavailableError
from edgevtx.runtimes import context, host, plan, precision, sample
from edgevtx.runtimes.base import Array, Arrays, BuildReport, Engine, EngineOptions, Probe, Runtime, TensorSpec

TARGET = "openvino"
PRECISIONS = ("fp32", "bf16")
BLOB, USUAL = "engine.blob", "engine.usual.blob"

MOST_TWICE = 64 << 20
"""Bytes of the largest blob that gets a second form: its weights are stored, and in memory, twice."""

# precision -> (OpenVINO's name of the type, the capability that a device must state for it)
_TYPES = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16")}

# a dynamic dimension's size when operations are weighed; all of a graph's share it, so it nearly cancels out
_NOMINAL = 64

_PRODUCTS = ("matmul", "fullyconnected", "fully_connected", "gemm")


def probe() -> Probe:
    """Whether OpenVINO can be used here, its version and devices."""
    try:
        openvino = _package()
        devices = tuple(_core(openvino).available_devices)
    except RuntimeUnavailableError as error:
        return host.unavailable(TARGET, "openvino", error)
    return Probe(name=TARGET, available=True, version=_version(openvino), devices=devices)


def fingerprint(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`. Threads are no part of it: the blob is scheduled when it is opened."""
    openvino = _package()
    core = _core(openvino)
    device = _device(core, options)
    facts = {"openvino": str(openvino.get_version()), "device": device, "precision": options.precision}
    facts["device name"] = str(core.get_property(device, "FULL_DEVICE_NAME"))
    if device.startswith("CPU"):
        facts["processor"] = host.processor()
    else:
        for name in ("GPU_UARCH_VERSION", "NPU_DRIVER_VERSION", "NPU_COMPILER_VERSION"):
            if name in core.get_property(device, "SUPPORTED_PROPERTIES"):
                facts[name] = str(core.get_property(device, name))
    return facts


def place(options: EngineOptions) -> dict[str, str]:
    """See `base.Backend`: the fingerprint says it all."""
    return {}


def build(graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
    """Compile `graph` into a blob, open the blob again and prove its precision; see `base.Backend`.

    It is the opened blob that is read, because opening sets the types anew: a blob compiled in f32 and opened
    with the hint bf16 computes in bf16.
    """
    openvino = _package()
    core = _core(openvino)
    device, config = _device(core, options), _config(core, options)
    started = time.perf_counter()
    try:
        model = core.read_model(str(graph))
        _compile(core, model, device, config, folder / BLOB)
        shapes = _usual_shapes(graph, _specs(model.inputs)) if device.startswith("CPU") else []
        if shapes and (folder / BLOB).stat().st_size <= MOST_TWICE:
            model.reshape(dict(zip(model.inputs, shapes, strict=True)))
            _compile(core, model, device, config, folder / USUAL)
    except RuntimeError as error:
        raise CompileError(
            f"OpenVINO {_version(openvino)} cannot compile {graph.name} for {device} in {options.precision}: "
            f"{host.first_line(error)}; try another precision, device or runtime"
        ) from error
    for blob in _blobs(folder):
        compiled, _keep = _import(openvino, core, blob, device, config)
        found = precision.shares(_work(compiled.get_runtime_model()))
        precision.require(options.precision, found, target=TARGET, device=device)
    seconds = time.perf_counter() - started
    return BuildReport(
        target=TARGET,
        target_version=_version(openvino),
        device=device,
        precision_share=found,
        compile_seconds=seconds,
        options={key: str(value) for key, value in config.items() if key != "INFERENCE_NUM_THREADS"},
    )


def open(graph: Path, folder: Path, options: EngineOptions) -> Engine:  # noqa: A001 -- the protocol's name
    """Open the blob; see `base.Backend`. A blob that OpenVINO refuses raises `CompileError`."""
    openvino = _package()
    core = _core(openvino)
    device = _device(core, options)
    config = _config(core, options)
    *fixed, (model, keep) = [_import(openvino, core, blob, device, config) for blob in _blobs(folder)]
    inputs, outputs = _specs(model.inputs), _specs(model.outputs)

    def new_runtime() -> Runtime:
        infer = _infer(model, keep)
        usual = tuple(_infer(*form) for form in fixed)
        shapes = [tuple(spec.shape for spec in _specs(form.inputs)) for form, _ in fixed]

        def execute(feeds: Arrays) -> Arrays:
            values = [feeds[spec.name] for spec in inputs]
            call = usual[0] if usual and shapes[0] == tuple(value.shape for value in values) else infer
            try:
                found = call(values)
            except RuntimeError as error:
                given = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
                raise InputError(f"OpenVINO cannot run this engine on {given}: {host.first_line(error)}") from error
            return {spec.name: found[index] for index, spec in enumerate(outputs)}

        return context.Context(TARGET, inputs, outputs, execute)

    return context.engine(TARGET, _version(openvino), device, new_runtime, two_forms=bool(fixed))


def _infer(model: Any, keep: Any) -> Callable[[list[Array]], Any]:
    """A request's call. `_keep` is the mapped blob, whose weights the engine reads in place: it must live as long."""
    infer = model.create_infer_request().infer

    def call(values: list[Array], _keep: Any = keep) -> Any:
        return infer(values, share_inputs=True, share_outputs=False)

    return call


def _compile(core: Any, model: Any, device: str, config: dict[str, Any], blob: Path) -> None:
    stream = io.BytesIO()
    core.compile_model(model, device, config).export_model(stream)
    blob.write_bytes(stream.getbuffer())


def _blobs(folder: Path) -> list[Path]:
    """The engine's forms, the one that takes all shapes last."""
    return [path for path in (folder / USUAL, folder / BLOB) if path.name == BLOB or path.is_file()]


def _usual_shapes(graph: Path, specs: tuple[TensorSpec, ...]) -> list[tuple[int, ...]]:
    """The golden sample's shapes for a graph whose open inputs are all open in their batch; empty for others.

    Of those two rows at once show that the form that takes all shapes is right as well; see `edgevtx.selftest`.
    """
    opened = [spec for spec in specs if None in spec.shape]
    if not opened or any(spec.shape[0] is not None for spec in opened):
        return []
    golden = sample.golden(graph, "input", plan.origin(graph).part)
    if not all(spec.name in golden and spec.accepts(golden[spec.name]) for spec in specs):
        return []
    return [golden[spec.name].shape for spec in specs]


def _package() -> Any:
    return host.import_package("openvino", target=TARGET, extra="openvino")


_cores: dict[int, Any] = {}


def _core(openvino: Any) -> Any:
    # one per process: making a Core reads the plugins' libraries anew; and none is inherited through a fork
    pid = os.getpid()
    if pid not in _cores:
        try:
            _cores[pid] = openvino.Core()
        except RuntimeError as error:
            raise RuntimeUnavailableError(
                f"OpenVINO cannot start ({host.first_line(error)}); install it again with: "
                f"{host.install_command('openvino', again=True)}"
            ) from error
    return _cores[pid]


def _version(openvino: Any) -> str:
    return str(openvino.get_version()).split("-")[0]


def _device(core: Any, options: EngineOptions) -> str:
    """The device to compile for, checked for presence and precision.

    AUTO is settled here, in the order of OpenVINO's own AUTO (GPU, CPU): a blob belongs to one device.
    """
    present = list(core.available_devices)
    device = options.device
    if device == "AUTO":
        device = "GPU" if any(name.startswith("GPU") for name in present) else "CPU"
    if not any(name == device or name.startswith(f"{device}.") for name in present):
        raise RuntimeUnavailableError(
            f"OpenVINO has no device {device} here, only {', '.join(present) or 'none'}; "
            "choose one of these, or install the device's driver"
        )
    if options.precision not in _TYPES:
        raise RuntimeUnavailableError(
            f"OpenVINO is offered in {', '.join(PRECISIONS)}, but {options.precision} was asked for"
        )
    capability = _TYPES[options.precision][1]
    stated = list(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    if capability not in stated:
        raise RuntimeUnavailableError(
            f"device {device} ({core.get_property(device, 'FULL_DEVICE_NAME')}) cannot compute in "
            f"{options.precision}: it states {', '.join(stated)}; choose another precision"
        )
    return device


def _config(core: Any, options: EngineOptions) -> dict[str, Any]:
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _TYPES[options.precision][0],
    }
    if options.threads is not None:
        config["INFERENCE_NUM_THREADS"] = options.threads
    return config


def _import(openvino: Any, core: Any, blob: Path, device: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The compiled model in a blob, and what must be kept alive beside it: the file, mapped and read in place."""
    try:
        mapped = np.memmap(blob, dtype=np.uint8, mode="c")  # copy-on-write: the tensor wants it writeable
        tensor = openvino.Tensor(mapped, shared_memory=True)
        try:
            return core.import_model(tensor, device, config), (tensor, mapped)
        except TypeError:  # before 2025.3 it takes bytes alone
            return core.import_model(blob.read_bytes(), device, config), None
    except (OSError, ValueError, RuntimeError) as error:
        raise CompileError(
            f"OpenVINO cannot open its engine {blob}: {host.first_line(error)}; compile the bundle again"
        ) from error


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for port in ports:
        # a tensor may have several names after optimisation; the node's is the graph's own
        name = port.get_node().get_friendly_name().rsplit("/sink_port_", 1)[0]
        shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
        specs.append(TensorSpec(name, shape, np.dtype(port.get_element_type().to_dtype()).name))
    return tuple(specs)


def _work(runtime_model: Any) -> Iterator[tuple[str, int]]:
    """(type, multiply-adds) of every executed convolution, matrix product and attention."""
    for node in runtime_model.get_ordered_ops():
        facts = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        amount = _node_work(node, facts)
        if amount:
            yield facts.get("runtimePrecision", "unknown"), amount


def _node_work(node: Any, facts: dict[str, str]) -> int:
    kind = facts.get("layerType", "").lower()
    inputs = [_shape(port) for port in node.inputs()]
    out = _shape(node.output(0)) if node.get_output_size() else []
    if len(inputs) < 2:
        return 0
    if kind in ("convolution", "groupconvolution"):
        grouped = len(inputs[1]) > len(out)  # (groups, O, I, kh, kw)
        return precision.convolution_work(inputs[1][1:] if grouped else inputs[1], out)
    if kind in ("deconvolution", "groupdeconvolution"):  # weights (I, O, kh, kw)
        grouped = len(inputs[1]) > len(out)
        return precision.convolution_work(inputs[1][1:] if grouped else inputs[1], inputs[0])
    if kind in _PRODUCTS:
        return precision.product_work(inputs[0], out)
    # attention may come as one operation, or as a generated kernel that says which operations it swallowed
    swallowed = facts.get("originalLayersNames", "").lower()
    fused = kind == "subgraph" and "softmax" in swallowed
    if len(inputs) >= 3 and (fused or "scaleddotproduct" in kind.replace("_", "") or kind in ("mha", "scaledattn")):
        # its layout is not stated: the keys are taken as the longest dimension but the batch
        return precision.attention_work(inputs[0], max(inputs[1][1:], default=0))
    return 0


def _shape(port: Any) -> list[int]:
    sizes = list(port.get_partial_shape())
    return [size.get_length() if size.is_static else (_NOMINAL if axis else 1) for axis, size in enumerate(sizes)]
