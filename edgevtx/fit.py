"""Classes for a backbone from a folder of images a class, without training: see `edgevtx.decode.knn`.

The vectors come from the bundle's own engine and preprocessing, so nothing but the device is needed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgevtx import disk
from edgevtx.archive import MANIFEST
from edgevtx.bundle import Bundle, check_out, write_bundle
from edgevtx.decode.knn import Bank, unit, write_bank
from edgevtx.errors import InputError, OutputError
from edgevtx.manifest import Manifest
from edgevtx.predictor import Predictor, load
from edgevtx.rules import BANK, EmbedDecode, KnnDecode
from edgevtx.runtimes.base import Array
from edgevtx.stream.sources import ImageFolder, Skipped

PRECISION = "fp32"
"""The vectors are made once and serve engines of every precision, so they are made as exactly as can be."""

FITTED = "fitted on"
"""How the manifest's note of a fit begins."""


@dataclass(frozen=True)
class FitReport:
    """What a fit did: the bundle, the number of images of each class, and the files that could not be read."""

    bundle: Path
    images: dict[str, int]
    skipped: tuple[Skipped, ...]


def fit(
    bundle: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    k: int = 20,
    temperature: float = 0.07,
    runtime: str = "auto",
    device: str = "CPU",
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Write at `out` the backbone of `bundle` with a k-nearest-neighbour classifier over `images`.

    `images` has one folder of images a class, whose name is the class's. `k` neighbours vote with exp(cosine
    similarity / `temperature`). Graphs, golden sample and verdicts stay as they are. Raises `InputError` for a bundle
    that gives no vector of the whole image, fewer than two classes, a class without images, a `k` beyond the number
    of images, or a temperature that is no number above 0; `SourceError` where none of a class's files can be read; and
    what `edgevtx.load` raises.
    """
    say = progress or (lambda _: None)
    images, out = Path(images), Path(out)
    opened = Bundle.open(bundle)
    manifest, features = _backbone(opened.manifest)
    rule = KnnDecode(features=features, k=k, temperature=temperature)
    folders = class_folders(images)
    check_out(out, overwrite)
    with load(bundle, runtime=runtime, device=device, precision=PRECISION, progress=progress) as model:
        found, skipped = {}, []
        for folder in folders:
            say(f"images of {folder.source.name}")
            found[folder.label] = [_vector(model, frame.image) for frame in folder.source]
            skipped += folder.source.skipped
    count = sum(map(len, found.values()))
    if k > count:
        raise InputError(f"k is {k}, but {count} images were read; choose 1 to {count}, or give more images")
    bank = Bank(
        unit(np.stack([vector for vectors in found.values() for vector in vectors])),
        np.repeat(np.arange(len(found)), [len(vectors) for vectors in found.values()]).astype(np.int64),
    )
    fitted = msgspec.structs.replace(
        manifest,
        name=out.stem,
        task="classify",
        decode=rule,
        labels=tuple(found),
        files=(),
        notes=(
            *manifest.notes,
            f"{FITTED} {count} images of {len(found)} classes, {model.info.runtime} {PRECISION}: the {k} nearest vote",
        ),
    )
    say("pack")
    _write(opened, fitted, bank, out, overwrite)
    return FitReport(out, {label: len(vectors) for label, vectors in found.items()}, tuple(skipped))


@dataclass(frozen=True)
class ClassFolder:
    """The images of a class."""

    label: str
    source: ImageFolder


def class_folders(images: Path) -> list[ClassFolder]:
    """The folders of `images`, by name; hidden ones are left out. Raises `InputError` where they are no classes."""
    if not images.is_dir():
        raise InputError(f"{images} is no folder; give one that holds a folder of images for each class")
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise InputError(
            f"{images} holds {len(folders)} folder{'' if len(folders) == 1 else 's'}, but telling classes apart takes "
            "two or more; put each class's images into a folder of its name"
        )
    empty = [path.name for path in folders if not any(item.is_file() for item in path.iterdir())]
    if empty:
        raise InputError(
            f"the class {empty[0]!r} has no images in {images}; put some into its folder, or remove the folder"
        )
    return [ClassFolder(path.name, ImageFolder(path)) for path in folders]


def _backbone(manifest: Manifest) -> tuple[Manifest, EmbedDecode]:
    """The manifest without an earlier fit's notes, and what the features are."""
    if manifest.features is None or "cls" not in {item.name for item in manifest.outputs}:
        raise InputError(
            f"{manifest.name} ({manifest.family}, {manifest.task}) gives no vector of the whole image, by which "
            "classes are told; give the bundle of a backbone, such as one of edgevtx export dino"
        )
    notes = tuple(note for note in manifest.notes if not note.startswith(FITTED))
    return msgspec.structs.replace(manifest, notes=notes), manifest.features


def _vector(model: Predictor, image: Array) -> Array:
    vector = model.features(image).cls
    assert vector is not None
    return vector


def _write(bundle: Bundle, manifest: Manifest, bank: Bank, out: Path, overwrite: bool) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            folder = Path(temporary) / "bundle"
            shutil.copytree(bundle.root, folder, ignore=shutil.ignore_patterns(MANIFEST, BANK))
            write_bank(folder / BANK, bank)
            write_bundle(folder, manifest, out, overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {disk.explain(error)}, or choose another --out") from None
