"""`load` opens a bundle on this device; the `Predictor` that it returns turns frames into results."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgevtx.bundle import Bundle
from edgevtx.choose import choose_precision, choose_runtime
from edgevtx.decode import check_finite, decode
from edgevtx.decode.knn import Bank
from edgevtx.engines import PreparedEngine
from edgevtx.errors import InputError
from edgevtx.gpu_frames import RUNTIMES, Resize, are_for_gpu, check_manifest, place
from edgevtx.manifest import Manifest, badness
from edgevtx.prepared import Prepared, collate
from edgevtx.preprocess import prepare_item
from edgevtx.results import Features, Result
from edgevtx.rules import PromptDecode
from edgevtx.runtimes.base import Array, Arrays, Engine, EngineOptions, OnGpu
from edgevtx.selftest import accept, open_proven
from edgevtx.windows import run_in_turns

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """What was really loaded. Times in seconds; `precision_share` is read back from the compiled engine.

    Of a bundle of several networks `verdict` is the worst of theirs, times are those of all, the rest is that of the
    one that takes frames. `part_precisions` names the others that run in another precision than that one.
    `executed_share` is as `precision_share`, of the kernels that TensorRT's inspector tells of, empty without one.
    """

    name: str
    family: str
    task: str
    runtime: str
    runtime_version: str
    device: str
    precision: str
    precision_share: dict[str, float]
    graph: str
    input_shape: tuple[int | None, ...]
    labels: int
    verdict: str
    cache_hit: bool
    load_seconds: float
    compile_seconds: float
    part_precisions: dict[str, str] = field(default_factory=dict)
    executed_share: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass
class Predictor:
    """A loaded model: `model(frame)` gives a result in pixels of the frame.

    Serves one thread at a time; `clone()` gives another predictor over the same weights. `stages` holds the last
    call's times in ms: "preprocess", "denoise" where the bundle does, "engine" and "decode". Use it in a `with` block,
    or `close()` it, to release the device.
    """

    manifest: Manifest
    info: ModelInfo
    engine: Engine
    parts: dict[str, Engine] = field(default_factory=dict)
    bank: Bank | None = None
    folder: Path | None = None  # where the bundle's files lie
    stages: dict[str, float] = field(default_factory=dict)
    resize: Resize = field(default="host", kw_only=True)

    def __post_init__(self) -> None:
        self._runtime = self.engine.new_runtime()
        self._part_runtimes = {name: engine.new_runtime() for name, engine in self.parts.items()}
        self._owns_engines = True

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, by class id."""
        return self.manifest.labels

    @property
    def batch_size(self) -> int | None:
        """How many frames the engine takes at once; None where it takes any number, up to `engine.most_rows`."""
        return self.manifest.image_input.shape[0]

    def __call__(
        self,
        frame: Array | OnGpu,
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        color: Literal["bgr", "rgb"] = "bgr",
        roi: tuple[int, int, int, int] | None = None,
        rotation: int = 0,
    ) -> Result:
        """Answer one frame (H,W,3) uint8, of the host, or where the engine runs on a GPU also of its memory.

        A frame on the GPU offers `__cuda_array_interface__` (torch, CuPy) and is as large as the network's input,
        unless the GPU resizes (see `load`). Between `prepare` and `infer` it is kept, and must not be written to.
        `threshold`: detections must score above it; `top_k`: at most so many items, no more than the graph was
        exported with; `roi`: x0, y0, x1, y1 in px, the only part looked at; `rotation`: degrees clockwise (0, 90,
        180, 270) that make the frame upright. Results are in pixels of the frame as given. Raises `InputError`.
        """
        prepared = self.prepare(frame, color=color, roi=roi, rotation=rotation)
        outputs = self.infer(prepared, threshold=threshold)
        return self.decode(outputs, prepared, threshold=threshold, top_k=top_k)[0]

    def batch(
        self,
        frames: Sequence[Array | OnGpu | Sequence[Array]],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        color: Literal["bgr", "rgb"] = "bgr",
    ) -> list[Result]:
        """Answer any number of frames (or clips, where the model takes those), as many at once as the engine takes.

        Where the input's size follows the frame, frames of unequal size are padded as the reference pads a batch, those
        that go in at once to each other's size. Frames on a GPU need `resize="gpu"` to go in together. Results are in
        the order of the frames, `stages` those of all.
        """
        size = self.batch_size or self.engine.most_rows or max(len(frames), 1)
        results: list[Result] = []
        stages = dict.fromkeys(("preprocess", "engine", "decode"), 0.0)
        for start in range(0, len(frames), size):
            prepared = self._prepare_many(frames[start : start + size], color=color)
            outputs = self.infer(prepared, threshold=threshold)
            results += self.decode(outputs, prepared, threshold=threshold, top_k=top_k)
            stages = {name: stages.get(name, 0.0) + spent for name, spent in self.stages.items()}
        self.stages = stages
        return results

    def push(self, frame: Array, time: float | None = None, **options: Any) -> Result | None:
        """The next frame of a stream, for models of clips (`edgevtx.clip.ClipPredictor`); others raise `InputError`."""
        raise InputError(f"{self.info.name} answers single frames and keeps none; call it with a frame: model(frame)")

    # -- the three steps, for pipelines that overlap them on threads ---------------------------------------------

    def prepare(
        self,
        frame: Array | OnGpu,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
        roi: tuple[int, int, int, int] | None = None,
        rotation: int = 0,
        time: float | None = None,
    ) -> Prepared:
        """Resize one frame to the engine's input. Touches no engine: safe on another thread than `infer`.

        `time` is the frame's own, in seconds; only models of clips read it.
        """
        return self._prepare_many([frame], color=color, roi=roi, rotation=rotation)

    def infer(self, prepared: Prepared, *, threshold: float | None = None) -> Arrays:
        """Run the engine: outputs by name, as the manifest lists them.

        `threshold` is the one that `decode` will be given, for models that ask many questions of a frame and keep only
        what is good enough (see `edgevtx.prompt`).
        """
        start = perf_counter()
        outputs = run_in_turns(self._runtime.run, prepared.inputs, self.batch_size, self.engine.most_rows)
        self.stages = {**prepared.stages, "engine": 1e3 * (perf_counter() - start), "decode": 0.0}
        return outputs

    def features(
        self,
        frame: Array | OnGpu,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
        roi: tuple[int, int, int, int] | None = None,
        rotation: int = 0,
    ) -> Features:
        """The features of a frame, also of a bundle that was fitted to answer with classes.

        Raises `InputError` where the bundle is no backbone.
        """
        rule = self.manifest.features
        if rule is None:
            raise InputError(f"{self.manifest.name} ({self.manifest.task}) gives no features; load a backbone's bundle")
        prepared = self.prepare(frame, color=color, roi=roi, rotation=rotation)
        outputs = self.infer(prepared)
        found = decode(outputs, prepared.geometries, msgspec.structs.replace(self.manifest, decode=rule))[0]
        assert isinstance(found, Features)
        return found

    def run_part(self, part: str, inputs: Arrays) -> Arrays:
        """Run a further network of the bundle: outputs by name, as `manifest.parts` lists them."""
        outputs = self._part_runtimes[part].run(inputs)
        check_finite(outputs)
        return outputs

    def decode(
        self, outputs: Arrays, prepared: Prepared, *, threshold: float | None = None, top_k: int | None = None
    ) -> list[Result]:
        """Turn outputs into one result a frame, in pixels of that frame. Touches no engine."""
        start = perf_counter()
        results = decode(outputs, prepared.geometries, self.manifest, threshold=threshold, top_k=top_k, bank=self.bank)
        self.stages["decode"] = 1e3 * (perf_counter() - start)
        return results

    def clone(self) -> Self:
        """Another predictor over the same weights, for another thread. The first one must outlive it."""
        other = dataclasses.replace(self, stages={})
        other._owns_engines = False
        return other

    def close(self) -> None:
        """Release the engines and their device memory; closing twice is allowed."""
        for runtime in (self._runtime, *self._part_runtimes.values()):
            runtime.close()
        if self._owns_engines:
            for engine in (self.engine, *self.parts.values()):
                engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare_many(self, frames: Sequence[Array | OnGpu | Sequence[Array]], **options: Any) -> Prepared:
        start = perf_counter()
        if self.engine.on_gpu and are_for_gpu(frames, self.resize):
            placed, geometries = place(frames, self.manifest, self.resize, **options)
            return Prepared(placed, geometries, 1e3 * (perf_counter() - start))
        times: dict[str, float] = {}
        rule = self.manifest.preprocess
        pairs = [prepare_item(frame, rule, times=times, **options) for frame in frames]
        inputs = collate([image for image, _ in pairs], self.manifest.inputs, rule.windows)
        spent, denoised = 1e3 * (perf_counter() - start), times.get("denoise")
        return Prepared(inputs, tuple(geometry for _, geometry in pairs), spent - (denoised or 0.0), denoised)


def load(
    path: str | Path,
    *,
    runtime: str = "auto",
    device: str = "CPU",
    precision: str | None = None,
    threads: int | None = None,
    providers: Sequence[str] = (),
    compile: Literal["auto", "never", "force"] = "auto",  # noqa: A002 -- the word that users know
    allow_unverified: bool = False,
    resize: Resize = "host",
    progress: Callable[[str], None] | None = None,
) -> Predictor:
    """Open a bundle (a directory or its .vtx file) on this device.

    `runtime`: "openvino", "onnxruntime", ..., or "auto", the first of `edgevtx.choose.AUTO_ORDER` that can run the
    bundle here. `device`: the runtime's name for it. `precision`: one that the bundle has a verdict for; None takes the
    one it recommends for the runtime, or the next where the device does not have that. `providers`: ONNX Runtime's, in
    order. `compile`: "never" raises `CompileError` instead of compiling on a cache miss, "force" compiles again.
    `resize`: "gpu" has TensorRT's GPU resize frames, as Pillow would; frames must then stay as they are until they are
    answered.

    An engine that has not yet proven itself on this device replays the bundle's golden sample first. A further network
    that does not pass in this precision runs in fp32 where it passes there, and `info` names it. Raises
    `BundleError`, `RuntimeUnavailableError`, `CompileError`, and `VerificationError` where the verdict is
    "failed" or "insensitive" or the replay fails, unless `allow_unverified`; `InputError` where the GPU cannot resize
    for this bundle or runtime.
    """
    start = perf_counter()
    bundle = Bundle.open(path)
    if resize not in ("host", "gpu"):
        raise InputError(f'resize must be "host" or "gpu", but got {resize!r}')
    if resize == "gpu":
        check_manifest(bundle.manifest, resize)
    options = EngineOptions(device=device, threads=threads, providers=tuple(providers))
    target = choose_runtime(bundle.manifest, runtime, precision, options, allow_unverified=allow_unverified)
    if resize == "gpu" and target not in RUNTIMES:
        raise InputError(
            f"resize='gpu' was asked for, but {target} on {device} takes frames of the host alone; use TensorRT or "
            "TensorRT-RTX, or leave it out"
        )
    precision = choose_precision(bundle.manifest, target, precision, options, allow_unverified=allow_unverified)
    options = dataclasses.replace(options, precision=precision)
    prepared, engines, verdicts = [], {}, []
    with contextlib.ExitStack() as opened:
        for part in bundle.manifest.part_names:
            found = open_proven(bundle, target, options, part, compile=compile, progress=progress)
            engines[part] = opened.enter_context(contextlib.closing(found.engine))
            verdicts.append(accept(bundle, found, precision, allow_unverified=allow_unverified))
            prepared.append(found.prepared)
        engine = engines.pop("")
        info = _info(bundle.manifest, prepared, precision, max(verdicts, key=badness), perf_counter() - start)
        info = dataclasses.replace(info, executed_share=dict(engine.executed_share))
        kind = _class_for(bundle.manifest)
        predictor = kind(bundle.manifest, info, engine, engines, bundle.bank(), bundle.root, resize=resize)
        if resize == "gpu":  # its kernel is compiled, and seen to be right, before the first frame comes
            opened.callback(predictor.close)
            predictor.infer(predictor.prepare(bundle.golden().frame))
            predictor.stages = {}
        opened.pop_all()  # from here on the predictor closes them
    log.info("%s: %s %s on %s at %s", path, target, engine.target_version, engine.device, precision)
    return predictor


def _class_for(manifest: Manifest) -> type[Predictor]:
    """The predictor of a bundle: a class of its own where one frame alone is no question."""
    if isinstance(manifest.decode, PromptDecode):
        from edgevtx.prompt import PromptPredictor

        return PromptPredictor
    if manifest.preprocess.clip is not None:
        from edgevtx.clip import ClipPredictor

        return ClipPredictor
    return Predictor


def _info(
    manifest: Manifest, prepared: Sequence[PreparedEngine], precision: str, verdict: str, seconds: float
) -> ModelInfo:
    report = prepared[0].record.report
    return ModelInfo(
        name=manifest.name,
        family=manifest.family,
        task=manifest.task,
        runtime=report.target,
        runtime_version=report.target_version,
        device=report.device,
        precision=precision,
        precision_share=dict(report.precision_share),
        graph=prepared[0].graph.file,
        input_shape=manifest.image_input.shape,
        labels=len(manifest.labels),
        verdict=verdict,
        cache_hit=all(item.cache_hit for item in prepared),
        load_seconds=round(seconds, 4),
        compile_seconds=round(sum(item.record.report.compile_seconds for item in prepared), 4),
        part_precisions={
            item.graph.part: item.record.precision for item in prepared if item.record.precision != precision
        },
    )
