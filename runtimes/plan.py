"""A TensorRT plan's record: the JSON beside it, which says what the plan is without a GPU and without TensorRT.

The plan itself is the vendor's plain file, which any other tool loads. `check_plan` refuses one that belongs to another
version, GPU or bundle, before TensorRT does so with words that name none of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgevtx.archive import MANIFEST, digest_file
from edgevtx.errors import CompileError, InputError
from edgevtx.rules import SizeRule
from edgevtx.runtimes.base import BuildReport, PlanOptions, TensorSpec

PLAN = "engine.plan"
"""The name of a plan in an engine's folder; its record lies beside it, see `record_path`."""


class ShapeRange(msgspec.Struct, frozen=True):
    """The shapes that an optimisation profile takes for an input, and the one that kernels are chosen for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = dict[str, ShapeRange]
"""The inputs of dynamic shape, by name."""


class PlanLayer(msgspec.Struct, frozen=True):
    """A layer: `type` is what it computes in ("f32", "f16", "bf16", "i8"), `work` its multiply-adds.

    `work` is 0 but for convolutions, matrix products and attention; with dynamic sizes it is nominal.
    """

    name: str
    kind: str
    type: str
    work: int = 0


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is beside a plan.

    `gpu` is the architecture ("sm89"), and `device` the model of GPU that a plan of TensorRT was compiled on; one of
    TensorRT-RTX is for all of its architecture, and has none. `bundle` is the bundle's digest and `part` the network of
    it, both empty where the graph was of no bundle; `graph_sha256`, `sha256` and `size` (bytes) are those of the graph
    and of the plan.
    `layers` are those of the typed network, which the compiler fuses and may not retype.
    `asked` is what was asked of the plan, `workspace_mb` what came of it. `builder_host_mb` is the most memory of the
    host, in MiB, that the compiling process had whenever it was looked at, `memory_mb` what it was allowed;
    `builder_gpu_mb` is the most of the device as the builder tells it.
    """

    schema: Literal["1.0"] = "1.0"
    name: str
    part: str = ""
    bundle: str = ""
    graph: str
    graph_sha256: str
    target: str
    target_version: str
    gpu: str
    device: str = ""
    precision: str
    precision_share: dict[str, float]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...] = ()
    layers: tuple[PlanLayer, ...] = ()
    size: int
    sha256: str
    compile_seconds: float
    asked: PlanOptions = msgspec.field(default_factory=PlanOptions)
    workspace_mb: int | None = None
    memory_mb: int | None = None
    builder_host_mb: int = 0
    builder_gpu_mb: int = 0
    warnings: tuple[str, ...] = ()

    def report(self) -> BuildReport:
        """What the compiler made, as an engine's record has it."""
        return BuildReport(
            target=self.target,
            target_version=self.target_version,
            device=self.gpu,
            precision_share=self.precision_share,
            compile_seconds=self.compile_seconds,
            options={"workspace_mb": str(self.workspace_mb or "")},
            warnings=self.warnings,
        )


def record_path(plan: Path) -> Path:
    """Where a plan's record lies: NAME.plan -> NAME.json."""
    return plan.with_suffix(".json")


def encode_record(record: PlanRecord) -> bytes:
    """The record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_plan(path: Path) -> PlanRecord:
    """The record of a plan, given the path of either.

    Raises `InputError` where there is no record, `CompileError` where it is damaged or newer than this edgevtx.
    """
    path = record_path(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanRecord)
    except FileNotFoundError:
        raise InputError(
            f"there is no {path}: a plan of edgevtx has a record beside it; keep the two together, or compile the "
            "bundle again"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CompileError(
            f"{path} is no record of a plan that this edgevtx reads ({error}); compile the bundle again, or update "
            "edgevtx"
        ) from None


def check_file(path: Path, record: PlanRecord) -> None:
    """Raise `CompileError` unless the plan at `path` has the size and the SHA-256 of its record."""
    try:
        size = path.stat().st_size
        if size == record.size and digest_file(path) == record.sha256:
            return
        wrong = f"has {size} bytes, and its record says {record.size}"
        wrong = "is not the file of its record" if size == record.size else wrong
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
    raise CompileError(f"{path} {wrong}: it was damaged or replaced; compile the bundle again")


def check_plan(record: PlanRecord, target: str, version: str, gpu: str, bundle_digest: str = "") -> None:
    """Raise `CompileError`, with what to do, unless a plan was compiled for this target, version, GPU and bundle.

    `gpu` is the architecture of the device ("sm89"). Neither TensorRT nor TensorRT-RTX loads the plan of another
    release, and no plan runs on another architecture. An empty `bundle_digest` is not compared.
    """
    again = f"edgevtx compile BUNDLE --target {target} --gpu {gpu} --precision {record.precision}"
    made = f"the plan of {record.name}"
    if record.target != target:
        raise CompileError(f"{made} is for {record.target}, but {target} was to open it; compile it with: {again}")
    if record.target_version != version:
        raise CompileError(
            f"{made} was compiled by {target} {record.target_version}, and {version} is installed here; no release "
            f"loads another's plans: compile it again with: {again}"
        )
    if record.gpu != gpu:
        raise CompileError(
            f"{made} was compiled for {record.gpu}, and the GPU here is {gpu}; compile it for this one with: {again}"
        )
    if bundle_digest and record.bundle != bundle_digest:
        raise CompileError(
            f"{made} was compiled from the bundle {record.bundle[:12] or 'of no digest'}, and this one is "
            f"{bundle_digest[:12]}; compile this one with: {again}"
        )


# -- the bundle around a graph ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Of which bundle a graph is: its `name`, its `digest`, the network, and the rule of its input's size."""

    name: str
    digest: str = ""
    part: str = ""
    size: SizeRule | None = None


class _Graph(msgspec.Struct):
    file: str
    part: str = ""


class _Preprocess(msgspec.Struct):
    size: SizeRule


class _Manifest(msgspec.Struct):
    """What is needed here of a manifest."""

    name: str
    graphs: tuple[_Graph, ...]
    preprocess: _Preprocess


def origin(graph: Path) -> Origin:
    """What the manifest beside a graph says of it; of a graph without one its file's name alone."""
    try:
        data = (graph.parent / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (OSError, msgspec.DecodeError):
        return Origin(graph.stem)
    part = next((item.part for item in manifest.graphs if item.file == graph.name), "")
    return Origin(manifest.name, hashlib.sha256(data).hexdigest(), part, manifest.preprocess.size)
