"""What an open TensorRT engine executes, as its engine inspector tells it: kernels, and the share of each type.

The compiler fuses the layers of the typed network and chooses kernels ("tactics") for them. The inspector's JSON has no
promised form: it differs between releases, and whatever is not understood is left out. So this is told, and refuses
nothing; what an engine is worth, its golden sample says. Form: docs.nvidia.com/deeplearning/tensorrt, "Engine
Inspector".
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from edgevtx import disk
from edgevtx.errors import CompileError
from edgevtx.runtimes import host, precision, trt_log

log = logging.getLogger(__name__)

# in this order, as "uint8" has "int8" in it; TF32 is what fp32 must not become
_WORDS = (
    ("bf16", r"bf16|bfloat"),
    ("f16", r"fp16|half|float16"),
    ("f8", r"fp8|float8"),
    ("f4", r"fp4|float4"),
    ("f32", r"fp32|float"),
    ("u8", r"uint8"),
    ("i8", r"int8"),
    ("i4", r"int4"),
    ("i32", r"int32"),
    ("i64", r"int64"),
    ("bool", r"bool"),
)
# the multiplicands' type in the name of a kernel: sm80_xmma_gemm_f16f16_f16f32_f32_tn_n, ampere_h16816gemm_128x64
_TACTICS = (
    ("i8", r"(?:^|_)i8i8_|_i(?:8816|16832)|_imma"),
    ("f8", r"e4m3|e5m2"),
    ("bf16", r"(?:^|_)bf16(?:bf16)?_"),
    ("tf32", r"(?:^|_)tf32(?:tf32|f32)_"),
    ("f16", r"(?:^|_)f16f16_|_h\d*gemm|_fp16_|_hmma"),
    ("f32", r"(?:^|_)f32f32_|_sgemm"),
)
_MULTIPLIES = re.compile(r"conv|gemm|matrix|matmul|einsum|attention|mha", re.IGNORECASE)
_KINDS = re.compile(r"reformat|constant|shuffle|kgen", re.IGNORECASE)  # these only move data, or add and scale


class Kernel(msgspec.Struct, frozen=True):
    """A kernel of an engine: its `type` ("f16") is its multiplicands', or that of what it reads, "" where not told.

    `work` is its multiply-adds, an estimate, and 0 of one that multiplies no matrices or whose shapes are not told.
    """

    name: str
    kind: str
    type: str
    tactic: str = ""
    work: int = 0
    multiplies: bool = False


class Executed(msgspec.Struct, frozen=True):
    """The kernels of an engine, and the share of each type in what multiplies: of the work, or of the kernels where the
    work of any is not known.

    `plan` is the SHA-256 of the plan, `place` where it was opened: TensorRT-RTX chooses kernels for the GPU and driver.
    """

    share: dict[str, float]
    kernels: tuple[Kernel, ...]
    plan: str = ""
    place: str = ""


def executed_path(plan: Path) -> Path:
    """Where it is kept beside a plan: NAME.plan -> NAME.kernels.json."""
    return plan.with_suffix(".kernels.json")


def read_executed(plan: Path, sha256: str) -> Executed | None:
    """What was kept beside a plan when it was opened, None where there is nothing that can be read of this plan."""
    try:
        found = msgspec.json.decode(executed_path(plan).read_bytes(), type=Executed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.plan == sha256 else None


def inspect(ask: Callable[[], str], plan: Path, sha256: str, place: str) -> Executed | None:
    """What an engine that has run executes, asked once and then kept beside its plan; None where nothing is told.

    `sha256` is the plan's, `place` names GPU and driver: elsewhere it is asked anew.
    """
    found = read_executed(plan, sha256)
    if found is not None and found.place == place:
        return found
    try:
        found = msgspec.structs.replace(parse(ask()), plan=sha256, place=place)
    except Exception as error:  # whatever another form of the text makes stumble
        log.info("what the engine inspector says of %s is not understood: %s", plan, host.first_line(error))
        trt_log.last_error()  # it is of no later call
        return None
    try:
        disk.write_atomic(executed_path(plan), msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    except OSError as error:
        log.info("the kernels are not kept beside %s: %s", plan, disk.explain(error))
    return found


def parse(text: str) -> Executed:
    """The inspector's JSON; what is not as it is documented is left out."""
    rows = msgspec.json.decode(text)["Layers"]  # of an engine without details they are names alone
    kernels = tuple(_kernel(row) for row in rows if isinstance(row, dict))
    multiplying = [kernel for kernel in kernels if kernel.multiplies and kernel.type]
    known = all(kernel.work for kernel in multiplying)
    share = precision.shares((kernel.type, kernel.work if known else 1) for kernel in multiplying)
    return Executed(share, kernels)


def warn(executed: Executed, asked: str, *, target: str, device: str) -> None:
    """Say on the log where an engine executes something else than was asked of it."""
    try:
        precision.require(asked, executed.share, target=target, device=device, least=precision.LEAST_SHARES[asked])
    except CompileError as error:
        log.warning("the engine inspector tells otherwise: %s", error)


def count(kernels: Iterable[Kernel]) -> list[tuple[str, str, int]]:
    """(kind, type, how many) of kernels, sorted."""
    found = Counter((kernel.kind, kernel.type or "-") for kernel in kernels)
    return [(kind, type_, number) for (kind, type_), number in sorted(found.items())]


def _kernel(row: dict[str, Any]) -> Kernel:
    kind, tactic = str(row.get("LayerType", "")), str(row.get("TacticName", ""))
    inputs, outputs = _tensors(row.get("Inputs")), _tensors(row.get("Outputs"))
    multiplies = not _KINDS.search(kind) and bool(_MULTIPLIES.search(f"{kind} {tactic}"))
    told = _first(_TACTICS, tactic) if multiplies else ""
    read = next((_first(_WORDS, str(item.get("Format/Datatype", ""))) for item in inputs), "")
    work = _work(row, _shape(inputs), _shape(outputs)) if multiplies else 0
    return Kernel(str(row.get("Name", "")), kind, told or read, tactic, work, multiplies)


def _first(patterns: Iterable[tuple[str, str]], text: str) -> str:
    return next((name for name, pattern in patterns if re.search(pattern, text, re.IGNORECASE)), "")


def _tensors(found: Any) -> list[dict[str, Any]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _shape(tensors: list[dict[str, Any]]) -> list[int]:
    """The first tensor's, empty where it is dynamic or not told."""
    shape = tensors[0].get("Dimensions") if tensors else None
    whole = isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
    return shape if whole and shape is not None else []


def _work(row: dict[str, Any], taken: list[int], given: list[int]) -> int:
    """Elements of the result, times what is summed for each: the last axis, or of a convolution channels and window."""
    if not taken or not given:
        return 0
    window = row.get("Kernel")
    if isinstance(window, list) and window and len(taken) > 1:
        groups = row.get("Groups")
        channels = taken[1] // (groups if isinstance(groups, int) and groups > 0 else 1)
        return prod(given) * channels * prod(window)
    return prod(given) * taken[-1]
