"""The names of TensorRT that are used: all of them are in the package that is installed, and none is used beside these.

Of most nothing but a fake is called in the other tests (`fake_trt`), and of TensorRT itself no release can be installed
on every machine. The bindings of TensorRT-RTX are there, and have the same interface.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevtx.runtimes import trt as backend
from edgevtx.runtimes import trt_layers

# what is used of the package, by its class; the fakes have no more than this of what runs a plan
USED = {
    "Builder": (
        "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
    ),
    "INetworkDefinition": (
        "num_layers", "get_layer", "num_inputs", "get_input", "num_outputs", "get_output",
    ),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("node_name", "node_operator", "code", "desc"),
    "IBuilderConfig": (
        "clear_flag", "profiling_verbosity", "set_memory_pool_limit", "num_compute_capabilities",
        "set_compute_capability", "add_optimization_profile", "progress_monitor", "create_timing_cache",
        "set_timing_cache", "get_timing_cache",
    ),
    "ITimingCache": ("serialize",),
    "IOptimizationProfile": ("set_shape",),
    "ITensor": ("name", "shape", "dtype", "get_dimension_name"),
    "ILayer": ("name", "type", "num_inputs", "get_input", "num_outputs", "get_output"),
    "IConvolutionLayer": ("num_groups", "kernel_size_nd"),
    "IDeconvolutionLayer": ("num_groups", "kernel_size_nd"),
    "ILogger": ("log",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "BuilderFlag": ("TF32",),
    "ProfilingVerbosity": ("DETAILED",),
    "MemoryPoolType": ("WORKSPACE",),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_location", "create_execution_context",
        "create_runtime_config", "create_engine_inspector",
    ),
    "EngineInspector": ("get_engine_information",),
    "LayerInformationFormat": ("JSON",),
    "IExecutionContext": (
        "active_optimization_profile", "set_optimization_profile_async", "set_input_shape", "infer_shapes",
        "get_tensor_shape", "set_tensor_address", "execute_async_v3",
    ),
    "IRuntimeConfig": ("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"),
    "IRuntimeCache": ("serialize", "deserialize"),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE",),
    "ComputeCapability": ("SM86",),
    "NetworkDefinitionCreationFlag": (),  # of its STRONGLY_TYPED TensorRT-RTX knows nothing, and 10 asks for it
}  # fmt: skip
# with what is asked for before it is used, and what Python gives every class and module
ASKED = {"STRONGLY_TYPED", "__members__", "__name__", "__version__", "__init__", "__class__"}
OVERRIDDEN = {"log", "phase_start", "step_complete", "phase_finish"}


@pytest.mark.parametrize("kind", USED)
def test_what_is_used_is_in_the_real_package(kind: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the package has wheels for x86-64 Linux alone")
    assert not [name for name in USED[kind] if not hasattr(getattr(trt, kind), name)]


def test_types_and_layers_have_the_names_of_the_real_package() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the package has wheels for x86-64 Linux alone")
    kinds = {*trt_layers._MOVING, *trt_layers._CONVOLUTIONS, *trt_layers._PRODUCTS, "ATTENTION_INPUT"}
    assert not set(trt_layers.TYPES) - set(trt.DataType.__members__)
    assert not kinds - set(trt.LayerType.__members__)


def test_nothing_else_is_used() -> None:
    """Read from the sources, so that no call is forgotten above."""
    folder = Path(backend.__file__).parent
    trees = [ast.parse(path.read_text()) for path in (folder / "host.py", *sorted(folder.glob("trt*.py")))]
    found = {name for used in _uses(trees) for name in used}
    named = {name for names in USED.values() for name in names}
    plain = {name for kind in (str, dict) for name in dir(kind)}  # of words and tables that came of an object
    assert not found - plain - named - set(USED) - ASKED
    assert not named - found - OVERRIDDEN - {"SM86"}


def _uses(trees: list[ast.Module]) -> list[set[str]]:
    """The attributes that each function takes of TensorRT's objects.

    These are the parameters that are declared as `Any`, what functions give that are declared so, and whatever comes of
    them: attributes, results of calls, items, what is assigned and what is iterated over.
    """
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    giving = {node.name for node in functions if node.returns is not None and _is_any(node.returns)}
    fields: set[str] = set()  # self.NAME, of whichever class
    outer = [node for tree in trees for scope in (tree, *_classes(tree)) for node in scope.body]
    for _ in range(2):  # a field may be read in a function ahead of the one that assigns it
        found = [_Function(giving, fields).look(node) for node in outer if isinstance(node, ast.FunctionDef)]
    return found


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _is_any(annotation: ast.expr) -> bool:
    """`Any` or `Iterable[Any]`."""
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Iterable":
        annotation = annotation.slice
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


class _Function:
    """What is TensorRT's in one function and those within it."""

    def __init__(self, giving: set[str], fields: set[str]) -> None:
        self._giving, self._fields, self._names = giving, fields, set[str]()

    def look(self, function: ast.FunctionDef) -> set[str]:
        """The attributes that it takes of TensorRT's objects."""
        nodes = list(ast.walk(function))
        declared = [node for node in nodes if isinstance(node, ast.arg) and node.annotation is not None]
        self._names |= {node.arg for node in declared if node.annotation is not None and _is_any(node.annotation)}
        before = -1
        while before != len(self._names) + len(self._fields):
            before = len(self._names) + len(self._fields)
            for node in nodes:
                self._assign(node)
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and self._is_theirs(node.value)}
        return used | {name for node in nodes for name in self._asked(node)}

    def _assign(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs: list[tuple[Any, Any]] = [(target, node.value)]
                if isinstance(target, ast.Tuple):
                    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(target.elts)
                    pairs = list(zip(target.elts, values, strict=True))
                for to, value in pairs:
                    self._mark(to, value)
        elif isinstance(node, ast.For | ast.comprehension):
            self._mark(node.target, node.iter)

    def _mark(self, target: ast.expr, value: ast.expr) -> None:
        if self._is_theirs(value):
            if isinstance(target, ast.Name):
                self._names.add(target.id)
            elif isinstance(target, ast.Attribute):
                self._fields.add(target.attr)

    def _asked(self, node: ast.AST) -> Iterator[str]:
        """The names that `getattr` and `hasattr` ask for."""
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[first, ast.Constant(value=name), *_]):
                if self._is_theirs(first):
                    yield str(name)

    def _is_theirs(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self._names
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return name in self._fields
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                return self._is_theirs(value)
            case ast.Call(func=ast.Name(id="getattr"), args=[first, *_]):
                return self._is_theirs(first)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in self._giving:
                return True
            case ast.Call(func=function):
                return self._is_theirs(function)
            case ast.IfExp(body=body, orelse=orelse):
                return self._is_theirs(body) or self._is_theirs(orelse)
            case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
                return self._is_theirs(element)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return any(map(self._is_theirs, elements))
        return False
