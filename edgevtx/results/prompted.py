"""Masks for prompts about a frame, or for everything in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.results.base import LISTED, Array, Index, check, positions, rounded

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.masks import MaskSet
    from edgevtx.rules import PromptDecode


@dataclass(frozen=True, eq=False)
class Masks:
    """What N prompts are taken for: M masks each, in the prompts' order and the model's.

    `masks` a `MaskSet` of N * M masks, prompt by prompt (`dense()` gives (N,M,H,W) bool); `iou` (N,M) float32, the
    predicted intersection over union with the object; `low_res_logits` (N,M,h,w) float32 of the whole input, which can
    be given back as `mask=`. `geometry` and `rule` say how those lie over the frame; without them there is no
    stability. Indexing by prompt gives `Masks` again: `found[0]`, `found[found.iou[:, 0] > 0.9]`; `best()` keeps the
    best mask of each prompt.
    """

    masks: MaskSet
    iou: NDArray[np.float32]
    low_res_logits: NDArray[np.float32]
    geometry: Geometry | None = None
    rule: PromptDecode | None = None
    known_stability: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check("iou", self.iou, ("N", "M"), np.float32)
        check("low_res_logits", self.low_res_logits, (*self.iou.shape, "h", "w"), np.float32)
        if len(self.masks) != self.iou.size:
            raise InputError(f"masks must be {self.iou.size}, {self.iou.shape[1]} a prompt, but got {len(self.masks)}")
        if self.known_stability is not None:
            check("known_stability", self.known_stability, self.iou.shape, np.float32)

    @classmethod
    def empty(cls, size: tuple[int, int] = (0, 0)) -> Masks:
        """No masks of a frame of `size` (H,W)."""
        from edgevtx.masks import MaskSet

        return cls(MaskSet.empty(size), np.zeros((0, 1), np.float32), np.zeros((0, 1, 0, 0), np.float32))

    @cached_property
    def stability(self) -> NDArray[np.float32]:
        """(N,M) float32 in 0..1: how little each mask changes with the threshold, as SAM's reference scores it.

        Computed when it is asked for: it takes twice as long as the masks. Raises `InputError` where the result was
        made without the geometry.
        """
        if self.known_stability is not None or not self.iou.size:
            return self.iou if self.known_stability is None else self.known_stability
        if self.geometry is None or self.rule is None:
            raise InputError("these masks came without their geometry, so they have no stability; use a predictor's")
        from edgevtx.decode.prompt import stability_scores

        logits = self.low_res_logits.reshape(-1, *self.low_res_logits.shape[2:])
        return stability_scores(logits, self.geometry, self.rule).reshape(self.iou.shape)

    def __len__(self) -> int:
        return len(self.iou)

    def __iter__(self) -> Iterator[Masks]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, index: Index) -> Masks:
        chosen = positions(index, len(self))
        return self._take(chosen[:, None], np.arange(self.iou.shape[1])[None])

    def best(self) -> Masks:
        """Of each prompt the mask with the highest predicted IoU: M is 1."""
        rows = np.arange(len(self))[:, None]
        return self._take(rows, self.iou.argmax(1)[:, None] if self.iou.size else np.zeros((len(self), 1), np.intp))

    def _take(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Masks:
        count = self.iou.shape[1]
        stability = self.known_stability if self.known_stability is not None else self.__dict__.get("stability")
        return dataclasses.replace(
            self,
            masks=self.masks[(rows * count + columns).reshape(-1)],
            iou=self.iou[rows, columns],
            low_res_logits=self.low_res_logits[rows, columns],
            known_stability=None if stability is None else stability[rows, columns],
        )

    def dense(self) -> NDArray[np.bool_]:
        """(N,M,H,W) bool; mind that this is H x W bytes a mask."""
        return self.masks.dense().reshape(*self.iou.shape, *self.masks.size)

    def to_dict(self) -> dict[str, Any]:
        """`{"masks": [{"prompt", "mask", "iou", "stability", "area", "box", "rle"}, ...]}`, N * M rows.

        `box` x0, y0, x1, y1 in px; `rle` COCO's run lengths; scores rounded to 1e-5.
        """
        count = self.iou.shape[1]
        rows = zip(
            self.iou.ravel(), self.stability.ravel(), self.masks.areas, self.masks.boxes, self.masks.rle(), strict=True
        )
        return {
            "masks": [
                {
                    "prompt": number // count,
                    "mask": number % count,
                    "iou": rounded(iou, 5),
                    "stability": rounded(stability, 5),
                    "area": int(area),
                    "box": [int(value) for value in box],
                    "rle": rle,
                }
                for number, (iou, stability, area, box, rle) in enumerate(rows)
            ]
        }

    def summary(self) -> str:
        """The prompts and their best masks on one line."""
        if not len(self):
            return "no masks"
        best = self.best()
        rows = zip(best.iou[:, 0], best.masks.areas, best.masks.boxes, strict=True)
        found = [f"IoU {iou:.2f} {area} px [{' '.join(f'{v:.0f}' for v in box)}]" for iou, area, box in rows]
        more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
        return "  ".join([*found[:LISTED], *more])

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the best mask of each prompt, each in a colour with its outline."""
        from edgevtx.draw_masks import draw_masks

        return draw_masks(frame, self.best().masks)
