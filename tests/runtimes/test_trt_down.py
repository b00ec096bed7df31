"""How an engine is taken down, against a driver and a TensorRT that only record what is asked of them (`fake_gpu`).

These tests hold the order and the arguments of our calls. They show nothing of a GPU: see tests/gpu.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevtx.errors import DeviceError, InputError, RuntimeUnavailableError
from edgevtx.runtimes.base import Engine
from tests.runtimes.fake_gpu import Machine, crashes, feeds, is_right

ROOT = Path(__file__).parents[2]

KINDS = {
    "delete_context": "C", "delete_engine": "E", "delete_runtime": "R", "cuMemFree": "M", "cuStreamDestroy": "S",
    "cuDevicePrimaryCtxRelease": "P",
}  # fmt: skip
# a context before its memory and stream; the last user's context, the engine, the runtime, then what is the device's
ORDER = re.compile(r"(CM*S)*(CERM*S|ER)P")


def in_order(names: list[str]) -> bool:
    """Whether what was freed came in an order that does not crash."""
    assert "CRASH" not in names
    return ORDER.fullmatch("".join(KINDS.get(name, "") for name in names)) is not None


@pytest.mark.parametrize("engine_first", [True, False])
@pytest.mark.parametrize("runtimes", [0, 1, 3])
def test_the_order_of_taking_down(
    machine: Machine, open_plan: Callable[..., Engine], engine_first: bool, runtimes: int
) -> None:
    engine = open_plan()
    opened: list[Any] = [engine.new_runtime() for _ in range(runtimes)]
    for runtime in opened:
        for seed in range(4):  # up to a graph
            assert is_right(runtime, feeds(seed=seed))
    machine.calls.clear()
    for closed in (engine, *opened) if engine_first else (*opened, engine):
        assert machine.retained == 1
        closed.close()
        closed.close()
    assert in_order(machine.names())
    assert machine.left() == {} and machine.retained == 0 and machine.stack == []


def test_a_runtime_outlives_its_engine_and_a_closed_one_says_so(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    engine = open_plan()
    runtime = engine.new_runtime()
    engine.close()
    assert is_right(runtime, feeds())
    with pytest.raises(RuntimeUnavailableError, match="engine was closed"):
        engine.new_runtime()
    runtime.close()
    with pytest.raises(RuntimeUnavailableError, match="runtime was closed"):
        runtime.run(feeds())


def test_what_is_forgotten_is_taken_down(machine: Machine, open_plan: Callable[..., Engine]) -> None:
    engine = open_plan()
    runtime = engine.new_runtime()
    assert is_right(runtime, feeds())
    del engine
    gc.collect()
    assert is_right(runtime, feeds(seed=1))
    del runtime
    gc.collect()
    assert in_order(machine.names()) and machine.left() == {}


@pytest.mark.parametrize(
    "call", ["execute_async_v3", "infer_shapes", "set_input_shape", "set_tensor_address", "cuMemcpyHtoDAsync"]
)
def test_a_kept_exception_holds_nothing_of_the_gpu(
    machine: Machine, open_plan: Callable[..., Engine], call: str
) -> None:
    engine = open_plan()
    runtime = engine.new_runtime()
    machine.failing.add(call)
    with pytest.raises((DeviceError, InputError)) as kept:
        runtime.run(feeds(height=8, batch=2))
    machine.failing.clear()
    machine.calls.clear()
    runtime.close()
    engine.close()
    assert kept.value.__traceback__ is not None
    assert in_order(machine.names()) and machine.left() == {}


def test_contexts_in_threads_are_apart_and_can_be_closed_by_another(
    machine: Machine, open_plan: Callable[..., Engine]
) -> None:
    engine = open_plan()
    runtimes = [engine.new_runtime() for _ in range(3)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for seed in range(40):
            if not is_right(runtimes[index], feeds(height=2 + (seed // 5 + index) % 6, seed=seed + index)):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    for runtime in runtimes:
        runtime.close()
    assert not wrong
    assert machine.left() == {} and not crashes(machine)


SCRIPT = """
import atexit, pathlib, sys, threading, time
from unittest import mock
import numpy as np
import edgevtx
from tests.runtimes import fake_gpu

class Patch:
    setitem = staticmethod(lambda target, name, value: target.__setitem__(name, value))
    setattr = staticmethod(setattr)

machine = fake_gpu.install(Patch)

def tell():
    kinds = ("delete_", "cuMemFree", "cuStreamDestroy", "cuDevicePrimaryCtxRelease", "CRASH")
    freed = [name for name in machine.names() if name.startswith(kinds)]
    print(" ".join(freed), machine.left(), flush=True)

atexit.register(tell)  # the first registered, so the last called
from edgevtx.runtimes.base import EngineOptions
from edgevtx.runtimes.trt import TENSORRT
folder = pathlib.Path(sys.argv[1]) / "engine"
graph = fake_gpu.write_plan(folder)
engine = TENSORRT.open(graph, folder, EngineOptions(precision="fp16"))
first, second = engine.new_runtime(), engine.new_runtime()
inputs = {"pixels": np.ones((1, 4, 4, 3), np.uint8), "valid_size": np.ones((1, 2), np.int32)}
first.run(inputs)
"""


def run_script(more: str, folder: Path) -> str:
    command = [sys.executable, "-c", SCRIPT + more, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


AT_EXIT = {
    "nothing was closed": "",
    "in a cycle": "class Knot: pass\nknot = Knot(); knot.knot = knot; knot.held = first, engine\n",
    "a thread still runs": (
        "def work():\n    try:\n        while True:\n            second.run(inputs)\n"
        "    except edgevtx.EdgevtxError:\n        pass\n"
        "threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.05)\n"
    ),
    "half was closed": "first.close()\n",
    "an exception is kept": "try:\n    first.run({})\nexcept ValueError as error:\n    kept = error\n",
}


@pytest.mark.parametrize("case", AT_EXIT)
def test_an_interpreter_s_exit_takes_down_in_order(case: str, tmp_path: Path) -> None:
    *freed, left = run_script(AT_EXIT[case], tmp_path).rsplit("{", 1)
    assert in_order(freed[0].split()) and left == "}\n"
    assert freed[0].count("delete_context") == 2


FORKED = {
    "closed": "first.close(); engine.close(); tell(); os._exit(0)",
    "forgotten, then collected": "del first, second, engine; gc.collect(); tell(); os._exit(0)",
    "left to the interpreter's exit": "sys.exit()",
    "in the middle of a run": "first._execute.__self__._lock.acquire(); first.close(); tell(); os._exit(0)",
    "run and cloned": (
        "for work in (lambda: first.run(inputs), lambda: (engine.new_runtime(), engine.new_runtime())):\n"
        "        try:\n            work()\n"
        "        except edgevtx.EdgevtxError as error:\n            assert 'spawn' in str(error), error\n"
        "        else:\n            raise SystemExit('it ran')\n"
        "    assert not machine.calls, machine.calls\n    tell(); os._exit(0)"
    ),
}


@pytest.mark.parametrize("case", FORKED)
def test_a_fork_leaves_its_parent_s_gpu_alone(case: str, tmp_path: Path) -> None:
    more = (
        "import gc, os\nmachine.calls.clear()\nchild = os.fork()\n"
        f"if not child:\n    {FORKED[case]}\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    child, parent = run_script(more, tmp_path).splitlines()
    assert child.startswith(" {")  # nothing was freed
    assert in_order(parent.split("{")[0].split()) and parent.endswith("{}")
