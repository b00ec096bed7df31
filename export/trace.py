"""torch module -> ONNX graph: the one place that knows PyTorch's exporter.

The graph that leaves here is target-neutral: opset 23, attention as one `Attention` node, constants folded
(position tables, masks of static size), names after the module that made each node. What a target needs beside
that is `edgevtx.export.rewrite`'s work.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer

from edgevtx.errors import ExportError
from edgevtx.export.onnx_file import ImportedGraph
from edgevtx.export.quiet import quiet
from edgevtx.manifest import TensorInfo

if TYPE_CHECKING:
    from edgevtx.export.recipe import Traceable, TraceablePart

OPSET = 23  # the first with Attention: earlier ones spell it out with IsNaN guards that no compiler fuses
# Folding stops above this many elements, so that a dynamic graph never gets a table of gigabytes. The largest
# tables that a static graph needs are attention masks: DETR's 1333 x 1333 input has 1764 tokens, 3.1 M pairs.
FOLD_LIMIT = 1 << 24


def trace_all(traceable: Traceable) -> dict[str, ir.Model]:
    """Trace every network of a bundle: "" takes frames, then the parts by name; see `trace`."""
    models = {"": trace(traceable)}
    if traceable.parts:
        with torch.inference_mode():
            values = traceable.module(*example_inputs(traceable))
        outputs = {info.name: value.numpy() for info, value in zip(traceable.outputs, values, strict=True)}
    for name, part in traceable.parts.items():
        # the largest: torch.export takes a dimension of one for a constant
        largest = max(part.examples(outputs), key=lambda feeds: sum(array.size for array in feeds.values()))
        example = tuple(torch.from_numpy(largest[info.name]) for info in part.inputs)
        models[name] = _trace(f"{traceable.family} {name}", part, example)
    return models


def trace(traceable: Traceable) -> ir.Model:
    """Trace a family's module into an ONNX model (opset 23) with the inputs and outputs that it names.

    Weights stay the module's own tensors (no copy, no 2 GB limit). Dimensions named in `traceable.dynamic` are
    symbolic, all others fixed at `trace_size`. Equal modules give equal models. An imported graph is not traced: it
    is simplified, named and checked alone.
    Raises `ExportError` naming the module or the operator that could not be traced.
    """
    return _trace(traceable.family, traceable, example_inputs(traceable))


def _trace(who: str, network: Traceable | TraceablePart, example: tuple[torch.Tensor, ...]) -> ir.Model:
    network.module.eval()  # a wrapper left in train mode would put the wrapped model back into it
    with quiet(), torch.no_grad():
        if isinstance(network.module, ImportedGraph):
            model = network.module.graph.clone()
            parameters = set(model.graph.initializers)
        else:
            program = _capture(who, network, example)
            model = _convert(who, network, program)
            parameters = set(program.state_dict)
        simplify(model)
    _name(model, parameters)
    _declare(who, model, network)
    return model


def simplify(model: ir.Model) -> None:
    """Fold constants and drop redundant nodes, in place, with onnxscript's optimizer."""
    # Constants first: the rewriter's matching is what costs, and folding removes three nodes in four.
    optimizer.fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)


# -- torch.export ----------------------------------------------------------------------------------------------


def example_inputs(traceable: Traceable) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with: grey frames or clips of `trace_size`, two where the batch is dynamic, all of them valid."""
    height, width = traceable.trace_size
    batch = 2 if 0 in traceable.dynamic.get("pixels", {}) else traceable.inputs[0].shape[0] or 1
    times = [size for size in traceable.inputs[0].shape[1:-3] if size is not None]  # a clip's
    values = {
        "pixels": torch.full((batch, *times, height, width, 3), 128, dtype=torch.uint8),
        "valid_size": torch.tensor([[height, width]] * batch, dtype=torch.int32),
    }
    return tuple(values[info.name] for info in traceable.inputs)


def _capture(
    who: str, network: Traceable | TraceablePart, example: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    # DYNAMIC and not a named Dim: a name also promises every size from 0 up, which no strided network keeps
    shapes = tuple(
        dict.fromkeys(network.dynamic.get(info.name, {}), torch.export.Dim.DYNAMIC) for info in network.inputs
    )
    try:
        return torch.export.export(network.module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a model's Python does under tracing can surface here
        where = _failing_module(network.module, error)
        raise ExportError(
            f"{who}: tracing failed{where}: {_first_line(error)}; "
            "this architecture or option is not traceable with this version of transformers and torch"
        ) from error


def _failing_module(module: torch.nn.Module, error: BaseException) -> str:
    """` in model.encoder (Encoder)`: the innermost module on the error's traceback, or nothing."""
    names = {id(child): name for name, child in module.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if id(owner) in names:
            found = f" in {names[id(owner)] or 'the outermost module'} ({type(owner).__name__})"
        step = step.tb_next
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


# -- torch.onnx ------------------------------------------------------------------------------------------------


def _convert(who: str, network: Traceable | TraceablePart, program: torch.export.ExportedProgram) -> ir.Model:
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[info.name for info in network.inputs],
            output_names=[info.name for info in network.outputs],
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # the exporter's own errors share no public base
        causes = _causes(error)
        raise ExportError(
            f"{who}: torch {torch.__version__} cannot express this model in ONNX opset {OPSET}: "
            f"{_first_line(causes[-1])}"
        ) from error
    assert converted is not None
    model: ir.Model = converted.model
    return model


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while found[-1].__cause__ is not None:
        found.append(found[-1].__cause__)
    return found


# -- names, shapes, metadata -----------------------------------------------------------------------------------


def _scope(node: ir.Node) -> str:
    """The path of the module that made a node: "model.encoder.layer.3.attention"."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 else ""


def _name(model: ir.Model, parameters: set[str]) -> None:
    """Name nodes, values and constants after modules, and drop the exporter's metadata (it holds file paths)."""
    graph = model.graph
    fixed = {id(value) for value in (*graph.inputs, *graph.outputs)}
    seen: Counter[str] = Counter()
    constants = [value for value in graph.initializers.values() if value.name not in parameters]
    for node in graph:
        base = f"{_scope(node)}/{node.op_type}".lstrip("/")
        node.name = f"{base}_{seen[base]}" if seen[base] else base
        seen[base] += 1
        for index, value in enumerate(node.outputs):
            if id(value) not in fixed:
                value.name = f"{node.name}.{index}" if index else node.name
    for index, value in enumerate(constants):
        value.name = f"constant_{index}"
    for item in (*graph, *(value for node in graph for value in (*node.inputs, *node.outputs) if value), *graph.inputs):
        item.metadata_props.clear()
        item.doc_string = None
    for initializer in graph.initializers.values():
        initializer.metadata_props.clear()
        initializer.doc_string = None
    for owner in (model, graph):
        owner.metadata_props.clear()
        owner.doc_string = None
    graph.name = "graph"
    model.producer_name, model.producer_version = "edgevtx", None


def _declare(who: str, model: ir.Model, network: Traceable | TraceablePart) -> None:
    """Check the graph's inputs and outputs against the recipe's, and give dynamic dimensions readable names."""
    symbols: dict[str, str] = {}
    for value, info in zip(model.graph.inputs, network.inputs, strict=True):
        names = network.dynamic.get(info.name, {})
        assert value.shape is not None
        symbols.update({str(value.shape[axis]): name for axis, name in names.items()})
        value.shape = ir.Shape([names.get(axis, size) for axis, size in enumerate(value.shape)])
        _check(value, info, who)
    for value, info in zip(model.graph.outputs, network.outputs, strict=True):
        assert value.shape is not None
        dims: list[Any] = [
            size if isinstance(size, int) else symbols.get(str(size), f"{info.name}_{axis}")
            for axis, size in enumerate(value.shape)
        ]
        value.shape = ir.Shape(dims)
        _check(value, info, who)


def _check(value: ir.Value, info: TensorInfo, family: str) -> None:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    dtype = np.dtype(value.dtype.numpy()).name
    if (value.name, dtype, shape) != (info.name, info.dtype, info.shape):
        raise ExportError(
            f"{family}: the traced graph has {value.name} {dtype}{list(shape)}, the recipe promised "
            f"{info.name} {info.dtype}{list(info.shape)}; a dimension was fixed by the trace or the recipe is wrong"
        )
