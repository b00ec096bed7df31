"""The predictor of promptable models such as SAM: a frame is set once, and then asked about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any, Literal, cast

import numpy as np

from edgevtx.decode import check_finite, check_options
from edgevtx.decode.everything import (
    Everything,
    crop_boxes,
    last_pixels,
    point_grid,
    remove_small_regions,
    suppress,
    touches_crop,
)
from edgevtx.decode.prompt import decode_prompts, resampling, stability_scores
from edgevtx.decode.upsample import threshold_maps
from edgevtx.errors import BundleError, InputError
from edgevtx.geometry import Geometry
from edgevtx.manifest import PromptDecode
from edgevtx.masks import MaskSet
from edgevtx.predictor import Predictor, Prepared
from edgevtx.preprocess import check_frame, state_valid
from edgevtx.prompts import Prompts, check_inside, encode_prompts, read_prompts
from edgevtx.results import Masks, Result
from edgevtx.runtimes.base import Array, Arrays
from edgevtx.tokens import Tokenizer

PROMPTS_AT_ONCE = 16
"""Prompts in one run of the decoder: each takes 16 MB an activation at 1024 px."""


@dataclass(frozen=True)
class Scene:
    """A frame that was looked at: its `embedding` (1,C,h,w) and its place in the input."""

    embedding: Array
    geometry: Geometry


@dataclass
class PromptPredictor(Predictor):
    """A loaded SAM: `model.set_image(frame)` once, then `model.predict(points=[[x, y]])` as often as wanted.

    `model(frame)` segments everything, as `everything` says, or what `question` asks of every frame where that is set
    (see `ask`). Serves one thread at a time; a clone has no image yet.
    """

    everything: Everything = None  # type: ignore[assignment] # what the manifest says, unless it is set
    question: Prompts | None = None
    multimask: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if cast("Everything | None", self.everything) is None:
            names = ("points_per_side", "iou_threshold", "stability_threshold", "overlap")
            self.everything = Everything(**{name: getattr(self.rule, name) for name in names})
        self._scene: Scene | None = None

    @property
    def rule(self) -> PromptDecode:
        """What the manifest says of the masks."""
        rule = self.manifest.decode
        if not isinstance(rule, PromptDecode):
            raise InputError(f"{self.info.name} takes no prompts; open it with edgevtx.load")
        return rule

    # -- a frame, then prompts -----------------------------------------------------------------------------------

    def set_image(
        self,
        frame: Array,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
        roi: tuple[int, int, int, int] | None = None,
        rotation: int = 0,
    ) -> None:
        """Look at a frame (H,W,3) uint8, which the next prompts are about; options as of `model(frame)`."""
        self._scene = None  # a frame that cannot be used must not leave the one before it
        prepared = self._prepare_many([frame], color, roi=roi, rotation=rotation)
        self._scene = Scene(self._embed(prepared)[:1], prepared.geometries[0])

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
        axis: 1 on the object (the default), 0 not on it; `boxes` (4,) or (N,4) xyxy; `mask` (h,w) or (N,h,w), logits of
        an earlier answer (`found.low_res_logits[prompt, mask]`); `text` one or N, where the model takes texts. What is
        given together belongs together, prompt by prompt. `multimask`: the three readings of each prompt, or the one
        for prompts that leave no doubt. Raises `InputError`, also before `set_image`.
        """
        if self._scene is None:
            raise InputError("there is no image to ask about; call set_image(frame) before predict")
        start = perf_counter()
        prompts = read_prompts(points, point_labels, boxes, mask, text, rule=self.rule)
        check_inside(prompts, self._scene.geometry)
        outputs = self._decode_prompts(self._scene, prompts)
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
        """Prompt every frame of `model(frame)` and of a pipeline with this, instead of segmenting everything."""
        self.question = read_prompts(points, point_labels, boxes, None, text, rule=self.rule)
        self.multimask = multimask

    def segment_everything(
        self,
        frame: Array,
        settings: Everything | None = None,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
    ) -> Masks:
        """Masks of all that is found in a frame with grids of points, best first: N masks, M is 1.

        `settings` (None: this predictor's) say how; see `Everything`. With crop layers the logits of a mask are those
        of the crop that it was found in.
        """
        settings = settings or self.everything
        found = []
        height, width = check_frame(frame).shape[:2]
        for box, layer in crop_boxes((height, width), settings.crop_layers):
            prepared = self._prepare_many([frame], color, roi=box)
            scene = Scene(self._embed(prepared)[:1], prepared.geometries[0])
            found.append(self._keep(self._search(scene, settings, layer), scene.geometry, settings, crop=layer > 0))
        return _best_of(found, settings)

    # -- the three steps of a pipeline ---------------------------------------------------------------------------

    def __call__(
        self,
        frame: Array,
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        **options: Any,
    ) -> Result:
        """Everything in one frame, best first, or the answer to the `question`; see `Predictor.__call__`.

        `threshold`: masks must have a predicted IoU above it; `top_k`: at most so many masks.
        """
        before = self.everything
        check_options(self.rule, threshold, top_k)
        if threshold is not None and self.question is None:
            self.everything = dataclasses.replace(before, iou_threshold=float(threshold))
        try:
            return super().__call__(frame, threshold=threshold, top_k=top_k, **options)
        finally:
            self.everything = before

    def infer(self, prepared: Prepared) -> Arrays:
        """The embedding, and of the decoder's answers what may be kept: `low_res_logits`, `iou`, and `frame` (n,), the
        number of the frame that each row belongs to."""
        start = perf_counter()
        embeddings = self._embed(prepared)
        rows: list[Arrays] = []
        for number, geometry in enumerate(prepared.geometries):
            scene = Scene(embeddings[number : number + 1], geometry)
            if self.question is None:
                found = self._search(scene, self.everything, 0)
            else:
                found = self._decode_prompts(scene, self.question)
            rows.append({**found, "frame": np.full(len(found["iou"]), number)})
        self.stages = {
            "preprocess": prepared.milliseconds,
            **({} if prepared.denoise_ms is None else {"denoise": prepared.denoise_ms}),
            "engine": 1e3 * (perf_counter() - start),
            "decode": 0.0,
        }
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def decode(
        self, outputs: Arrays, prepared: Prepared, *, threshold: float | None = None, top_k: int | None = None
    ) -> list[Result]:
        start = perf_counter()
        check_options(self.rule, threshold, top_k)
        if self.question is not None and (threshold, top_k) != (None, None):
            raise InputError("the answers to a prompt are not cut by threshold or top_k; leave them out")
        results: list[Result] = []
        for number, geometry in enumerate(prepared.geometries):
            of_frame = outputs["frame"] == number
            mine = {name: outputs[name][of_frame] for name in ("low_res_logits", "iou")}
            if self.question is not None:
                results.append(decode_prompts(mine, geometry, self.rule, multimask=self.multimask))
                continue
            found = _best_of([self._keep(mine, geometry, self.everything, crop=False)], self.everything)
            if threshold is not None:
                found = found[found.iou[:, 0] > threshold]
            results.append(found[:top_k])
        self.stages["decode"] = 1e3 * (perf_counter() - start)
        return results

    # -- the networks --------------------------------------------------------------------------------------------

    def _prepare_many(
        self, frames: Sequence[Array | Sequence[Array]], color: Literal["bgr", "rgb"], **options: Any
    ) -> Prepared:
        """As the parent's; outside the size that shows a letterboxed frame, normalised pixels become zero."""
        prepared = super()._prepare_many(frames, color, **options)
        if self.question is not None:
            for geometry in prepared.geometries:
                check_inside(self.question, geometry)
        return dataclasses.replace(prepared, inputs=state_valid(prepared.inputs, prepared.geometries))

    def _embed(self, prepared: Prepared) -> Array:
        """(N,C,h,w), a copy."""
        outputs = self._runtime.run(prepared.inputs)
        check_finite(outputs)
        return np.array(outputs["embedding"], np.float32)

    def _decode_prompts(self, scene: Scene, prompts: Prompts) -> Arrays:
        """`low_res_logits` (N,M,h,w) and `iou` (N,M) of all masks for N prompts, in their order."""
        texts = None if prompts.texts is None else self._embed_texts(prompts.texts)
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

    # -- everything ----------------------------------------------------------------------------------------------

    def _search(self, scene: Scene, settings: Everything, layer: int) -> Arrays:
        """A grid's masks of a predicted IoU that is high enough: `low_res_logits` (n,1,h,w), `iou` (n,1)."""
        grid = point_grid(settings.points_per_side // settings.crop_downscale**layer, scene.geometry.roi)
        logits = [np.zeros((0, 1, *self.rule.mask_size), np.float32)]
        ious = [np.zeros((0, 1), np.float32)]
        for some in _chunks(grid, settings.batch):
            prompts = read_prompts(points=some[:, None], rule=self.rule)
            (batch,) = encode_prompts(prompts, scene.geometry, self.rule)
            outputs = self._decode_batch(scene, batch.inputs)
            keep = outputs["iou"][:, 1:] > settings.iou_threshold
            logits.append(outputs["low_res_logits"][:, 1:][keep][:, None])
            ious.append(outputs["iou"][:, 1:][keep][:, None])
        return {"low_res_logits": np.concatenate(logits), "iou": np.concatenate(ious)}

    def _keep(self, found: Arrays, geometry: Geometry, settings: Everything, *, crop: bool) -> Masks:
        """The masks that are stable and, of a `crop` that overlaps others, do not end at its edge."""
        logits, iou = found["low_res_logits"], found["iou"]
        stability = stability_scores(logits[:, 0], geometry, self.rule)
        stable = stability > settings.stability_threshold
        logits, iou, stability = logits[stable], iou[stable], stability[stable]
        masks = threshold_maps(
            np.ascontiguousarray(logits[:, 0]), resampling(geometry, self.rule), self.rule.mask_threshold
        )
        cut = touches_crop(last_pixels(masks), geometry.roi, geometry.frame_size)
        whole = ~cut if crop else np.ones(len(masks), np.bool_)
        return Masks(
            masks[whole], iou[whole], logits[whole], geometry, self.rule, known_stability=stability[whole][:, None]
        )


def _best_of(found: Sequence[Masks], settings: Everything) -> Masks:
    """All crops' masks, best first, without those that a better one's box covers; small regions removed if asked."""
    masks = MaskSet.concatenate([item.masks for item in found])
    iou, logits, stability = (
        np.concatenate([getattr(item, name) for item in found]) for name in ("iou", "low_res_logits", "stability")
    )
    first = found[0]
    order = suppress(last_pixels(masks), iou[:, 0], settings.overlap)
    if settings.min_region_area:
        masks, same = remove_small_regions(masks[order], settings.min_region_area)
        iou, logits, stability = iou[order], logits[order], stability[order]
        # masks that were not changed go first, as in SAM's own generator
        order = suppress(last_pixels(masks), same.astype(np.float64), settings.overlap)
        order = order[np.argsort(-iou[order, 0], kind="stable")]
    return Masks(masks[order], iou[order], logits[order], first.geometry, first.rule, known_stability=stability[order])


def _chunks(array: Array, size: int) -> Iterator[Array]:
    return (array[start : start + size] for start in range(0, len(array), size))
