"""TensorRT plans on the command line: compiled, also for a GPU that is not here, written out, and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevtx import disk
from edgevtx.adopt import adopt_plan
from edgevtx.bundle import Bundle
from edgevtx.choose import choose_precision, choose_runtime
from edgevtx.cli import common
from edgevtx.engines import CompileMode, PreparedEngine, prepare_engine
from edgevtx.errors import InputError, OutputError
from edgevtx.manifest import Manifest
from edgevtx.runtimes import get_backend
from edgevtx.runtimes.base import EngineOptions, PlanOptions
from edgevtx.runtimes.plan import PLAN, PlanRecord, check_file, check_plan, read_plan, record_path
from edgevtx.runtimes.trt_inspect import Executed, count, executed_path, read_executed
from edgevtx.stream.sinks import claim

if TYPE_CHECKING:
    from rich.table import Table

SUFFIX = ".plan"


@dataclass(frozen=True)
class Made:
    """A plan in the cache at `path`, its record, and whether it was there before."""

    path: Path
    record: PlanRecord
    cache_hit: bool

    def to_dict(self) -> dict[str, Any]:
        """The record without its layers, and where the plan is."""
        return {"path": str(self.path), "cache_hit": self.cache_hit, **record_dict(self.record, layers=False)}


def compile_plans(
    path: str,
    target: str,
    gpus: Sequence[str],
    wanted: EngineOptions,
    compile: CompileMode,  # noqa: A002 -- as `prepare_engine` names it
    *,
    precision: str | None,
    allow_unverified: bool,
    out: Path | None = None,
    **options: Any,
) -> list[Made]:
    """A plan of every network of a bundle for every architecture, into the cache; without `gpus` for the GPU here.

    `wanted` is what only plans are asked, `options` are those of `edgevtx.load`. Raises as `edgevtx.load` does,
    `InputError` where the bundle's graphs leave open neither what `--batch` nor what `--frame` would fix, and
    `OutputError` where a plan is in the folder `out` already.
    """
    bundle = Bundle.open(path)
    _check_open(bundle.manifest, wanted.plan)
    every = []
    for gpu in gpus or ("",):
        here = replace(wanted, gpu=gpu, **options)
        choose_runtime(bundle.manifest, target, precision, here)
        chosen = choose_precision(bundle.manifest, target, precision, here, allow_unverified=allow_unverified)
        every.append(replace(here, precision=chosen))
    for here in every:  # what cannot be had is said before the first takes minutes
        found = get_backend(target).fingerprint(here)
        if out is None:
            continue
        for part in bundle.manifest.part_names:
            executed = bundle.manifest.precision_of(part, target, here.precision)
            plan = out / _file_name(bundle.manifest.name, part, target, found.get("gpu", ""), executed)
            for file in (plan, record_path(plan)):
                claim(file, overwrite=False)
    return [
        _made(prepare_engine(bundle, target, here, part=part, compile=compile, progress=wanted.progress))
        for here in every
        for part in bundle.manifest.part_names
    ]


def adopt_plans(path: str, plans: Sequence[Path], target: str, gpus: Sequence[str], *, device: str) -> list[Made]:
    """Take plans that were written out elsewhere into the cache; see `edgevtx.adopt`."""
    if len(gpus) > 1:
        raise InputError(f"a plan is for one GPU, and --gpu names {len(gpus)}; adopt the plans of one at a time")
    bundle = Bundle.open(path)
    options = EngineOptions(device=device, gpu=gpus[0] if gpus else "")
    return [_made(adopt_plan(bundle, plan, target, options)) for plan in plans]


def _made(prepared: PreparedEngine) -> Made:
    plan = prepared.folder / PLAN
    return Made(plan, read_plan(plan), prepared.cache_hit)


def _check_open(manifest: Manifest, asked: PlanOptions) -> None:
    """Raise `InputError` where a plan is asked to serve what the bundle's graphs have fixed."""
    batch, *shape, _ = manifest.image_input.shape
    if asked.batch and batch is not None:
        raise InputError(
            f"{manifest.name} was exported for batches of {batch}, so --batch chooses nothing; leave it out, or export "
            "with --dynamic-batch"
        )
    height, width = shape[-2:]
    if asked.frames and height is not None and width is not None:
        raise InputError(
            f"{manifest.name} takes one size, {width}x{height}, so --frame chooses nothing when it is compiled; leave "
            "it out"
        )


def write_plans(made: Sequence[Made], folder: Path, overwrite: bool) -> list[Path]:
    """Copy plans and their records: NAME[.PART].TARGET.GPU.PRECISION.plan and .json. Raises `OutputError`.

    Of a plan that has been opened, what it executes is copied too.
    """
    plans = {folder / _name(item.record): item.path for item in made}
    paths = [path for plan in plans for path in (plan, record_path(plan))]
    for path in paths:
        claim(path, overwrite)
    for plan, source in plans.items():
        try:
            disk.copy_atomic(source, plan)
            disk.copy_atomic(record_path(source), record_path(plan))
            executed_path(plan).unlink(missing_ok=True)
            if executed_path(source).is_file():
                disk.copy_atomic(executed_path(source), executed_path(plan))
        except OSError as error:
            raise OutputError(f"cannot write {plan}: {disk.explain(error)}") from error
    return paths


def _name(record: PlanRecord) -> str:
    return _file_name(record.name, record.part, record.target, record.gpu, record.precision)


def _file_name(*words: str) -> str:
    return disk.file_name(".".join(word for word in words if word)) + SUFFIX


def facts(item: Made) -> dict[str, str]:
    """What was compiled, in words."""
    record = item.record
    spent = common.seconds(record.compile_seconds)
    return {
        "plan": _name(record),
        "asked of it": str(record.asked),
        "engine": f"{record.target} {record.target_version} for {record.gpu}, {common.size(record.size)}",
        "precision": f"{record.precision} asked; computes as {common.shares(record.precision_share)}",
        "cache": "hit" if item.cache_hit else f"miss: compiled in {spent}",
        "compiling took": _memory(record),
        "golden sample": f"not replayed here, but on the device with an {record.gpu} when it first loads the bundle",
        "warnings": "\n".join(record.warnings),
    }


# -- edgevtx info PLAN -----------------------------------------------------------------------------------------


def show(path: Path, bundle: str | None, as_json: bool) -> None:
    """Print what a plan is, of its record alone.

    Raises `CompileError` where the two do not belong together, or the plan not to `bundle`, where that is given.
    """
    import msgspec

    record = read_plan(path)
    check_file(path, record)
    executed = read_executed(path, record.sha256)
    if bundle is not None:
        check_plan(record, record.target, record.target_version, record.gpu, Bundle.open(bundle).digest)
    if as_json:
        common.print_json({**record_dict(record), "executed": msgspec.to_builtins(executed)})
        return
    out = common.console()
    out.print(common.facts_table(describe(record, executed)))
    out.print()
    layers = Counter((item.kind.replace("_", " "), item.type) for item in record.layers)
    out.print(_kinds("layer", [(*key, number) for key, number in sorted(layers.items())]))
    if executed is not None:
        out.print()
        out.print(_kinds("kernel", count(executed.kernels)))


def record_dict(record: PlanRecord, *, layers: bool = True) -> dict[str, Any]:
    """The record as JSON-ready values."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(record)
    return found if layers else {key: value for key, value in found.items() if key != "layers"}


def describe(record: PlanRecord, executed: Executed | None = None) -> dict[str, Any]:
    """The record in words, and what the engine inspector told where the plan was opened."""
    ranges = [
        f"{name} from {_shape(item.min)} to {_shape(item.max)}, best at {_shape(item.opt)}"
        for profile in record.profiles
        for name, item in profile.items()
    ]
    return {
        "name": ", ".join(word for word in (record.name, record.part) if word),
        "compiled by": f"{record.target} {record.target_version} in {common.seconds(record.compile_seconds)}",
        "for": f"{record.gpu}, {record.device}" if record.device else record.gpu,
        "precision": f"{record.precision} asked; computes as {common.shares(record.precision_share)}",
        "executed as": common.shares(executed.share) if executed else "not told: not opened on its GPU yet",
        "inputs": ", ".join(map(str, record.inputs)),
        "outputs": ", ".join(map(str, record.outputs)),
        "shapes": "\n".join(ranges),
        "bundle": record.bundle[:16] or "none",
        "graph": f"{record.graph} {record.graph_sha256[:16]}",
        "size": common.size(record.size),
        "asked of it": str(record.asked),
        "workspace": f"at most {record.workspace_mb} MiB" if record.workspace_mb else "",
        "compiling took": _memory(record),
        "warnings": "\n".join(record.warnings),
    }


def _memory(record: PlanRecord) -> str:
    allowed = f" ({record.memory_mb} allowed)" if record.memory_mb else ""
    return f"{record.builder_host_mb} MiB of the host{allowed}, {record.builder_gpu_mb} MiB of the GPU"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _kinds(what: str, rows: Sequence[tuple[str, str, int]]) -> Table:
    """How many layers or kernels of each kind compute in which type."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in (f"kind of {what}", "type", f"{what}s"):
        table.add_column(name)
    for kind, type_, number in rows:
        table.add_row(kind, type_, str(number))
    return table
