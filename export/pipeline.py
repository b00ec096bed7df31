"""From a checkpoint to a verified bundle: build, trace, lower, verify, pack."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from time import perf_counter

import msgspec
import onnx_ir as ir

from edgevtx import disk
from edgevtx.bundle import check_out, write_bundle
from edgevtx.compare import content
from edgevtx.compare.tolerance import TOLERANCES
from edgevtx.errors import ExportError, InputError, OutputError
from edgevtx.export.judge import Facts, is_near, judge, with_noise
from edgevtx.export.ladder import Evidence, from_evidence
from edgevtx.export.pack import write_graphs
from edgevtx.export.recipe import BuildOptions, Source, Traceable, get_recipe
from edgevtx.export.rewrite import VARIANTS, LoweredGraph, lower
from edgevtx.export.samples import load_clips, load_photos
from edgevtx.export.trace import trace_all
from edgevtx.export.verify import Sample, check_parts, check_reference, make_samples, measure_sensitivity
from edgevtx.golden import GOLDEN, Golden, write_golden
from edgevtx.manifest import EXACT, REFUSED, Graph, Manifest, Part, Provenance, Verdict
from edgevtx.rules import Denoise

log = logging.getLogger(__name__)

TARGETS = ("openvino", "onnxruntime")
"""What is exported for when the user names no target."""

TOOLS = (
    "edgevtx",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "numpy",
    "pillow",
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What the user asks of an export beside the module's own options (`build`).

    `precisions` in order of preference: the first that passes on a target is the one it recommends; int8 is recommended
    only where it is the first.
    `denoise` is done before the network (see `edgevtx.denoise`); no checkpoint's own processor does it.
    `keep_failed` packs what failed too, marked; `all_or_nothing` packs nothing if anything failed.
    """

    targets: tuple[str, ...] = TARGETS
    precisions: tuple[str, ...] = ("fp32",)
    build: BuildOptions = field(default_factory=BuildOptions)
    denoise: Denoise | None = None
    images: Path | None = None
    name: str = ""
    licence: str = ""
    source: str = ""
    intended_use: str = ""
    keep_failed: bool = False
    all_or_nothing: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What an export did. `bundle` is None where nothing was packed; `refused` lists what was asked and not passed.

    `skipped` names the pairs of target and precision that no such target has, such as bf16 on ONNX Runtime.
    `seconds` are by stage.
    """

    bundle: Path | None
    manifest: Manifest
    refused: tuple[Verdict, ...]
    skipped: tuple[str, ...]
    seconds: dict[str, float]


def export(
    family: str,
    checkpoint: Source,
    out: Path,
    options: ExportOptions,
    *,
    progress: Progress = lambda stage: None,
) -> ExportReport:
    """Export a checkpoint as a verified bundle at `out`.

    Nothing that failed verification is packed unless asked for, and nothing half is ever left at `out`. Raises
    `InputError`, `CheckpointError`, `ExportError`, `OutputError`.
    """
    pairs, skipped = _pairs(options.targets, options.precisions)
    recipe = get_recipe(family)
    check_out(out, options.overwrite)  # before minutes of work, and again when the bundle is written
    clock = _Clock(progress)
    with _work_folder(out) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        clock.start("build")
        traceable = recipe.build(checkpoint, options.build)
        clip = traceable.preprocess.clip  # how many frames are needed is the checkpoint's to say
        photos = load_photos(options.images, options.build.frame) if clip is None else load_clips(options.images, clip)
        traceable.preprocess = msgspec.structs.replace(traceable.preprocess, denoise=options.denoise)
        clock.start("trace")
        models = trace_all(traceable)
        clock.start("samples")
        samples = tuple(make_samples(traceable, photos))
        clock.start("lower")
        lowered = {part: _lower(part, model, traceable, samples, options) for part, model in models.items()}
        graphs = write_graphs(lowered, folder)
        _copy_files(traceable, folder)
        clock.start("reference")
        manifest = _manifest(traceable, checkpoint, graphs, options, out)
        sensitivity = measure_sensitivity(traceable, samples)
        facts = Facts(
            samples=samples,
            manifest=manifest,
            references=(check_reference(traceable, samples, manifest), *check_parts(traceable, samples)),
            sensitivity=sensitivity,
            apart=sensitivity * TOLERANCES[EXACT].values,
        )
        _write_golden(folder, samples, manifest)

        def judge_all(facts: Facts) -> list[Verdict]:
            verdicts = []
            for target, precision in pairs:
                clock.start(f"verify {target} {precision}")
                verdicts.append(judge(folder, target, precision, graphs, facts))
            return verdicts

        verdicts = judge_all(facts)
        if any(map(is_near, verdicts)):
            facts = with_noise(facts, traceable)
            if facts.manifest.noise:  # all are judged by the same limits
                verdicts = judge_all(facts)
        clock.start("pack")
        manifest, refused = _settle(folder, facts.manifest, tuple(verdicts), options)
        nothing = not manifest.graphs or (options.all_or_nothing and refused)
        path = None if nothing else write_bundle(folder, manifest, out, overwrite=options.overwrite)
    return ExportReport(path, manifest, refused, skipped, clock.stop())


class _Clock:
    """Times the stages and tells the caller which one begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds, self._stage = progress, dict[str, float](), ""
        self._since = perf_counter()

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, perf_counter()
        self._progress(stage)

    def stop(self) -> dict[str, float]:
        if self._stage:
            self._seconds[self._stage] = round(perf_counter() - self._since, 3)
        self._stage = ""
        return self._seconds


def _pairs(targets: Sequence[str], precisions: Sequence[str]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Targets x precisions, less those that a target does not have; each target and precision must occur."""
    made = {target: list(dict.fromkeys(chain(*(item.serves for item in VARIANTS[target])))) for target in VARIANTS}
    asked_for = [(target, precision) for target in targets for precision in precisions]
    kept = [(target, precision) for target, precision in asked_for if precision in made.get(target, ())]
    skipped = tuple(f"{target} {precision}" for target, precision in asked_for if (target, precision) not in kept)
    for asked, at, kind in ((targets, 0, "target"), (precisions, 1, "precision")):
        for name in asked:
            if not any(pair[at] == name for pair in kept):
                known = "; ".join(f"{target} at {', '.join(names)}" for target, names in made.items())
                raise InputError(
                    f"{kind} {name!r} fits none of what was asked ({', '.join(targets)} at {', '.join(precisions)}); "
                    f"leave it out, or choose of {known}"
                )
    return kept, skipped


def _lower(
    part: str, model: ir.Model, traceable: Traceable, samples: Sequence[Sample], options: ExportOptions
) -> list[LoweredGraph]:
    """A network's graphs for all targets, in the precisions asked for and those that it may have to keep."""
    network = traceable.parts[part] if part else traceable
    clear = [sample for sample in samples if sample.clear] or samples
    exchanges = [exchange for sample in clear for exchange in sample.exchanges(part)]
    # verification shall see frames that no scale was chosen on, with all that was asked of them
    calibration = [exchange.inputs for sample in clear[::2] for exchange in sample.exchanges(part)]
    give_types = from_evidence(Evidence(exchanges, network.decode, calibration))
    precisions = {*options.precisions, *([EXACT] if part else [])}
    return [graph for target in options.targets for graph in lower(model, target, precisions, give_types)]


def _work_folder(out: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder beside `out`, so that the finished bundle is renamed and not copied."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise OutputError(f"cannot write to {out.parent}: {disk.explain(error)}, or choose another --out") from None


def _manifest(
    traceable: Traceable, checkpoint: Source, graphs: tuple[Graph, ...], options: ExportOptions, out: Path
) -> Manifest:
    return Manifest(
        name=options.name or out.stem,
        family=traceable.family,
        task=traceable.task,
        inputs=traceable.inputs,
        outputs=traceable.outputs,
        preprocess=traceable.preprocess,
        decode=traceable.decode,
        parts={
            name: Part(inputs=part.inputs, outputs=part.outputs, decode=part.decode)
            for name, part in traceable.parts.items()
        },
        labels=traceable.labels,
        graphs=graphs,
        verdicts=(),
        recommended={},
        provenance=Provenance(
            checkpoint=checkpoint.name,
            checkpoint_sha256=checkpoint.sha256,
            licence=options.licence or checkpoint.licence,
            source=options.source,
            intended_use=options.intended_use,
        ),
        tools=_tools(),
        notes=(*checkpoint.notes, *traceable.notes),
    )


def _tools() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _copy_files(traceable: Traceable, folder: Path) -> None:
    for name, source in traceable.files.items():
        try:
            shutil.copyfile(source, folder / name)
        except OSError as error:
            raise OutputError(f"cannot copy {source} into the bundle: {disk.explain(error)}") from error


def _write_golden(folder: Path, samples: tuple[Sample, ...], manifest: Manifest) -> None:
    """Keep a sample whose tensors can be compared, since the device has no second chance to choose: the one that has
    most to compare."""
    clear = (sample for sample in samples if sample.clear)
    golden = max(clear, key=lambda sample: content(sample.outputs, manifest.decode), default=None)
    if golden is None:
        raise ExportError(
            "in every image some selection inside the model is a tie, so no golden sample can be chosen; "
            "give other images with --images"
        )
    # of a part the first, whose shapes are the usual ones, if it shows anything
    parts = {
        name: max(pairs, key=lambda pair: content(pair.outputs, manifest.parts[name].decode) > 0)
        for name, pairs in golden.parts.items()
    }
    try:
        write_golden(folder / GOLDEN, Golden(golden.frame, golden.inputs, golden.outputs, parts))
    except OSError as error:
        raise OutputError(f"cannot write the golden sample to {folder}: {disk.explain(error)}") from error


def _settle(
    folder: Path, manifest: Manifest, verdicts: tuple[Verdict, ...], options: ExportOptions
) -> tuple[Manifest, tuple[Verdict, ...]]:
    """Drop the graphs and precisions that failed, unless they are to be kept, and recommend what passed.

    A further network keeps its graph for `EXACT`, in the same file or in one of its own over the same weights: on a
    device where its engine fails in another precision, it runs in that.
    """
    refused = tuple(item for item in verdicts if item.status in REFUSED)
    served = {
        (item.target, part, item.parts.get(part, item.precision))
        for item in verdicts
        if options.keep_failed or item not in refused
        for part in manifest.part_names
    }
    served |= {(target, part, EXACT) for target, part, _ in served if part}
    graphs = []
    for graph in manifest.graphs:
        left = tuple(precision for precision in graph.precisions if (graph.target, graph.part, precision) in served)
        if left:
            graphs.append(msgspec.structs.replace(graph, precisions=left))
    files = {graph.file for graph in graphs}
    for graph in manifest.graphs:
        if graph.file not in files:
            (folder / graph.file).unlink(missing_ok=True)
    recommended: dict[str, str] = {}
    for verdict in verdicts:
        # another precision may fail for its tighter limit, which is no reason for int8
        if verdict not in refused and (verdict.precision != "int8" or options.precisions[0] == "int8"):
            recommended.setdefault(verdict.target, verdict.precision)
    settled = msgspec.structs.replace(manifest, graphs=tuple(graphs), verdicts=verdicts, recommended=recommended)
    return settled, refused
