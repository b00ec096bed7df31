"""Plans that were compiled elsewhere, taken into this device's cache: compiled on a workstation, shipped, run here."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edgevtx.bundle import Bundle
from edgevtx.engines import PreparedEngine, prepare_engine
from edgevtx.errors import CompileError
from edgevtx.runtimes import get_backend
from edgevtx.runtimes.base import BuildReport, EngineOptions
from edgevtx.runtimes.plan import PLAN, PlanRecord, check_file, check_plan, read_plan, record_path


def adopt_plan(bundle: Bundle, plan: Path, target: str, options: EngineOptions) -> PreparedEngine:
    """Put a plan and its record into the cache, as if they had been compiled here.

    `options` say the device, or its `gpu` where it is not here; the rest is the record's. Whoever then loads the bundle
    replays its golden sample on it, as on any engine. Raises `InputError` where the record is missing, `CompileError`
    where plan or record are damaged or of another target, version, GPU or bundle, `RuntimeUnavailableError` where
    runtime or device are not here, and `OutputError` where the cache is full.
    """
    record = read_plan(plan)
    check_file(plan, record)
    backend = get_backend(target)
    options = replace(options, precision=record.precision, plan=record.asked)
    facts = backend.fingerprint(options)
    check_plan(record, target, backend.probe().version, facts.get("gpu", ""), bundle.digest)
    _check_graph(record, bundle, plan)
    if record.device and record.device != (here := facts.get("device name", "no GPU")):
        raise CompileError(
            f"the plan {plan} was compiled on {record.device}, and here is {here}: TensorRT "
            "chose its kernels for the one by measuring; compile the bundle here"
        )

    def copy(graph: Path, folder: Path, options: EngineOptions) -> BuildReport:
        if graph.name != record.graph:
            raise CompileError(
                f"the plan {plan} was compiled from {record.graph}, and here {graph.name} would be: this edgevtx knows "
                "of other faults of the compiler than the one that made the plan; compile the bundle again"
            )
        shutil.copyfile(plan, folder / PLAN)
        shutil.copyfile(record_path(plan), record_path(folder / PLAN))
        return record.report()

    return prepare_engine(bundle, target, options, part=record.part, compile="force", made=copy)


def _check_graph(record: PlanRecord, bundle: Bundle, plan: Path) -> None:
    """Raise `CompileError` where a record says of its graph what the bundle does not."""
    manifest = bundle.manifest
    hashes = {item.path: item.sha256 for item in manifest.files}
    here = manifest.parts.get(record.part, manifest)
    compared = {
        "the model": (record.name, manifest.name),
        "the network": (record.part in manifest.part_names, True),
        "the graph": (record.graph_sha256, hashes.get(record.graph, record.graph_sha256)),  # else said below
        "inputs": ({(item.name, item.dtype) for item in record.inputs}, {(i.name, i.dtype) for i in here.inputs}),
        "outputs": ({item.name for item in record.outputs}, {item.name for item in here.outputs}),
    }
    if wrong := [what for what, (stated, known) in compared.items() if stated != known]:
        raise CompileError(
            f"the record of {plan} does not say of {', '.join(wrong)} what the bundle says: it was changed; compile "
            "the bundle again"
        )
