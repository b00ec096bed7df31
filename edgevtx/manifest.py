"""The manifest of a bundle: everything about a deployed model that is not a tensor, as validated data.

`manifest.json` is this module's `Manifest`, encoded with sorted keys. Readers refuse an unknown major version of
the schema and ignore fields that a newer minor version added; docs/bundle.md says what either number promises. One
more field, `sha256`, guards the file itself: it is the SHA-256 of the file's bytes without those 64 digits.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal, get_args

import msgspec

from edgevtx.errors import BundleError
from edgevtx.rules import Decode, EmbedDecode, KnnDecode, Preprocess

SCHEMA = "1.0"
"""Of what this package writes: major.minor. It is that of the first release; what came before was never published."""

Task = Literal["classify", "detect", "embed", "panoptic", "prompt", "segment"]
Level = Literal["form", "values", "task", "reference"]
Status = Literal["passed-here", "passed-elsewhere", "graph-only", "insensitive", "failed"]  # from best to worst
REFUSED: tuple[Status, ...] = ("insensitive", "failed")
"""What `load` does not open unless it is told to."""

EXACT = "fp32"
"""What a further network runs in that does not pass in the bundle's precision, at export or on the device."""


def badness(status: str) -> int:
    """How bad a status is, by which the networks of a bundle are compared: it is as good as the worst of them.

    What is no status, such as that nothing was verified, is the worst.
    """
    order = get_args(Status)
    return order.index(status) if status in order else len(order)


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

    `versions` is the range of the target that it serves, as a PEP 440 specifier. `avoids` are ids, and `patterns`
    patterns, of `edgevtx.runtimes.known_bad`: faults of compilers that were rewritten, and what is in the graph.
    `kept_fp32` are the modules of a graph of lower precision that keep float32 as a whole, since in that precision
    they did not pass, `unquantised` those of an int8 graph that are in half precision for that reason.
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
    patterns: tuple[str, ...] = ()
    kept_fp32: tuple[str, ...] = ()
    unquantised: tuple[str, ...] = ()


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle, its size in bytes and its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: what was compared, over how many items, the error found and the error allowed.

    `level`: the "form" of tensors (names, shapes, finite values, the prepared input), their "values", the "task"'s
    answer that follows from them, or the answer of the "reference". `error` None is an error without bounds (NaN,
    infinity, nothing to compare with), which no JSON number says; `tolerance` None means that the error is told and not
    judged, as long as it is finite.
    """

    name: str
    level: Level = "form"
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
    images; an image and its channel-swapped copy), in units of the tolerance. `parts` names the further networks that
    run in another precision, since they did not pass in this one: {"decoder": "fp32"}.
    """

    target: str
    precision: str
    status: Status
    parts: dict[str, str] = {}
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
    """A bundle's manifest; see the module.

    `noise` is by network and output: how far rounding alone moves the reference's answer, in standard deviations, where
    that is more than the tolerance allows for; see `edgevtx.compare.tolerance`.
    """

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
    noise: dict[str, dict[str, float]] = {}
    files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_input(self) -> TensorInfo:
        """The uint8 input: (N,H,W,3), or (N,T,H,W,3) where the model takes clips."""
        return self.inputs[0]

    @property
    def part_names(self) -> tuple[str, ...]:
        """The networks of the bundle: "" takes frames, then the others."""
        return ("", *self.parts)

    def decode_of(self, part: str) -> Decode | None:
        """What the outputs of a network are."""
        return self.parts[part].decode if part else self.decode

    @property
    def features(self) -> EmbedDecode | None:
        """What a backbone's features are, also where it was fitted to answer with classes; None of other models."""
        rule = self.decode.features if isinstance(self.decode, KnnDecode) else self.decode
        return rule if isinstance(rule, EmbedDecode) else None

    def verdict(self, target: str, precision: str) -> Verdict | None:
        """The verdict for a target at a precision, or None where it was never verified."""
        found = (item for item in self.verdicts if (item.target, item.precision) == (target, precision))
        return next(found, None)

    def precision_of(self, part: str, target: str, precision: str) -> str:
        """The precision in which a network runs where the bundle runs in `precision`."""
        verdict = self.verdict(target, precision)
        return verdict.parts.get(part, precision) if verdict else precision


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
    major, minor = map(int, SCHEMA.split("."))
    stated = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", schema)
    if stated is None or int(stated[1]) != major:
        raise BundleError(
            f"this bundle has manifest schema {schema or 'none'}, this edgevtx reads {major}.x; "
            "update edgevtx, or export the bundle again"
        )
    _check_digest(data, header.get("sha256"))
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        if int(stated[2]) > minor:
            raise BundleError(
                f"this bundle has manifest schema {schema}, this edgevtx knows {SCHEMA}, and what is new is needed "
                f"({error}); update edgevtx"
            ) from None
        raise BundleError(f"manifest.json is not of schema {SCHEMA}: {error}; export the bundle again") from None


def _check_digest(data: bytes, stated: Any) -> None:
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated):
        raise BundleError("manifest.json does not state its own sha256; it was changed, copy or export it again")
    if hashlib.sha256(data.replace(stated.encode(), b"", 1)).hexdigest() != stated:
        raise BundleError(
            f"manifest.json is not what its own SHA-256 {stated[:12]}... states; it was damaged or changed, copy or "
            "export it again"
        )
