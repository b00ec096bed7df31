"""Compile a graph into a TensorRT plan: `tensorrt` on its own device, `tensorrt-rtx` for any architecture it knows.

Networks are strongly typed: the graph says what is computed in which type, and TF32 is off, so that fp32 is fp32. All
that a plan's users ask is recorded, since a plan can be opened on its own GPU alone. `trt_worker` does it, in a process
of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from edgevtx import disk, errors
from edgevtx.errors import CompileError, OutputError, RuntimeUnavailableError
from edgevtx.runtimes import host, trt_memory
from edgevtx.runtimes.base import BuildReport, EngineOptions, PlanOptions
from edgevtx.runtimes.plan import PLAN, encode_record, read_plan, record_path

log = logging.getLogger(__name__)

# Ampere is the first architecture that multiplies in bf16
_LEAST_SM = {"bf16": 80}

# the paths of this process, and not the working folder, whose files may have any name
_WORKER = "import sys; sys.path[:] = {path!r}; from edgevtx.runtimes.trt_worker import main; main()"


def build_plan(package: str, graph: Path, folder: Path, options: EngineOptions, device: str = "") -> BuildReport:
    """Compile `graph` (its weights file beside it) into `folder`: the plan and its record, see `edgevtx.runtimes.plan`.

    `package` is "tensorrt" or "tensorrt_rtx"; `options.gpu` the architecture, which for `tensorrt` must be that of the
    device, and `device` the model that alone the plan is for, if any. Raises `RuntimeUnavailableError` for a missing
    package and an architecture that it does not compile for, `CompileError` with the graph's node and module where the
    graph is refused, where the compiler crashes or takes more than `options.memory_mb`, and where another precision
    came out, and `OutputError` where the folder cannot be written.
    """
    target = package.replace("_", "-")
    trt = host.import_package(package, target=target, extra=target)
    check_gpu(trt, target, options)
    limit = trt_memory.host_limit(options.memory_mb)
    asked = {
        "precision": options.precision,
        "gpu": options.gpu,
        "plan": asdict(options.plan),
        "memory_mb": limit.most,
    }
    request = {"package": package, "graph": str(graph), "folder": str(folder), "options": asked, "device": device}
    peak = _work(f"{target} {trt.__version__}", request, options, limit)
    record = msgspec.structs.replace(read_plan(folder / PLAN), builder_host_mb=peak)
    try:
        record_path(folder / PLAN).write_bytes(encode_record(record))
    except OSError as error:
        raise OutputError(f"cannot write beside {folder / PLAN}: {disk.explain(error)}") from error
    log.info(
        "%s %s: %d warnings; compiling took %d of %d MiB of the host and %d MiB of the GPU",
        target, graph.name, len(record.warnings), record.builder_host_mb, record.memory_mb, record.builder_gpu_mb,
    )  # fmt: skip
    return record.report()


def advice(plan: PlanOptions) -> str:
    """What to try where the compiler refuses a graph, or crashes."""
    other = f"Ask for something else than {plan}, export" if plan else "Export"
    return f"{other} the bundle again for this version, or choose another version, precision or runtime"


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
            "choose one of these with --gpu, or for a Jetson compile with --target tensorrt on the device itself"
        )
    least = _LEAST_SM.get(options.precision, 0)
    if int(options.gpu.removeprefix("sm") or 0) < least:
        raise RuntimeUnavailableError(
            f"{options.gpu} cannot multiply in {options.precision}, sm{least} and newer can; choose another precision"
        )


def _work(compiler: str, request: dict[str, Any], options: EngineOptions, limit: trt_memory.Limit) -> int:
    """Have the worker do what is asked, passing on what it tells; returns the most memory that it had, in MiB.

    Raises what it raised, or that it crashed.
    """
    code = _WORKER.format(path=[str(Path(entry).absolute()) for entry in sys.path])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    failure: errors.EdgevtxError | None = None
    place, last = "reading the graph", ""
    with (
        subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, errors="replace") as worker,  # type: ignore[call-overload]
        trt_memory.watched(worker, limit) as watch,
    ):
        try:
            with contextlib.suppress(BrokenPipeError), worker.stdin as stdin:
                stdin.write(json.dumps(request))
            for line in worker.stdout:
                told = _read(line)
                if "progress" in told:
                    place = told["progress"]
                    if options.progress is not None:
                        options.progress(f"compile: {place}")
                elif "error" in told:
                    kind, text = told["error"]
                    failure = getattr(errors, kind)(text)
                last = told.get("print", last)
                log.debug("%s", told)
        except BaseException:  # Ctrl-C
            worker.kill()
            raise
    if failure is not None:
        raise failure
    if watch.ended and worker.returncode:  # it may have been done just before
        raise CompileError(
            f"{_what(compiler, request)} was ended at: {place}. It had {watch.had} MiB of this machine's memory, of "
            f"which it may have {limit.most}, and {watch.left} MiB were left to all others: close other programs, add "
            "swap space, allow more with --memory-mb, or have the plan serve less, with --batch 1 and --frame "
            "WIDTHxHEIGHT"
        )
    if worker.returncode:
        raise CompileError(_crash(compiler, request, worker.returncode, place, last, options.plan))
    return watch.most


def _read(line: str) -> dict[str, Any]:
    """What the worker told; a line that something else printed is {"print": line}."""
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {"print": line.strip()}


def _what(compiler: str, request: dict[str, Any]) -> str:
    options, graph = request["options"], Path(request["graph"]).name
    return f"{compiler}, compiling {graph} for {options['gpu']} in {options['precision']},"


def _crash(compiler: str, request: dict[str, Any], code: int, place: str, last: str, plan: PlanOptions) -> str:
    what = _what(compiler, request)
    if code == -signal.SIGKILL:
        return (
            f"{what} was killed at: {place}. That happens where memory runs out: close other programs, allow less with "
            "--memory-mb and --workspace-mb, or add swap space"
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{what} crashed ({how}) at: {place}{f' ({last})' if last else ''}. {advice(plan)}"
