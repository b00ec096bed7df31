"""The manifest of a bundle: everything about a deployed model that is not a tensor, as validated data.

`manifest.json` is this module's `Manifest`, encoded with sorted keys. Readers refuse an unknown major version of
the schema and ignore fields that a newer minor version added. One more field, `sha256`, guards the file itself: it is
the SHA-256 of the file's bytes without those 64 digits.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

import msgspec

from edgevtx.errors import BundleError

SCHEMA = "1.0"

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
ResizeBackend = Literal["pillow", "opencv"]
Task = Literal["classify", "detect", "embed"]
Status = Literal["passed-here", "passed-elsewhere", "graph-only", "insensitive", "failed"]
REFUSED: tuple[Status, ...] = ("insensitive", "failed")
"""What `load` does not open unless it is told to."""


# -- preprocessing ---------------------------------------------------------------------------------------------


class Exact(msgspec.Struct, tag="exact", frozen=True, kw_only=True):
    """Resize to this height and width, whatever the aspect ratio."""

    height: int
    width: int


class ShortestEdge(msgspec.Struct, tag="shortest_edge", frozen=True, kw_only=True):
    """Scale so that the shorter edge is `shortest` px, or less where the longer one would exceed `longest` px.

    Without `longest` this is torchvision's rule (ViT, DINO); with it, DETR's, whose rounding differs.
    """

    shortest: int
    longest: int | None = None


class LongestEdge(msgspec.Struct, tag="longest_edge", frozen=True, kw_only=True):
    """Scale so that the longer edge is `longest` px (SAM's rule: both edges rounded half up)."""

    longest: int


class Letterbox(msgspec.Struct, tag="letterbox", frozen=True, kw_only=True):
    """Scale to fit into height x width, keeping the aspect ratio, and fill the rest with `fill`."""

    height: int
    width: int
    fill: int = 114
    centered: bool = True


SizeRule = Exact | ShortestEdge | LongestEdge | Letterbox


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """How a frame becomes the graph's uint8 input (host), and what the graph then does to it (recorded).

    Host: resize by `size` with `interpolation` (antialiased, as Pillow does it), then a centred crop to
    `crop` (height, width) where the checkpoint has one. Graph: reverse the channels where `channel_order` is
    "rgb" (frames are BGR), multiply by `scale`, subtract `mean`, divide by `std` (of the channels in
    `channel_order`).
    """

    size: SizeRule
    interpolation: Interpolation
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: tuple[int, int] | None = None
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: ResizeBackend = "pillow"


# -- decoding --------------------------------------------------------------------------------------------------


class ClassifyDecode(msgspec.Struct, tag="classify", frozen=True, kw_only=True):
    """Outputs `scores` (N,K) float32 and `class_ids` (N,K) int64, best first; K is `top_k`.

    `activation` says which function of the logits the scores are.
    """

    top_k: int
    activation: Literal["softmax", "sigmoid"] = "softmax"


class DetectDecode(msgspec.Struct, tag="detect", frozen=True, kw_only=True):
    """Outputs `boxes` (N,K,4) float32 xyxy in 0..1 of the valid input, `scores` (N,K), `class_ids` (N,K) int64.

    K is `top_k`; rows come in no promised order. `threshold` is the default score below which a row is dropped.
    """

    top_k: int
    threshold: float


class EmbedDecode(msgspec.Struct, tag="embed", frozen=True, kw_only=True):
    """Outputs `cls` (N,D), `patches` (N,h,w,D) and, when exported with attention, `attention` (N,heads,h,w)."""

    patch_size: int
    attention: bool = False


class PyramidDecode(msgspec.Struct, tag="pyramid", frozen=True, kw_only=True):
    """Outputs named as in `maps`, (N,h,w,D) float32 each, finest first; and `cls` (N,D) where the backbone has one.

    A vector of map i stands for `strides[i]` px of the input along both edges.
    """

    maps: tuple[str, ...]
    strides: tuple[int, ...]


Decode = ClassifyDecode | DetectDecode | EmbedDecode | PyramidDecode

# -- graphs, files, verdicts -----------------------------------------------------------------------------------


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A graph's input or output; `None` marks a dynamic dimension, `dtype` is numpy's name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A further network of a bundle beside the one that takes frames, such as SAM's mask decoder.

    `decode` says what its outputs are; None where they are only another network's inputs.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    decode: Decode | None = None


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """One lowered graph of the network that takes frames, or of the part that `part` names.

    `versions` is the range of the target that it serves, as a PEP 440 specifier.
    """

    file: str
    part: str = ""
    target: str
    variant: str
    versions: str
    precisions: tuple[str, ...]
    opset: int
    rewrites: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle, its size in bytes and its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: what was compared, over how many items, the error found and the error allowed.

    `error` None is an error without bounds (NaN, infinity, nothing to compare with), which no JSON number says;
    `tolerance` None means that the error is told and not judged, as long as it is finite.
    """

    name: str
    passed: bool
    compared: int
    error: float | None
    tolerance: float | None
    ties: int = 0
    note: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What verification found for one target at one precision.

    `graph` names the variant. `device` and `target_version` say where an engine ran; both are empty when only
    the graph was checked. `sensitivity` is the smallest difference between outputs that should differ (two
    images; an image and its channel-swapped copy), in units of the tolerance.
    """

    target: str
    precision: str
    status: Status
    graph: str = ""
    target_version: str = ""
    device: str = ""
    precision_share: dict[str, float] = {}
    sensitivity: float = 0.0
    checks: tuple[Check, ...] = ()
    reason: str = ""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights come from. `checkpoint_sha256` covers config and weights; empty for seeded weights."""

    checkpoint: str = ""
    checkpoint_sha256: str = ""
    licence: str = ""
    source: str = ""
    intended_use: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's manifest; see the module."""

    schema: str = SCHEMA
    name: str
    family: str
    task: Task
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocess: Preprocess
    decode: Decode
    labels: tuple[str, ...]
    graphs: tuple[Graph, ...]
    verdicts: tuple[Verdict, ...]
    recommended: dict[str, str]  # target -> precision
    provenance: Provenance
    tools: dict[str, str]
    parts: dict[str, Part] = {}
    files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_input(self) -> TensorInfo:
        """The uint8 (N,H,W,3) input."""
        return self.inputs[0]

    @property
    def takes_valid_size(self) -> bool:
        """Whether the graph has the second input `valid_size` int32 (N,2): (height, width) without padding."""
        return any(item.name == "valid_size" for item in self.inputs)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The networks of the bundle: "" takes frames, then the others."""
        return ("", *self.parts)

    def decode_of(self, part: str) -> Decode | None:
        """What the outputs of a network are."""
        return self.parts[part].decode if part else self.decode

    def verdict(self, target: str, precision: str) -> Verdict | None:
        """The verdict for a target at a precision, or None where it was never verified."""
        found = (item for item in self.verdicts if (item.target, item.precision) == (target, precision))
        return next(found, None)


def encode(manifest: Manifest) -> bytes:
    """`manifest.json`: sorted keys, two-space indentation, its own digest; equal manifests give equal bytes."""
    facts = {**msgspec.to_builtins(manifest), "sha256": ""}
    blank = msgspec.json.format(msgspec.json.encode(facts, order="sorted"), indent=2) + b"\n"
    digest = hashlib.sha256(blank).hexdigest()
    # two spaces deep there is no other field of that name, and no string holds a raw line break
    return blank.replace(b'\n  "sha256": ""', f'\n  "sha256": "{digest}"'.encode())


def decode(data: bytes) -> Manifest:
    """Parse and validate `manifest.json`; raises `BundleError` with the offending field, or where a byte differs."""
    try:
        header = msgspec.json.decode(data, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"manifest.json is no JSON ({error}); the bundle is damaged, copy it again") from None
    schema = str(header.get("schema", ""))
    if schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise BundleError(
            f"this bundle has manifest schema {schema or 'none'}, this edgevtx reads {SCHEMA.split('.')[0]}.x; "
            "update edgevtx, or export the bundle again"
        )
    _check_digest(data, header.get("sha256"))
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"manifest.json is not of schema {SCHEMA}: {error}; export the bundle again") from None


def _check_digest(data: bytes, stated: Any) -> None:
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated):
        raise BundleError("manifest.json does not state its own sha256; it was changed, copy or export it again")
    if hashlib.sha256(data.replace(stated.encode(), b"", 1)).hexdigest() != stated:
        raise BundleError(
            f"manifest.json is not what its own SHA-256 {stated[:12]}... states; it was damaged or changed, copy or "
            "export it again"
        )
