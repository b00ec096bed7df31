"""The predictor of promptable models such as SAM: a frame is set once, and then asked about.

What is asked of every frame, and how a frame is looked at for it, is one value: a `Question`, or `Everything`. It goes
with the prepared frame, so that every way to a result (a call, a batch, a pipeline) comes to the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevtx.decode import check_finite, check_options
from edgevtx.decode.everything import Everything, best_of, crop_boxes, keep_stable, point_grid
from edgevtx.decode.prompt import decode_prompts
from edgevtx.errors import BundleError, InputError
from edgevtx.geometry import Geometry, plan
from edgevtx.predictor import Predictor
from edgevtx.prepared import Prepared
from edgevtx.preprocess import check_frame, state_valid
from edgevtx.prompts import Prompts, check_inside, encode_prompts, read_prompts
from edgevtx.results import Masks, Result
from edgevtx.rules import PromptDecode
from edgevtx.runtimes.base import Array, Arrays, OnGpu
from edgevtx.tokens import Tokenizer
from edgevtx.windows import run_in_turns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgevtx.prepared import FrameOptions

PROMPTS_AT_ONCE = 16
"""Prompts in one run of the decoder: each takes 16 MB an activation at 1024 px."""


@dataclass(frozen=True)
class Scene:
    """A frame that was looked at: its `embedding` (1,C,h,w) and its place in the input."""

    embedding: Array
    geometry: Geometry


@dataclass(frozen=True)
class Question:
    """Prompts, and `multimask` as of `PromptPredictor.predict`; `texts` (N,C) float32 are embedded, None without."""

    prompts: Prompts
    multimask: bool = True
    texts: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Views(Prepared):
    """Frames made ready: a row of the inputs, and a geometry, for each view of a frame, whole or a crop.

    `frames` has the number of each view's frame, `layers` its layer of crops; the first view of a frame, in layer 0,
    is all of it that is looked at.
    """

    asked: Question | Everything
    frames: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass
class PromptPredictor(Predictor):
    """A loaded SAM: `model.set_image(frame)` once, then `model.predict(points=[[x, y]])` as often as wanted.

    `model(frame)` segments everything, as `settings` says, or what `question` asks of every frame where that is set
    (see `ask`; None ends it). `everything` is None where the manifest says how. Serves one thread at a time; a clone
    has no image yet.
    """

    everything: Everything | None = None
    question: Question | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._scene: Scene | None = None

    @property
    def rule(self) -> PromptDecode:
        """What the manifest says of the masks."""
        rule = self.manifest.decode
        if not isinstance(rule, PromptDecode):
            raise InputError(f"{self.info.name} takes no prompts; open it with edgevtx.load")
        return rule

    @property
    def settings(self) -> Everything:
        """How everything is looked for: as `everything` says, or the manifest."""
        return self.everything or Everything.of(self.rule)

    # -- a frame, then prompts -----------------------------------------------------------------------------------

    def set_image(self, frame: Array, **options: Unpack[FrameOptions]) -> None:
        """Look at a frame (H,W,3) uint8, which the next prompts are about; color, roi, rotation as of `Predictor`."""
        self._scene = None  # a frame that cannot be used must not leave the one before it
        view = self._prepare_view(frame, options)
        start = perf_counter()
        self._scene = Scene(self._embed(view.inputs, None)[:1], view.geometries[0])
        self.stages = {**view.stages, "engine": 1e3 * (perf_counter() - start), "decode": 0.0}

    def predict(
        self,
        points: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        multimask: bool = True,
    ) -> Masks:
        """The masks for one prompt, or for N at once, in px of the frame that was set.

        `points` (K,2) x, y of one prompt, (N,K,2), or a list of N arrays (K,2); `point_labels` alike without the last
        axis: 1 on the object (the default), 0 not on it; `boxes` (4,) or (N,4) xyxy, which may reach beyond the frame
        as a detector's do; `mask` (h,w) or (N,h,w), logits of an earlier answer (`found.low_res_logits[prompt, mask]`);
        `text` one or N, where the model takes texts, of as many tokens as it reads (CLIP: 77) or fewer. What is given
        together belongs together, prompt by prompt. `multimask`: the three readings of each prompt, or the one for
        prompts that leave no doubt. Raises `InputError`, also before `set_image`.
        """
        if self._scene is None:
            raise InputError("there is no image to ask about; call set_image(frame) before predict")
        start = perf_counter()
        question = self._read(points, point_labels, boxes, mask, text, multimask=multimask)
        check_inside(question.prompts, self._scene.geometry)
        outputs = self._answer(self._scene, question)
        middle = perf_counter()
        found = decode_prompts(outputs, self._scene.geometry, self.rule, multimask=multimask)
        self.stages = {
            "preprocess": 0.0,
            "engine": 1e3 * (middle - start),
            "decode": 1e3 * (perf_counter() - middle),
        }
        return found

    def ask(
        self,
        points: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        multimask: bool = True,
    ) -> None:
        """Prompt every frame of `model(frame)`, of a batch and of a pipeline with this, instead of segmenting
        everything; `model.question = None` ends it. The arguments are those of `predict`.

        A text is embedded here, once. `InputError` for a point or a box outside a frame is raised when that one comes.
        """
        self.question = self._read(points, point_labels, boxes, None, text, multimask=multimask)

    def segment_everything(
        self,
        frame: Array,
        settings: Everything | None = None,
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        **options: Unpack[FrameOptions],
    ) -> Masks:
        """Masks of all that is found in a frame with grids of points, best first: N masks, M is 1.

        `settings` (None: this predictor's) say how; see `Everything`. `threshold` takes the place of their
        `iou_threshold`; `top_k`: at most so many masks; color, roi, rotation as of `Predictor`. With crop layers the
        logits of a mask are those of the crop that it was found in. Raises `InputError`.
        """
        prepared = self._prepare_views([frame], settings or self.settings, options)
        outputs = self.infer(prepared, threshold=threshold)
        (found,) = self.decode(outputs, prepared, threshold=threshold, top_k=top_k)
        assert isinstance(found, Masks)
        return found

    # -- the three steps of a call and of a pipeline -------------------------------------------------------------

    def infer(self, prepared: Prepared, *, threshold: float | None = None) -> Arrays:
        """The decoder's answers, of everything only those that may be kept: `low_res_logits`, `iou`, and `view` (n,),
        the number of the view that each row belongs to."""
        start = perf_counter()
        views = _views(prepared)
        asked = self._limit(views.asked, threshold)
        embeddings = self._embed(views.inputs, len(set(views.frames)))
        rows: list[Arrays] = []
        for number, (geometry, layer) in enumerate(zip(views.geometries, views.layers, strict=True)):
            scene = Scene(embeddings[number : number + 1], geometry)
            found = self._answer(scene, asked) if isinstance(asked, Question) else self._search(scene, asked, layer)
            rows.append({**found, "view": np.full(len(found["iou"]), number)})
        self.stages = {**prepared.stages, "engine": 1e3 * (perf_counter() - start), "decode": 0.0}
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def decode(
        self, outputs: Arrays, prepared: Prepared, *, threshold: float | None = None, top_k: int | None = None
    ) -> list[Result]:
        """One result a frame. Of everything, masks of a predicted IoU above `threshold`, which `infer` was given too.

        Raises `InputError` for a `threshold` or `top_k` where prompts are answered: each of them has its answer.
        """
        start = perf_counter()
        views = _views(prepared)
        asked = self._limit(views.asked, threshold, top_k)
        found: dict[int, list[Masks]] = {number: [] for number in views.frames}
        for view, (number, geometry) in enumerate(zip(views.frames, views.geometries, strict=True)):
            rows = outputs["view"] == view
            mine = {name: outputs[name][rows] for name in ("low_res_logits", "iou")}
            if isinstance(asked, Question):
                masks = decode_prompts(mine, geometry, self.rule, multimask=asked.multimask)
            else:
                whole = views.geometries[views.frames.index(number)].roi
                masks = keep_stable(mine, geometry, self.rule, asked, whole)
            found[number].append(masks)
        results: list[Result] = []
        for masks_of in found.values():
            results.append(masks_of[0] if isinstance(asked, Question) else best_of(masks_of, asked)[:top_k])
        self.stages["decode"] = 1e3 * (perf_counter() - start)
        return results

    def _limit(
        self, asked: Question | Everything, threshold: float | None, top_k: int | None = None
    ) -> Question | Everything:
        """What is asked, with the caller's threshold."""
        check_options(self.rule, threshold, top_k)
        if isinstance(asked, Question):
            if (threshold, top_k) != (None, None):
                raise InputError("the answers to a prompt are not cut by threshold or top_k; leave them out")
            return asked
        return asked if threshold is None else dataclasses.replace(asked, iou_threshold=float(threshold))

    def _prepare_many(self, frames: Sequence[Array | OnGpu | Sequence[Array]], **options: Any) -> Prepared:
        return self._prepare_views(frames, self.question or self.settings, options)

    def _prepare_views(
        self, frames: Sequence[Any], asked: Question | Everything, options: FrameOptions | dict[str, Any]
    ) -> Views:
        """Every frame as often as it is looked at for what is asked."""
        layers = asked.crop_layers if isinstance(asked, Everything) else 0
        rows: list[Prepared] = []
        places: list[tuple[int, int]] = []
        for number, frame in enumerate(frames):
            height, width = check_frame(frame).shape[:2]
            roi, rotation = options.get("roi"), options.get("rotation", 0)
            whole = plan((height, width), self.manifest.preprocess, roi=roi, rotation=rotation).roi
            for box, layer in crop_boxes(whole, layers):
                view = self._prepare_view(frame, {**options, "roi": box})
                if isinstance(asked, Question):
                    check_inside(asked.prompts, view.geometries[0])
                rows.append(view)
                places.append((number, layer))
        denoised = [row.denoise_ms for row in rows if row.denoise_ms is not None]
        return Views(
            inputs={name: np.concatenate([row.inputs[name][:1] for row in rows]) for name in rows[0].inputs},
            geometries=tuple(row.geometries[0] for row in rows),
            milliseconds=sum(row.milliseconds for row in rows),
            denoise_ms=sum(denoised) if denoised else None,
            asked=asked,
            frames=tuple(number for number, _ in places),
            layers=tuple(layer for _, layer in places),
        )

    def _prepare_view(self, frame: Array, options: FrameOptions | dict[str, Any]) -> Prepared:
        """One view of a frame. What lies beside a letterboxed one becomes zero after normalising."""
        view = super()._prepare_many([frame], **options)
        return dataclasses.replace(view, inputs=state_valid(view.inputs, view.geometries))

    # -- the networks --------------------------------------------------------------------------------------------

    def _embed(self, inputs: Arrays, at_once: int | None) -> Array:
        """(N,C,h,w), a copy; `at_once` rows in a run where the engine takes any number."""
        most = min(filter(None, (at_once, self.engine.most_rows)), default=None)
        outputs = run_in_turns(self._runtime.run, inputs, self.batch_size, most)
        check_finite(outputs)
        return np.array(outputs["embedding"], np.float32)

    def _read(self, points: Any, point_labels: Any, boxes: Any, mask: Any, text: Any, *, multimask: bool) -> Question:
        """The prompts that a user gave, texts embedded."""
        prompts = read_prompts(points, point_labels, boxes, mask, text, rule=self.rule)
        texts = None if prompts.texts is None else self._embed_texts(prompts.texts)
        return Question(prompts, multimask, texts)

    def _answer(self, scene: Scene, question: Question) -> Arrays:
        """`low_res_logits` (N,M,h,w) and `iou` (N,M) of all masks for N prompts, in their order."""
        prompts, texts = question.prompts, question.texts
        found = {
            "low_res_logits": np.empty((len(prompts), self.rule.masks, *self.rule.mask_size), np.float32),
            "iou": np.empty((len(prompts), self.rule.masks), np.float32),
        }
        for batch in encode_prompts(prompts, scene.geometry, self.rule):
            for start in range(0, len(batch.rows), PROMPTS_AT_ONCE):
                some = slice(start, start + PROMPTS_AT_ONCE)
                feeds = {name: array[some] for name, array in batch.inputs.items()}
                rows = batch.rows[some]
                outputs = self._decode_batch(scene, feeds, None if texts is None else texts[rows])
                for name, array in found.items():
                    array[rows] = outputs[name]
        return found

    def _search(self, scene: Scene, settings: Everything, layer: int) -> Arrays:
        """A grid's masks of a predicted IoU that is high enough: `low_res_logits` (n,1,h,w), `iou` (n,1)."""
        grid = point_grid(settings.points_per_side // settings.crop_downscale**layer, scene.geometry.roi)
        logits = [np.zeros((0, 1, *self.rule.mask_size), np.float32)]
        ious = [np.zeros((0, 1), np.float32)]
        for start in range(0, len(grid), settings.batch):
            prompts = read_prompts(points=grid[start : start + settings.batch, None], rule=self.rule)
            (batch,) = encode_prompts(prompts, scene.geometry, self.rule)
            outputs = self._decode_batch(scene, batch.inputs)
            keep = outputs["iou"][:, 1:] > settings.iou_threshold
            logits.append(outputs["low_res_logits"][:, 1:][keep][:, None])
            ious.append(outputs["iou"][:, 1:][keep][:, None])
        return {"low_res_logits": np.concatenate(logits), "iou": np.concatenate(ious)}

    def _decode_batch(self, scene: Scene, feeds: Arrays, texts: Array | None = None) -> Arrays:
        """One run of the decoder; what it gives may be in buffers that the next run uses."""
        inputs = {"embedding": scene.embedding, **feeds}
        if self.rule.text is not None:
            empty = np.zeros((len(feeds["points"]), scene.embedding.shape[1]), np.float32)
            inputs["text"] = empty if texts is None else texts
        return self.run_part("decoder", inputs)

    def _embed_texts(self, texts: Sequence[str]) -> Array:
        """(N,C) float32."""
        return np.array(self.run_part("text", {"token_ids": self._tokenizer(texts)})["text_embedding"], np.float32)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        text = self.rule.text
        if text is None or self.folder is None:
            raise BundleError("this bundle has no tokenizer; export it again from a checkpoint with a text encoder")
        return Tokenizer(self.folder / text.file, text.length)


def _views(prepared: Prepared) -> Views:
    if not isinstance(prepared, Views):
        raise InputError("this frame was prepared for another kind of model; use this predictor's prepare")
    return prepared
