"""How frames go in and how results come out, as data: the preprocessing and decoding rules of a manifest.

Field by field these are parts of `manifest.json`; `edgevtx.preprocess`, `edgevtx.geometry` and `edgevtx.decode` do
what they say.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgevtx.errors import InputError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
ResizeBackend = Literal["pillow", "opencv", "opencv-plain"]

# -- preprocessing ---------------------------------------------------------------------------------------------


class Exact(msgspec.Struct, tag="exact", frozen=True, kw_only=True):
    """Resize to this height and width, whatever the aspect ratio."""

    height: int
    width: int


class ShortestEdge(msgspec.Struct, tag="shortest_edge", frozen=True, kw_only=True):
    """Scale so that the shorter edge is `shortest` px, or less where the longer one would exceed `longest` px.

    Without `longest` this is torchvision's rule (ViT, DINO); with it, DETR's, whose rounding differs. Both leave the
    longer edge's fraction away; `rounding` "nearest" is mmcv's, which rounds both edges half up.
    """

    shortest: int
    longest: int | None = None
    rounding: Literal["floor", "nearest"] = "floor"


class LongestEdge(msgspec.Struct, tag="longest_edge", frozen=True, kw_only=True):
    """Scale so that the longer edge is `longest` px (SAM's rule: both edges rounded half up)."""

    longest: int


class Letterbox(msgspec.Struct, tag="letterbox", frozen=True, kw_only=True):
    """Scale to fit into height x width, keeping the aspect ratio, and fill the rest with `fill`.

    `rounding` of the scaled edges: "floor" as YOLOX has it, "nearest" as YOLOv5 and YOLOv8 do.
    """

    height: int
    width: int
    fill: int = 114
    centered: bool = True
    rounding: Literal["floor", "nearest"] = "floor"


SizeRule = Exact | ShortestEdge | LongestEdge | Letterbox


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """The graph sees windows of `size` (h,w) px of the resized image, `stride` (down, right) px apart.

    The host cuts them, the graph answers them as a batch or one by one, and decoding averages their maps where they
    overlap (MMSegmentation's slide inference). Windows that lie further apart than they are large would leave gaps. An
    image that is smaller than a window, in height or in width, is padded to it at the bottom and right with the colour
    `fill` (BGR), and the maps of that border are dropped.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for size, stride in zip(self.size, self.stride, strict=True):
            _check_whole("a window's size in px", size)
            _check_whole("the windows' stride in px", stride, most=size)
        for level in self.fill:
            _check_whole("a level of the windows' fill", level, least=0, most=255)


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """A model that looks at `frames` frames of a video, `fps` of them a second: the rate that it was trained at.

    `stride`: of a stream, how many frames at that rate lie between one answer and the next. A clip that is given whole
    is sampled uniformly: frame i of the model is frame i * n // `frames` of its n.
    """

    frames: int
    fps: float
    stride: int

    def __post_init__(self) -> None:
        _check_whole("a clip's frames", self.frames)
        _check_whole("a clip's stride in frames", self.stride)
        _check_positive("a clip's frames a second", self.fps, most=1000)

    @property
    def span(self) -> float:
        """Seconds from the first frame of a clip to its last."""
        return (self.frames - 1) / self.fps


class Bilateral(msgspec.Struct, tag="bilateral", frozen=True, kw_only=True):
    """OpenCV's `bilateralFilter`: a mean over `diameter` px, weighted by distance and by likeness of colour.

    `sigma_space` in px, `sigma_color` in grey levels. Tomasi and Manduchi, "Bilateral Filtering for Gray and Color
    Images", 1998.
    """

    diameter: int = 5  # OpenCV is six times as slow at 7
    sigma_color: float = 50.0
    sigma_space: float = 2.0

    def __post_init__(self) -> None:
        _check_window("diameter", self.diameter, 3, 31)
        _check_positive("sigma_color of the denoising", self.sigma_color)
        _check_positive("sigma_space of the denoising", self.sigma_space)


class NonLocalMeans(msgspec.Struct, tag="nlmeans", frozen=True, kw_only=True):
    """OpenCV's `fastNlMeansDenoisingColored`: a mean over alike patches of the neighbourhood.

    `strength` and `strength_color` in grey levels for lightness and colour; patches of `patch` px are looked for in
    a window of `search` px. Buades, Coll and Morel, "A Non-Local Algorithm for Image Denoising", 2005.
    """

    strength: float = 7.0
    strength_color: float = 7.0
    patch: int = 5
    search: int = 11

    def __post_init__(self) -> None:
        _check_positive("strength of the denoising", self.strength)
        _check_positive("strength_color of the denoising", self.strength_color)
        _check_window("patch", self.patch, 1, 15)
        _check_window("search", self.search, 3, 41)


class Lark(msgspec.Struct, tag="lark", frozen=True, kw_only=True):
    """Steering kernel regression (locally adaptive regression kernels), in numpy: see `edgevtx.denoise`.

    `smoothing` is the kernel's h in px, `window` the px over which it sums, `analysis` the px over which gradients
    are gathered for its covariance, `iterations` how often the estimate is estimated again. Takeda, Farsiu and
    Milanfar, "Kernel Regression for Image Processing and Reconstruction", 2007.
    """

    smoothing: float = 1.8
    window: int = 5
    analysis: int = 5
    iterations: int = 1

    def __post_init__(self) -> None:
        _check_positive("smoothing of the denoising", self.smoothing)
        _check_window("window", self.window, 3, 15)
        _check_window("analysis", self.analysis, 3, 15)
        _check_whole("iterations of the denoising", self.iterations, most=10)


Denoise = Bilateral | NonLocalMeans | Lark


def _check_window(name: str, value: int, least: int, most: int) -> None:
    if not (least <= value <= most and value % 2):
        raise InputError(f"{name} of the denoising must be an odd number of px from {least} to {most}, but got {value}")


def _check_positive(what: str, value: float, *, most: float = math.inf) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf or value > most:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{what} must be above 0{limit}, but got {value!r}")


def _check_whole(what: str, value: int, *, least: int = 1, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise InputError(f"{what} must be {limits}, a whole number, but got {value!r}")


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """How a frame becomes the graph's uint8 input (host), and what the graph then does to it (recorded).

    Host: resize by `size` with `interpolation` (antialiased, as Pillow does it), then a centred crop to
    `crop` (height, width) where the checkpoint has one. Graph: reverse the channels where `channel_order` is
    "rgb" (frames are BGR), multiply by `scale`, subtract `mean`, divide by `std` (of the channels in
    `channel_order`). With `windows` the graph is given windows of the resized image. Where there is a `clip`, its
    frames are prepared one by one, for the input (N,T,H,W,3).

    `resize`: "pillow" is exact, "opencv" faster and near it, "opencv-plain" one call of `cv2.resize` without
    antialiasing, for models that were trained so. `denoise` is applied to the resized image, before crop and padding.
    """

    size: SizeRule
    interpolation: Interpolation
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: tuple[int, int] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: ResizeBackend = "pillow"
    windows: Windows | None = None
    clip: Clip | None = None
    denoise: Denoise | None = None


# -- decoding --------------------------------------------------------------------------------------------------


class ClassifyDecode(msgspec.Struct, tag="classify", frozen=True, kw_only=True):
    """Outputs `scores` (N,K) float32 and `class_ids` (N,K) int64, best first; K is `top_k`.

    `activation` says which function of the model's output the scores are; "none" where it gives scores itself.
    """

    top_k: int
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"


class Suppress(msgspec.Struct, frozen=True, kw_only=True):
    """Non-maximum suppression: of two rows of one class that overlap by more than `iou`, the better one is kept.

    At most `keep` rows are kept. Rows below the threshold take no part.
    """

    iou: float
    keep: int = 300


class DetectDecode(msgspec.Struct, tag="detect", frozen=True, kw_only=True):
    """Outputs `boxes` (N,K,4) float32 xyxy in 0..1, `scores` (N,K), `class_ids` (N,K) int64.

    K is `top_k`; rows come in no promised order. `threshold` is the default score below which a row is dropped.
    Boxes are in units of the `frame` (the valid part of the input), or of the whole `input`, padding included.
    `suppress` is for models that answer an object several times.
    """

    top_k: int
    threshold: float
    units: Literal["frame", "input"] = "frame"
    suppress: Suppress | None = None


class EmbedDecode(msgspec.Struct, tag="embed", frozen=True, kw_only=True):
    """Outputs `cls` (N,D), `patches` (N,h,w,D) and, when exported with attention, `attention` (N,heads,h,w)."""

    patch_size: int
    attention: bool = False


class TextPrompts(msgspec.Struct, frozen=True, kw_only=True):
    """Texts as prompts: the tokenizer's `file` in the bundle, and the `length` of a row of token ids."""

    file: str
    length: int


class PromptDecode(msgspec.Struct, tag="prompt", frozen=True, kw_only=True):
    """Output `embedding` (N,C,h,w) float32, of which the part `decoder` makes `masks` masks for each prompt.

    Their logits have `mask_size` (height, width) and cover the whole input; a pixel belongs to a mask above
    `mask_threshold`. A mask's stability is the intersection over union of what lies above `mask_threshold` +
    `stability_offset` and above `mask_threshold` - `stability_offset`. Without a prompt everything is looked for: with
    a grid of `points_per_side` points a side, masks of a predicted IoU above `iou_threshold` and a stability above
    `stability_threshold` are kept, unless their box overlaps a better one's by more than `overlap`. `text`: None
    where the model takes no texts.
    """

    masks: int
    mask_size: tuple[int, int]
    mask_threshold: float = 0.0
    stability_offset: float = 1.0
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    overlap: float = 0.7
    points_per_side: int = 32
    text: TextPrompts | None = None


class PromptMasksDecode(msgspec.Struct, tag="prompt_masks", frozen=True, kw_only=True):
    """Outputs `low_res_logits` (P,M,h,w) and `iou` (P,M) float32: M masks for each of P prompts, and how good they are.

    A pixel belongs to a mask above `mask_threshold`.
    """

    mask_threshold: float = 0.0


class PanopticDecode(msgspec.Struct, tag="panoptic", frozen=True, kw_only=True):
    """Outputs as of "detect", `no_object` (N,K) float32, the probability that a query shows nothing, and `masks`.

    `masks` (N,K,h,w) float32 logits, one pixel for each `stride` px of the input, rounded up; K is `top_k`, rows are
    in the order of the queries. The other fields are named as in transformers' post-processing: `threshold` on
    scores, `mask_threshold` on mask probabilities, `overlap_mask_area_threshold` on the share of its own mask that a
    query must win, `label_ids_to_fuse` classes whose segments become one.
    """

    top_k: int
    threshold: float
    stride: int
    mask_threshold: float = 0.5
    overlap_mask_area_threshold: float = 0.8
    label_ids_to_fuse: tuple[int, ...] = ()


class SegmentDecode(msgspec.Struct, tag="segment", frozen=True, kw_only=True):
    """Output `logits` (N,C,h,w) float32: a map of the whole input (of the whole window) for each class.

    The reference enlarges them `upsample` times, then to the input's size, then to the frame's, each time bilinearly.
    `activation` "softmax": a pixel's class is that of the largest logit. "sigmoid", with C of 1: it is class 1 where
    the probability exceeds `threshold`, and class 0 elsewhere.
    """

    activation: Literal["softmax", "sigmoid"] = "softmax"
    threshold: float = 0.5
    upsample: int = 1


BANK = "knn.npz"
"""The file of a fitted bundle's vectors; see `edgevtx.decode.knn`."""


class KnnDecode(msgspec.Struct, tag="knn", frozen=True, kw_only=True):
    """Outputs as `features` has them; the `k` nearest of the vectors in `BANK` to `cls` vote for a frame's class.

    A vote counts exp(cosine similarity / `temperature`).
    """

    features: EmbedDecode
    k: int
    temperature: float

    def __post_init__(self) -> None:
        _check_whole("k, the number of neighbours that vote,", self.k)
        _check_positive("the temperature of their votes", self.temperature)


class PyramidDecode(msgspec.Struct, tag="pyramid", frozen=True, kw_only=True):
    """Outputs named as in `maps`, (N,h,w,D) float32 each, finest first; and `cls` (N,D) where the backbone has one.

    A vector of map i stands for `strides[i]` px of the input along both edges.
    """

    maps: tuple[str, ...]
    strides: tuple[int, ...]


Decode = (
    ClassifyDecode
    | DetectDecode
    | EmbedDecode
    | KnnDecode
    | PanopticDecode
    | PromptDecode
    | PromptMasksDecode
    | PyramidDecode
    | SegmentDecode
)
