"""A TensorRT that records what is asked of it, over the machine of `fake_gpu`, and refuses what the real one refuses.

The "engine" adds up each row of its inputs, so that values show whether everything was copied, or gives the "answers"
of its plan. A plan is JSON.
"""

from __future__ import annotations

import enum
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.runtimes.fake_machine import SM, Machine


class Mode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Place(enum.Enum):
    DEVICE, HOST = range(2)


class Form(enum.Enum):
    ONELINE, JSON = range(2)


class Strategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class Logger:
    def __init__(self) -> None: ...


def make_tensorrt(machine: Machine, name: str, version: str) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`: only what runs a plan."""
    said: list[Any] = []

    def asked(call: str, detail: Any = "") -> bool:
        """Record a call of TensorRT's; whether it succeeds."""
        machine.need_context(call)
        machine.calls.append(f"{call} {detail}".strip())
        if call in machine.failing:
            for words in machine.saying.get(call, (f"[fake] {call} is  refused",)):
                said[-1].log(Severity.ERROR, words)
            return False
        return True

    class Object:
        """Freed with its last name, as TensorRT's are, and only while everything that it needs is there."""

        def __init__(self, kind: str) -> None:
            self._kind = kind
            machine.made(kind)

        def __del__(self) -> None:
            if "_kind" not in vars(self):  # it was never made
                return
            machine.need_context(f"delete_{self._kind}")
            machine.calls.append(f"delete_{self._kind}")
            machine.made(self._kind, -1)

    class Runtime(Object):
        def __init__(self, logger: Any) -> None:
            said.append(logger)
            if not asked("Runtime"):  # in the words of the bindings
                raise TypeError("pybind11::init(): factory function returned nullptr")
            super().__init__("runtime")

        def deserialize_cuda_engine(self, data: Any) -> Any:
            text = bytes(memoryview(data))
            return Engine(json.loads(text)) if asked("deserialize_cuda_engine") and text[:1] == b"{" else None

    class Cache(Object):
        def __init__(self) -> None:
            super().__init__("cache")
            self.content = b""

        def deserialize(self, data: bytes) -> bool:
            if asked("cache.deserialize", data.decode()):
                self.content = data
            return bool(self.content)

        def serialize(self) -> bytes:
            machine.need_context("cache.serialize")
            return self.content

    class Settings(Object):
        def __init__(self) -> None:
            super().__init__("settings")
            self.cache: Any = None
            self.cuda_graph_strategy = Strategy.DISABLED

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> None:
            self.cache = cache

    class Engine(Object):
        def __init__(self, facts: dict[str, Any]) -> None:
            super().__init__("engine")
            self.facts = facts
            self.names = [*facts["inputs"], *facts["outputs"]]
            self.num_io_tensors = len(self.names)
            self.profile = 0  # the first context is on profile 0, others on none

        def get_tensor_name(self, index: int) -> str:
            return str(self.names[index])

        def get_tensor_mode(self, name: str) -> Mode:
            return Mode.INPUT if name in self.facts["inputs"] else Mode.OUTPUT

        def get_tensor_location(self, name: str) -> Place:
            return Place.HOST if name in self.facts.get("on_host", ()) else Place.DEVICE

        def create_runtime_config(self) -> Settings:
            return Settings()

        def create_execution_context(self, settings: Any = None) -> Any:
            strategy = "" if settings is None else settings.cuda_graph_strategy.name
            return Execution(self, settings) if asked("create_execution_context", strategy) else None

        def create_engine_inspector(self) -> Any:
            return Inspector(self.facts)

    class Inspector(Object):
        def __init__(self, facts: dict[str, Any]) -> None:
            super().__init__("inspector")
            self.facts = facts

        def get_engine_information(self, form: Form) -> str:
            if not asked("get_engine_information", form.name):
                raise RuntimeError("no information")
            return str(self.facts.get("inspector", '{"Layers": []}'))

    class Execution(Object):
        def __init__(self, engine: Engine, settings: Any) -> None:
            super().__init__("context")
            self.facts, self.cache = engine.facts, settings and settings.cache
            self.captures = settings is not None and settings.cuda_graph_strategy == Strategy.WHOLE_GRAPH_CAPTURE
            self.active_optimization_profile, engine.profile = engine.profile, -1
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}
            self.settled = False

        def set_optimization_profile_async(self, index: int, handle: int) -> bool:
            if not asked("set_optimization_profile_async", index):
                return False
            self.active_optimization_profile = index
            self.shapes.clear()
            self.addresses.clear()
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.settled = False
            self.shapes[name] = shape
            return asked("set_input_shape", f"{name} {shape}")

        def infer_shapes(self) -> list[str]:
            if not asked("infer_shapes"):
                raise RuntimeError("infer_shapes error code: 3")
            return [name for name in self.facts["inputs"] if name not in self.shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self.facts.get("answers", ()):
                return np.shape(self.facts["answers"][name][1])
            known = self.shapes.get(name) or (next(iter(self.shapes.values()))[0],)
            return (-1,) if name in self.facts.get("of_values", ()) else known

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return asked("set_tensor_address", f"{name} {address}") and address % 256 == 0

        def execute_async_v3(self, handle: int) -> bool:
            stream = machine.streams[handle]
            shapes, addresses, facts = dict(self.shapes), dict(self.addresses), self.facts
            capturing = stream.capturing and not self.settled  # what was put off cannot be captured
            unset = self.active_optimization_profile < 0 or not {*facts["inputs"], *facts["outputs"]} <= {*addresses}
            if not asked("execute_async_v3", "captured" if stream.capturing else "") or capturing or unset:
                return False
            if stream.capturing and "capture" in machine.failing:
                said[-1].log(Severity.ERROR, "[fake] operation not permitted when stream is capturing")
                return False
            if stream.capturing:
                machine.while_capturing()
            elif self.captures:
                stream.begin()
                machine.while_capturing()
                if not stream.end():
                    return False
            self.settled = True
            if self.cache is not None:
                self.cache.content = b"kernels"

            def compute() -> None:
                total = np.zeros(next(iter(shapes.values()))[0], np.float32)
                for name, dtype in facts["inputs"].items():
                    size = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
                    data = machine.at(addresses[name], size).view(dtype).reshape(shapes[name])
                    total += data.reshape(len(data), -1).sum(1, dtype=np.float32)
                for name, (dtype, answer) in facts.get("answers", {}).items():
                    given = np.array(answer, dtype)
                    machine.at(addresses[name], given.nbytes)[:] = given.reshape(-1).view(np.uint8)
                for name in set(facts["outputs"]) - set(facts.get("answers", {})):
                    machine.at(addresses[name], total.nbytes)[:] = total.view(np.uint8)

            machine.submit(handle, compute)
            return True

    module: Any = ModuleType(name)
    module.__version__ = version
    module.ILogger, module.Runtime, module.TensorIOMode, module.TensorLocation = Logger, Runtime, Mode, Place
    module.LayerInformationFormat = Form
    if name == "tensorrt_rtx":
        module.IRuntimeCache, module.CudaGraphStrategy = Cache, Strategy
        module.ComputeCapability = SimpleNamespace(__members__={SM.upper(): 0, "SM89": 1})
    return module  # type: ignore[no-any-return]
