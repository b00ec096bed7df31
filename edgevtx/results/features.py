"""What a backbone sees in a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import InputError
from edgevtx.results.base import Array, check, rounded

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in a frame.

    `cls` (D,) float32, the whole image, or None; `patches` (h,w,D) float32, one vector per patch, row by row;
    `attention` (heads,h,w) float32, the last layer's attention of the CLS token to each patch, or None.
    `geometry` says which part of the frame the patch grid covers (None: all of it), so that
    `geometry.masks_to_frame(attention)` lays a map over the frame.

    A pyramid has more than one scale: `maps` (h_i,w_i,D_i) float32, finest first, of which `patches` is the last;
    `strides` px of the input for a vector of each. `scale(i)` gives one of them as `Features` with its own geometry.
    """

    cls: NDArray[np.float32] | None
    patches: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None
    geometry: Geometry | None = None
    maps: tuple[NDArray[np.float32], ...] = ()
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check("patches", self.patches, ("h", "w", "D"), np.float32)
        height, width, channels = self.patches.shape
        if self.cls is not None:
            check("cls", self.cls, (channels,), np.float32)
        if self.attention is not None:
            check("attention", self.attention, ("heads", height, width), np.float32)
        for i, one in enumerate(self.maps):
            check(f"maps[{i}]", one, ("h", "w", "D"), np.float32)
        if len(self.strides) != len(self.maps):
            raise InputError(f"strides must be {len(self.maps)} numbers, one a map, but got {len(self.strides)}")
        if self.maps and self.maps[-1] is not self.patches:
            raise InputError("patches must be the last of the maps; make a pyramid with Features.pyramid(maps, ...)")

    @classmethod
    def empty(cls) -> Features:
        """Features of nothing: no CLS vector and a grid without patches."""
        return cls(None, np.zeros((0, 0, 0), np.float32))

    @classmethod
    def pyramid(
        cls_,  # noqa: N804 (a parameter is called cls)
        maps: Sequence[NDArray[np.float32]],
        strides: Sequence[int],
        geometry: Geometry,
        cls: NDArray[np.float32] | None = None,
    ) -> Features:
        """Features at several scales, finest first; `geometry` is the one of the network's input."""
        if not maps:
            raise InputError("a pyramid needs at least one map, but got none")
        return cls_(cls, maps[-1], None, _grid_geometry(geometry, maps[-1], strides[-1]), tuple(maps), tuple(strides))

    def scale(self, index: int) -> Features:
        """One scale of a pyramid, 0 the finest, -1 the last."""
        if not -len(self.maps) <= index < len(self.maps):
            raise InputError(f"these features have {len(self.maps)} scales, but scale {index} was asked for")
        geometry = self.geometry and _grid_geometry(self.geometry, self.maps[index], self.strides[index])
        return Features(None, self.maps[index], geometry=geometry)

    @property
    def _all(self) -> tuple[NDArray[np.float32], ...]:
        return self.maps or (self.patches,)

    def to_dict(self) -> dict[str, Any]:
        """`{"features": {"cls": [D floats], "patches_shape": [h, w, D], "attention_shape": [heads, h, w]}}`.

        A pyramid adds `"maps": [{"shape": [h, w, D], "stride"}, ...]`. What there is none of is None. The maps are left
        out (hundreds of thousands of floats a frame): keep them with `numpy.save`.
        """
        found: dict[str, Any] = {
            "cls": None if self.cls is None else [rounded(value, 6) for value in self.cls],
            "patches_shape": list(self.patches.shape),
            "attention_shape": None if self.attention is None else list(self.attention.shape),
        }
        if self.maps:
            pairs = zip(self.maps, self.strides, strict=True)
            found["maps"] = [{"shape": list(one.shape), "stride": stride} for one, stride in pairs]
        return {"features": found}

    def summary(self) -> str:
        """The sizes on one line."""
        sizes = [f"{height}x{width} patches of {depth}" for height, width, depth in (one.shape for one in self._all)]
        return f"features: {', '.join(sizes)}"

    def draw(self, frame: Array) -> NDArray[np.uint8]:
        """A copy of `frame` (H,W,3) uint8 BGR under the first three principal components of the patches as colour.

        A pyramid gives a picture of the same size with one tile a scale. Attention lies in a row along the lower edge,
        one heat map a head; `edgevtx.draw.attention_picture` gives that row alone.
        """
        from edgevtx import draw

        return draw.draw_pyramid(frame, self) if self.maps else draw.draw_features(frame, self)


def _grid_geometry(geometry: Geometry, vectors: NDArray[np.float32], stride: int) -> Geometry:
    """The geometry of a grid whose cells cover `stride` px: padded beyond the input, or cut, to whole cells."""
    return replace(geometry, input_size=(vectors.shape[0] * stride, vectors.shape[1] * stride))
