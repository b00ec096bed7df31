"""Texts -> token ids, with the `tokenizers` library and the tokenizer.json of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import BundleError, RuntimeUnavailableError


class Tokenizer:
    """A bundle's tokenizer; rows of ids are `length` long, cut where a text is longer."""

    def __init__(self, file: Path, length: int) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise RuntimeUnavailableError(
                'prompting with a text needs the tokenizers package; install it with pip install "edgevtx[text]"'
            ) from None
        try:
            self._library: Any = Library.from_file(str(file))
        except Exception as error:  # the library raises plain exceptions
            raise BundleError(f"{file} is no tokenizer ({error}); the bundle is damaged, export it again") from None
        self._library.no_padding()
        self._library.enable_truncation(length)
        self._length = length

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """N texts -> (N, length) int64: start, words, end, and the end's id again to the full length."""
        rows = [item.ids for item in self._library.encode_batch(list(texts))]
        return np.array([ids + ids[-1:] * (self._length - len(ids)) for ids in rows], np.int64)
