"""Frames -> the graph's uint8 input: cut out, rotate, resize as the checkpoint's own processor does, denoise where the
bundle asks for it, crop or pad.

"Exact" means equal to Pillow's bytes, since Pillow does the resizing of the reference processors. Colour order,
scaling and normalisation are the graph's work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevtx.denoise import denoise
from edgevtx.errors import InputError, RuntimeUnavailableError
from edgevtx.geometry import Geometry, Size, plan
from edgevtx.rules import Interpolation, Letterbox, Preprocess, ResizeBackend
from edgevtx.runtimes.base import DeviceArray, OnGpu, device_facts
from edgevtx.threads import MOST_THREADS, cores, run_all

Array = NDArray[Any]
Frame = NDArray[np.uint8]

_WANTED = "a frame must be (H, W, 3) uint8 BGR, or (H, W) where it is grey"
# below this many source px a second thread costs more than it saves
_THREADED_PIXELS = 300_000
# radius in source px per unit of scale of the filters that fade to zero at their edge. Not "box": its weight jumps
# there, so that the last bit of a coordinate decides whether a pixel counts, and bands would differ from the whole
_RADIUS = {"bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def prepare(
    frame: Array | OnGpu,
    preprocess: Preprocess,
    *,
    color: Literal["bgr", "rgb"] = "bgr",
    roi: Sequence[int] | None = None,
    rotation: int = 0,
    out: Frame | None = None,
    times: dict[str, float] | None = None,
) -> tuple[Frame, Geometry]:
    """A frame -> the graph's image input (h,w,3) uint8 BGR, and the geometry that maps results back.

    `frame` (H,W,3) uint8 in the order of `color`; grey (H,W) or (H,W,1) uint8 is repeated over the channels. `roi`
    x0, y0, x1, y1 in whole px of the frame, `rotation` degrees clockwise that make it upright; both are applied
    before resizing. `out` (h,w,3) uint8 takes the result and is returned; it must have the input's size. `times` is
    given the milliseconds of what is a stage of its own: "denoise", where the bundle denoises.
    Raises `InputError` for a frame, roi, rotation or `out` that cannot be used, also for a frame in a GPU's memory, and
    `RuntimeUnavailableError` where the bundle resizes or denoises with OpenCV and OpenCV is missing.
    """
    image = check_frame(frame)
    if color not in ("bgr", "rgb"):
        raise InputError(f'color must be "bgr" or "rgb", but got {color!r}')
    geometry = plan((image.shape[0], image.shape[1]), preprocess, roi=roi, rotation=rotation)
    result = _output(out, geometry.input_size)
    x0, y0, x1, y1 = geometry.roi
    upright = np.rot90(image[y0:y1, x0:x1], -(geometry.rotation // 90))
    if geometry.valid_size != geometry.input_size:
        result[...] = preprocess.size.fill if isinstance(preprocess.size, Letterbox) else 0

    left, top, right, bottom = geometry.valid_box
    order = 1 if color == "bgr" else -1
    valid = result[top:bottom, left:right, ::order]
    resize = _RESIZERS[preprocess.resize]
    if geometry.valid_size == geometry.resized and preprocess.denoise is None:
        resize(upright, preprocess.interpolation, valid)
    else:
        whole = np.empty((*geometry.resized, 3), np.uint8)
        resize(upright, preprocess.interpolation, whole)
        if preprocess.denoise is not None:
            start = perf_counter()
            whole = denoise(whole[..., ::order], preprocess.denoise)[..., ::order]
            if times is not None:
                times["denoise"] = times.get("denoise", 0.0) + 1e3 * (perf_counter() - start)
        y, x = top - geometry.offset[0], left - geometry.offset[1]
        valid[...] = whole[y : y + bottom - top, x : x + right - left]
    return result, geometry


def prepare_item(
    item: Array | OnGpu | Sequence[Array], preprocess: Preprocess, **options: Any
) -> tuple[Frame, Geometry]:
    """What the model takes as one item, a frame or a clip -> the graph's input for it, and its (last) frame's geometry.

    A frame gives (h,w,3) uint8 BGR as `prepare` does. A clip is (T,H,W,3) uint8 or a list of frames; of those the
    model's are taken by `sample_clip` and prepared one by one: (frames,h,w,3). `options` are those of `prepare`, which
    says what it raises.
    """
    if preprocess.clip is None:
        return prepare(item, preprocess, **options)  # type: ignore[arg-type]
    given = check_clip(item, preprocess.clip.frames)
    chosen = [given[index] for index in sample_clip(len(given), preprocess.clip.frames)]
    first, geometry = prepare(chosen[0], preprocess, **options)
    clip = np.empty((len(chosen), *first.shape), np.uint8)
    clip[0] = first
    for frame, out in zip(chosen[1:], clip[1:], strict=True):
        _, geometry = prepare(frame, preprocess, **options, out=out)
    return clip, geometry


def sample_clip(count: int, frames: int) -> list[int]:
    """Which of a clip's `count` frames a model of `frames` looks at: uniformly, as transformers' video processors."""
    return [index * count // frames for index in range(frames)]


def pad_batch(arrays: Sequence[Frame]) -> tuple[Frame, NDArray[np.int32]]:
    """Inputs of unequal size -> one array (N,H,W,3) uint8, zero at the bottom and right, and their sizes.

    The sizes are `valid_size` (N,2) int32 (height, width); the graph zeroes what lies outside after normalising,
    as the reference processors pad. Raises `InputError` for an empty batch or arrays other than (h,w,3) uint8.
    """
    if not arrays:
        raise InputError("a batch must hold at least one frame, but got none")
    for array in arrays:
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise InputError(f"a batch takes prepared inputs (h, w, 3) uint8, but got {array.shape} {array.dtype}")
    sizes = np.array([array.shape[:2] for array in arrays], np.int32)
    height, width = (int(size) for size in sizes.max(0))
    batch = np.zeros((len(arrays), height, width, 3), np.uint8)
    for item, array in zip(batch, arrays, strict=True):
        item[: array.shape[0], : array.shape[1]] = array
    return batch, sizes


def state_valid(inputs: dict[str, Array], geometries: Sequence[Geometry]) -> dict[str, Array]:
    """A batch whose `valid_size`, where it has one, leaves the letterbox's padding out; `inputs` stay as they are.

    A short batch repeats its last image, and so does `geometries` here.
    """
    if "valid_size" not in inputs:
        return inputs
    sizes = [geometry.valid_size for geometry in geometries]
    sizes += sizes[-1:] * (len(inputs["pixels"]) - len(sizes))
    return {**inputs, "valid_size": np.array(sizes, np.int32)}


def check_clip(clip: object, frames: int) -> Sequence[Array]:
    """The frames of a clip that is (T,H,W,3) uint8 or a list of frames; `InputError` says what else it is."""
    wanted = f"this model takes clips: (T, H, W, 3) uint8 BGR or a list of frames, at least {frames} of them"
    if isinstance(clip, np.ndarray):
        if clip.ndim < 3 or (clip.ndim == 3 and clip.shape[2] in (1, 3, 4)):
            raise InputError(
                f"{wanted}, but got one frame {clip.shape}; give its neighbours too, or frame by frame to push(frame)"
            )
        given: Sequence[Array] = list(clip)
    elif isinstance(clip, list | tuple):
        given = clip
    else:
        raise InputError(f"{wanted}, but got {type(clip).__name__}; collect the frames in a list")
    if len(given) < frames:
        raise InputError(f"{wanted}, but got {len(given)}; give a longer clip, or its frames one by one to push(frame)")
    return given


def check_frame(frame: object) -> Frame:
    """The frame as (H,W,3), or (H,W) where it is grey; `InputError` says what else it is and what to do."""
    if not isinstance(frame, np.ndarray):
        hint = "the image could not be read" if frame is None else "convert it with numpy.asarray"
        if device_facts(frame) is not None:
            hint = "it is in a GPU's memory, so copy it to the host: frame.cpu().numpy() of torch, frame.get() of CuPy"
        raise InputError(f"{_WANTED}, but got {type(frame).__name__}; {hint}")
    check_layout(frame)
    return frame[..., 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame


def check_layout(frame: Array | DeviceArray) -> None:
    """Raise `InputError`, with what to do, unless an array is a frame by its shape and dtype."""
    found = f"{_WANTED}, but got {frame.shape} {frame.dtype}"
    if frame.ndim not in (2, 3):
        raise InputError(f"{found}; pass the frames of a batch one by one, or use batch([...])")
    if 0 in frame.shape:
        raise InputError(f"{found}, which is empty; check that the source gave an image")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise InputError(f"{found}; drop its alpha channel with frame[..., :3]")
    if frame.ndim == 3 and frame.shape[2] not in (1, 3):
        hint = "; its channels come first, use frame.transpose(1, 2, 0)" if frame.shape[0] in (1, 3) else ""
        raise InputError(f"{found}{hint or '; give it three channels'}")
    if frame.dtype != np.uint8:
        raise InputError(f"{found}; {_conversion(frame.dtype)}")


def _conversion(dtype: np.dtype[Any]) -> str:
    """How to make uint8 of another type; which range its values span is the caller's knowledge."""
    if dtype == np.uint16:
        return "scale it to 8 bits, for full-range 16-bit values with (frame >> 8).astype(numpy.uint8)"
    if dtype == np.bool_:
        return "convert it with frame.astype(numpy.uint8) * 255"
    return "scale it to 0..255 and convert it with .astype(numpy.uint8)"


def _output(out: Frame | None, size: Size) -> Frame:
    if out is None:
        return np.empty((*size, 3), np.uint8)
    if not isinstance(out, np.ndarray) or out.shape != (*size, 3) or out.dtype != np.uint8:
        found = f"{out.shape} {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out must be ({size[0]}, {size[1]}, 3) uint8 for this frame, but got {found}")
    if not out.flags.writeable:
        raise InputError("out must be writeable, but got a read-only array; pass a copy")
    return out


# -- Pillow ----------------------------------------------------------------------------------------------------


def _resize_pillow(image: Frame, interpolation: Interpolation, out: Frame) -> None:
    """Resize (H,W,3) or (H,W) into `out` (h,w,3), equal to `PIL.Image.resize` byte by byte.

    Large images are cut into bands, one a thread, where bands have been seen to give the same bytes.
    """
    size, new_size = (image.shape[0], image.shape[1]), (out.shape[0], out.shape[1])
    if size == new_size:
        out[...] = image if image.ndim == 3 else image[..., None]
        return
    count = 1
    if interpolation in _RADIUS and size[0] * size[1] >= _THREADED_PIXELS:
        count = min(cores(), MOST_THREADS)
        if count > 1 and not _bands_are_exact(size, new_size, interpolation, count):
            count = 1
    _resize_in_bands(image, interpolation, out, count)


@lru_cache(maxsize=256)
def _bands_are_exact(size: Size, new_size: Size, interpolation: Interpolation, count: int) -> bool:
    """Whether this Pillow gives noise of this size the same bytes in bands as in one piece.

    Tried and not derived, because the answer hangs on the order of Pillow's two passes (rounding lies between
    them): up to 12 the horizontal one came first, 13.0 decides by the sizes (python-pillow/Pillow#9549).
    """
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    whole, bands = np.empty((2, *new_size, 1), np.uint8)
    _resize_in_bands(noise, interpolation, whole, 1)
    _resize_in_bands(noise, interpolation, bands, count)
    return np.array_equal(whole, bands)


def _resize_in_bands(image: Frame, interpolation: Interpolation, out: Frame, count: int) -> None:
    """Resize (H,W,3) or (H,W) into `out` (h,w,C) in at most `count` bands across the longer side.

    A band's edges lie on whole px of both images, so that its coefficients are those of the whole image; it is
    converted with the margin that the filter reaches into, and `box` leaves the margin out.
    """
    from PIL import Image

    resample = Image.Resampling[interpolation.upper()]
    axis = 0 if image.shape[0] <= image.shape[1] else 1
    length, new_length = image.shape[axis], out.shape[axis]
    margin = math.ceil(_RADIUS.get(interpolation, 0) * max(length / new_length, 1)) + 1

    def resize_band(start: int, stop: int) -> None:
        first, last = start * length // new_length, stop * length // new_length
        low, high = max(0, first - margin), min(length, last + margin)
        target = out[start:stop] if axis == 0 else out[:, start:stop]
        band = Image.fromarray(image[low:high] if axis == 0 else image[:, low:high])
        edges = (first - low, last - low)
        box = (0, edges[0], band.width, edges[1]) if axis == 0 else (edges[0], 0, edges[1], band.height)
        pixels = np.asarray(band.resize((target.shape[1], target.shape[0]), resample, box=box))
        target[...] = pixels if pixels.ndim == 3 else pixels[..., None]

    cuts = _band_edges(length, new_length, count)
    run_all([partial(resize_band, start, stop) for start, stop in pairwise(cuts)])


def _band_edges(length: int, new_length: int, count: int) -> list[int]:
    """Where to cut the resized image into at most `count` bands so that the source is cut at whole px too."""
    common = math.gcd(length, new_length)
    count = min(count, common)
    return [common * i // count * (new_length // common) for i in range(count + 1)]


# -- OpenCV ----------------------------------------------------------------------------------------------------


def _resize_opencv(image: Frame, interpolation: Interpolation, out: Frame) -> None:
    """Resize (H,W,3) or (H,W) into `out` (h,w,3) with OpenCV: fast, and near Pillow's result, not equal to it.

    OpenCV's filters do not widen when they shrink an image. So it is halved (the mean of 2 x 2 px) until less
    than three times the wanted area is left, and interpolated linearly from there: about as near to Pillow as
    `INTER_AREA`, at a fraction of its time.
    """
    cv2 = _opencv()
    image = _in_colour(image)
    new_height, new_width = out.shape[:2]
    if interpolation != "nearest" and image.shape[0] * image.shape[1] > new_height * new_width:
        interpolation = "bilinear"
        while image.shape[0] * image.shape[1] >= 3 * new_height * new_width and min(image.shape[:2]) > 1:
            # INTER_LINEAR is the 2 x 2 mean at exactly half size, and stays fast at odd sizes, where AREA is slow
            halved = (image.shape[1] // 2, image.shape[0] // 2)
            image = cv2.resize(image, halved, interpolation=cv2.INTER_LINEAR)
    _resize_plainly(image, interpolation, out)


def _resize_plainly(image: Frame, interpolation: Interpolation, out: Frame) -> None:
    """Resize (H,W,3) or (H,W) into `out` (h,w,3) with one call of `cv2.resize`, as YOLO's own preprocessing does."""
    cv2 = _opencv()
    flag = {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "box": cv2.INTER_NEAREST_EXACT,
        "bicubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    }.get(interpolation, cv2.INTER_LINEAR)
    direct = out if out.flags.c_contiguous else None  # saves a copy of the result
    resized = cv2.resize(_in_colour(image), (out.shape[1], out.shape[0]), direct, interpolation=flag)
    if resized is not out:
        out[...] = resized


def _in_colour(image: Frame) -> Frame:
    """(H,W,3) of (H,W,3) or (H,W), for OpenCV: on ARM it resizes one channel otherwise than three (4.11, 3 levels)."""
    if image.ndim == 3:
        return np.ascontiguousarray(image)
    cv2 = _opencv()
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise RuntimeUnavailableError(
            'this bundle resizes with OpenCV, which is not installed; install it with pip install "edgevtx[opencv]", '
            "or export the bundle with the Pillow resize"
        ) from None
    return cv2


_RESIZERS: dict[ResizeBackend, Callable[[Frame, Interpolation, Frame], None]] = {
    "pillow": _resize_pillow,
    "opencv": _resize_opencv,
    "opencv-plain": _resize_plainly,
}
