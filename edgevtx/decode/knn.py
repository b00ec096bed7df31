"""Classes by the nearest of stored vectors: what `edgevtx fit` adds to a backbone's bundle.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, appendix F.1: the k vectors with the
largest cosine similarity to the frame's vote for their classes, each with exp(similarity / temperature).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgevtx.archive import write_archive
from edgevtx.errors import BundleError, VerificationError
from edgevtx.golden import npy
from edgevtx.manifest import Check
from edgevtx.results import Classification, names_of

if TYPE_CHECKING:
    from edgevtx.geometry import Geometry
    from edgevtx.rules import KnnDecode
    from edgevtx.runtimes.base import Arrays

TOP_K = 5
"""Classes in an answer where the user asks for no other number."""

CLOSE = 0.02
"""How far the two best classes' scores lie apart at least; closer ones are a tie, which any engine may turn."""


@dataclass(frozen=True, eq=False)
class Bank:
    """The vectors of the images that a bundle was fitted on: `vectors` (M,D) float32 of unit length, and the class of
    each, `class_ids` (M,) int64."""

    vectors: NDArray[np.float32]
    class_ids: NDArray[np.int64]

    def scores(self, cls: NDArray[np.float32], rule: KnnDecode, classes: int) -> NDArray[np.float32]:
        """The share of the votes (C,) that each class gets for the vector `cls` (D,) of an image; they sum to 1.

        Raises `VerificationError` for a vector of zeros, which has no direction.
        """
        similarity = self.vectors @ unit(cls)
        nearest = np.argpartition(-similarity, rule.k - 1)[: rule.k]
        closeness = similarity[nearest].astype(np.float64)
        # relative to the nearest one's, so that no temperature overflows
        votes = np.exp((closeness - closeness.max()) / rule.temperature)
        total = np.bincount(self.class_ids[nearest], votes, classes)
        shares: NDArray[np.float32] = (total / total.sum()).astype(np.float32)
        return shares


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (...,D) float32 at unit length; raises `VerificationError` for one of zeros."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    if not length.all():
        raise VerificationError(
            "the engine gave a vector of zeros for a whole image, which has no direction; run edgevtx verify on it"
        )
    shortened: NDArray[np.float32] = (wide / length).astype(np.float32)
    return shortened


def decode_knn(
    outputs: Arrays,
    geometry: Geometry,
    rule: KnnDecode,
    labels: tuple[str, ...],
    *,
    bank: Bank,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Classification:
    """`cls` (D,) -> the `top_k` (5) classes with the largest shares of the votes, those above `threshold`."""
    scores = bank.scores(outputs["cls"], rule, len(labels))
    class_ids = np.argsort(-scores, kind="stable")[: top_k or TOP_K].astype(np.int64)
    if threshold is not None:
        class_ids = class_ids[scores[class_ids] > threshold]
    return Classification(class_ids, scores[class_ids], names_of(class_ids, labels))


def compare_answers(reference: Arrays, outputs: Arrays, bank: Bank, rule: KnnDecode, classes: int) -> Check:
    """Whether a batch's outputs get the class that the reference's get; a close decision is a tie."""
    wrong, ties = 0, 0
    for want, got in zip(reference["cls"], outputs["cls"], strict=True):
        first, second = (bank.scores(cls, rule, classes) for cls in (want, got))
        if first.argmax() != second.argmax():
            close = first.max() - first[second.argmax()] < CLOSE
            ties, wrong = ties + close, wrong + (not close)
    return Check(
        name="task: class of the nearest neighbours",
        level="task",
        passed=wrong == 0,
        compared=len(reference["cls"]),
        error=float(wrong),
        tolerance=0.0,
        ties=int(ties),
    )


# -- the file --------------------------------------------------------------------------------------------------


def write_bank(path: Path, bank: Bank) -> None:
    """Write a bank as .npz without pickles; equal arrays give equal bytes."""
    files = [("class_ids.npy", npy(bank.class_ids)), ("vectors.npy", npy(bank.vectors))]
    with path.open("wb") as out:
        write_archive(out, files)


def read_bank(path: Path, rule: KnnDecode, channels: int | None, classes: int) -> Bank:
    """Read what `write_bank` wrote; `BundleError` where it is damaged or does not fit the rest of the bundle."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            bank = Bank(stored["vectors"], stored["class_ids"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} holds no fitted vectors ({error}); the bundle is damaged, fit it again") from None
    vectors, class_ids = bank.vectors, bank.class_ids
    fits = (
        vectors.dtype == np.float32
        and class_ids.dtype == np.int64
        and vectors.ndim == 2
        and class_ids.shape == (len(vectors),)
        and channels in (None, vectors.shape[1])
        and 1 <= rule.k <= len(vectors)
        and rule.temperature > 0
        and bool(np.isfinite(vectors).all())
        and bool(((class_ids >= 0) & (class_ids < classes)).all())
    )
    if not fits:
        raise BundleError(
            f"{path} holds {vectors.dtype}{list(vectors.shape)} vectors and {class_ids.dtype}{list(class_ids.shape)} "
            f"class ids, which do not fit k {rule.k}, {channels} channels and {classes} classes; fit the bundle again"
        )
    return bank
