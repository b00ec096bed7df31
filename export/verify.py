"""Verification: does what was exported still give the reference's answer?

Three comparisons, each on several real inputs of unlike sizes: our torch module with the reference (processor, model
and post-processing), every lowered graph with our torch module, every compiled engine with our torch module. The
verdict of a target at a precision is the outcome of all three, and of whether the inputs could have shown a fault.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from edgevtx import disk
from edgevtx.compare import compare
from edgevtx.compare.tolerance import TIE, TOLERANCES, sensitivity
from edgevtx.decode import decode, takes
from edgevtx.errors import ExportError, OutputError
from edgevtx.export.evaluate import open_model, open_plainly
from edgevtx.export.parity import compare_results
from edgevtx.export.recipe import Traceable, TraceablePart
from edgevtx.export.rehearsal import rehearse, simulate, widen
from edgevtx.export.rewrite.patterns import precisions_of
from edgevtx.export.rewrite.quantize import int8_share
from edgevtx.export.samples import Photo
from edgevtx.geometry import Geometry
from edgevtx.golden import Exchange
from edgevtx.manifest import EXACT, Check, Graph, Manifest
from edgevtx.prepared import collate
from edgevtx.preprocess import prepare_item, state_valid
from edgevtx.results import Result
from edgevtx.runtimes import get_backend
from edgevtx.runtimes.base import Array, Arrays, BuildReport, EngineOptions, Runtime
from edgevtx.runtimes.precision import LEAST_SHARES
from edgevtx.windows import middle_window, run_in_turns

DYNAMIC_BATCH = 3
"""Frames in a batch that verifies a dynamic one; `trace` traces another number."""

LOCATED = 2
"""On so many inputs the block is looked for where a graph of lower precision diverges."""

CLEAR = TIE * 2e-6
"""The gap, in standard deviations, above which a selection inside a model is no tie: another order of summation moves
such scores by a few millionths. Where 300 of 8400 candidates are kept, gaps of 1e-4 and less are usual."""


@dataclass(frozen=True)
class Sample:
    """One verification input and the torch module's outputs for it. `frame` is a clip (T,H,W,3) where the model takes
    clips.

    `clear`: no selection inside the model was a tie, so that its tensors can be compared and not only its answer.
    `answer(outputs)` is the frame's, for families whose answer takes more than decoding the outputs.
    """

    name: str
    frame: Array
    inputs: Arrays
    outputs: Arrays
    geometries: tuple[Geometry, ...]
    clear: bool
    parts: dict[str, tuple[Exchange, ...]]
    answer: Callable[[Arrays], Result] | None = None

    def exchanges(self, part: str) -> tuple[Exchange, ...]:
        """What a network was given and answered; "" is the one that takes frames."""
        return self.parts[part] if part else (Exchange(self.inputs, self.outputs),)


def run_module(network: Traceable | TraceablePart, inputs: Arrays) -> Arrays:
    """Run the torch module on numpy arrays: outputs by name."""
    import torch

    with torch.inference_mode():
        values = network.module(*(torch.from_numpy(inputs[item.name]) for item in network.inputs))
    return {item.name: value.numpy() for item, value in zip(network.outputs, values, strict=True)}


def run_parts(traceable: Traceable, outputs: Arrays) -> dict[str, tuple[Exchange, ...]]:
    """What the family's further networks answer to their examples, which they make of the first one's outputs."""
    return {
        name: tuple(Exchange(inputs, run_module(part, inputs)) for inputs in part.examples(outputs))
        for name, part in traceable.parts.items()
    }


def make_samples(traceable: Traceable, photos: Sequence[Photo]) -> Iterator[Sample]:
    """One sample a photo; a batch is filled with the photos that follow it, so that its rows differ.

    Where the graph sees windows, the sample is a photo's middle window. Raises `ExportError` where a network gives NaN
    or infinity: an engine that does so too would be no proof.
    """
    size = traceable.inputs[0].shape[0] or DYNAMIC_BATCH
    for start, photo in enumerate(photos):
        frames = [photos[(start + n) % len(photos)].frame for n in range(size)]
        pairs = [prepare_item(frame, traceable.preprocess) for frame in frames]
        inputs = collate([middle_window(image, traceable.preprocess.windows) for image, _ in pairs], traceable.inputs)
        inputs = state_valid(inputs, [geometry for _, geometry in pairs])
        outputs = run_module(traceable, inputs)
        sample = Sample(
            name=photo.name,
            frame=photo.frame,
            inputs=inputs,
            outputs=outputs,
            geometries=tuple(geometry for _, geometry in pairs),
            clear=_is_clear(traceable, inputs),
            parts=run_parts(traceable, outputs),
            answer=traceable.answer and _answer_for(traceable.answer, pairs[0][1]),
        )
        _check_finite(sample)
        yield sample


def _check_finite(sample: Sample) -> None:
    for part in ("", *sample.parts):
        for exchange in sample.exchanges(part):
            for name, array in exchange.outputs.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ExportError(
                        f"the torch module gives NaN or infinity in {name!r} for {sample.name}, so nothing can be "
                        "compared with it: the weights are damaged or overflow; give another checkpoint"
                    )


def _answer_for(answer: Callable[[Arrays, Geometry], Result], geometry: Geometry) -> Callable[[Arrays], Result]:
    return lambda outputs: answer(outputs, geometry)


def _is_clear(traceable: Traceable, inputs: Arrays) -> bool:
    return traceable.selection is None or traceable.selection(inputs["pixels"]) > CLEAR


def check_reference(traceable: Traceable, samples: Sequence[Sample], manifest: Manifest) -> Check:
    """Our answer for every sample's frame against the reference's own pipeline, which answers frames one by one.

    A batch holds one frame several times here: among unequal frames it would be padded, which changes a DETR's answer.
    Denoising is left out here, on both sides: the reference has none, and what it does to an answer is its purpose and
    no fault. The samples of the graphs and engines are denoised, and so is the golden sample that every device replays.
    """
    preprocess = msgspec.structs.replace(traceable.preprocess, denoise=None)
    checks = []
    threshold = 0.0 if takes(manifest.decode, "top_k") else None  # of items; a map's threshold hides nothing
    windows = traceable.preprocess.windows
    for sample in samples:
        outputs, geometries, clear = sample.outputs, sample.geometries, sample.clear
        if len(geometries) > 1 or preprocess != traceable.preprocess or windows is not None:
            image, geometry = prepare_item(sample.frame, preprocess)
            inputs = collate([image] * (1 if windows else len(geometries)), traceable.inputs, windows)
            inputs = state_valid(inputs, [geometry] * len(geometries))
            outputs = run_in_turns(partial(run_module, traceable), inputs, traceable.inputs[0].shape[0])
            geometries = (geometry,)
            clear = clear and _is_clear(traceable, inputs)
        if traceable.answer is not None:
            found = traceable.answer(outputs, geometries[0])
        else:
            found = decode(outputs, geometries[:1], manifest, threshold=threshold)[0]
        exact = clear and traceable.preprocess.resize != "opencv"
        checks.append(compare_results(traceable.reference(sample.frame), found, exact=exact))
    return _worst("", checks)


def check_parts(traceable: Traceable, samples: Sequence[Sample]) -> list[Check]:
    """Every further network that the reference has too against that one, on all its examples."""
    found: list[Check] = []
    for name, part in traceable.parts.items():
        if part.reference is not None:
            checks = [
                msgspec.structs.replace(check, level="reference")
                for sample in samples
                for exchange in sample.exchanges(name)
                for check in compare(part.reference(exchange.inputs), exchange.outputs, None, EXACT)
            ]
            found += _worst_of_each(f"reference of {name}: ", checks)
    return found


def measure_sensitivity(traceable: Traceable, samples: Sequence[Sample]) -> float:
    """The smallest change of any output of any network when what it is given changes, in tolerances of fp32.

    Frames change, or swap their colours, and clips run backwards. Of what a further network is given one input changes
    at a time.
    """
    first = samples[0]
    pixels = first.inputs["pixels"]
    changed = [pixels[..., ::-1], *([pixels[:, ::-1]] if traceable.preprocess.clip else [])]
    others = [run_module(traceable, {**first.inputs, "pixels": np.ascontiguousarray(item)}) for item in changed]
    others += [sample.outputs for sample in samples[1:]]
    found = [sensitivity(first.outputs, other) for other in others]
    for name, part in traceable.parts.items():
        one, other_frame = (sample.parts[name][0] for sample in samples[:2])
        variants = list(_change_each(one.inputs, other_frame.inputs))
        found += [sensitivity(one.outputs, run_module(part, inputs)) for inputs in variants] or [0.0]
    return min(found) / TOLERANCES["fp32"].values


def _change_each(inputs: Arrays, others: Arrays) -> Iterator[Arrays]:
    """`inputs` with one of them changed: each row has the next one's or, of a single row, the other frame's.

    An input that is the same in all rows and frames changes nothing, and is left out.
    """
    for name, array in inputs.items():
        changed = np.roll(array, 1, axis=0) if len(array) > 1 else others[name]
        if not np.array_equal(changed, array):
            yield {**inputs, name: changed}


def verify_graph(folder: Path, graph: Graph, samples: Sequence[Sample], manifest: Manifest) -> list[Check]:
    """The graph as it stands, whatever its target; one of lower precision as `edgevtx.export.rehearsal` has it.

    Where such a one fails, the checks name the first block that diverges.
    """
    if EXACT in graph.precisions:
        return _compare_samples(graph.file, open_plainly(folder / graph.file), samples, manifest, graph.part, EXACT)
    (precision,) = graph.precisions
    model = ir.load(folder / graph.file)
    if precision not in precisions_of(model):
        note = f"none of its operators runs in {precision}: all had to keep a higher precision"
        return [Check(name=f"{graph.file}: precision", passed=False, compared=1, error=1.0, tolerance=0.0, note=note)]
    share, least = int8_share(model) if precision == "int8" else 1.0, LEAST_SHARES[precision]
    if share < least:  # the compiler would refuse it
        note = f"{share:.0%} of its matrix products run in {precision}, and at least {least:.0%} must"
        name = f"{graph.file}: {precision} share"
        return [Check(name=name, passed=False, compared=1, error=1 - share, tolerance=1 - least, note=note)]
    run = open_model(simulate(model))
    checks = _compare_samples(graph.file, run, samples, manifest, graph.part, precision)
    if all(check.passed for check in checks):
        return checks
    feeds = [exchange.inputs for sample in samples for exchange in sample.exchanges(graph.part)]
    diverging = rehearse(widen(model), model, precision, feeds[:LOCATED]).diverging
    note = f"the first block that diverges is {diverging[0]}" if diverging else "no block alone diverges"
    return [check if check.passed else msgspec.structs.replace(check, note=note) for check in checks]


def verify_engine(
    folder: Path, graph: Graph, samples: Sequence[Sample], manifest: Manifest, options: EngineOptions
) -> tuple[list[Check], BuildReport]:
    """Compile the graph with its target's runtime here, and compare what the engine says.

    The engine lies beside `folder` for that time: the system's folder for temporary files is often in memory. Raises
    `OutputError` where it cannot be written.
    """
    backend = get_backend(graph.target)
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", dir=folder.parent) as temporary:
            report = backend.build(folder / graph.file, Path(temporary), options)
            engine = backend.open(folder / graph.file, Path(temporary), options)
            try:
                with engine.new_runtime() as runtime:
                    checks = _engine_checks(runtime, samples, manifest, graph.part, options.precision)
            finally:
                engine.close()
    except OSError as error:
        raise OutputError(
            f"cannot write the {graph.target} engine that is to be verified to {folder.parent}: {disk.explain(error)}, "
            "or choose another --out"
        ) from error
    return checks, report


def _engine_checks(
    runtime: Runtime, samples: Sequence[Sample], manifest: Manifest, part: str, precision: str
) -> list[Check]:
    def run(inputs: Arrays) -> Arrays:
        return {name: array.copy() for name, array in runtime.run(inputs).items()}

    return _compare_samples(f"{part} engine".lstrip(), run, samples, manifest, part, precision)


def _compare_samples(
    level: str,
    run: Callable[[Arrays], Arrays],
    samples: Sequence[Sample],
    manifest: Manifest,
    part: str,
    precision: str,
) -> list[Check]:
    """Compare all samples; of each kind of check the worst one is kept, with the number compared added up."""
    checks: list[Check] = []
    decode, noise = manifest.decode_of(part), manifest.noise.get(part)
    for sample in samples:
        for exchange in sample.exchanges(part):
            outputs = run(exchange.inputs)
            found = compare(exchange.outputs, outputs, decode, precision, noise)
            checks += [check for check in found if sample.clear or check.level != "values"]
            if sample.answer and not part and precision != EXACT:  # whose values alone say enough
                answer = compare_results(sample.answer(exchange.outputs), sample.answer(outputs), exact=False)
                checks.append(msgspec.structs.replace(answer, name="task: answers", level="task"))
    return _worst_of_each(f"{level}: ", checks)


def _worst_of_each(prefix: str, checks: Sequence[Check]) -> list[Check]:
    kinds: dict[str, list[Check]] = {}
    for check in checks:
        kinds.setdefault(check.name, []).append(check)
    return [_worst(prefix, of_kind) for of_kind in kinds.values()]


def _worst(prefix: str, checks: Sequence[Check]) -> Check:
    worst = max(checks, key=lambda check: (not check.passed, check.error is None, check.error or 0.0))
    return msgspec.structs.replace(
        worst,
        name=prefix + worst.name,
        compared=sum(check.compared for check in checks),
        ties=sum(check.ties for check in checks),
    )
