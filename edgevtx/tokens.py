"""Texts -> token ids, with the `tokenizers` library and the tokenizer.json of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevtx.errors import BundleError, InputError, RuntimeUnavailableError


class Tokenizer:
    """A bundle's tokenizer; rows of ids are `length` long. A longer text is refused: its beginning is another text."""

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
        self._library.no_truncation()
        self._length = length

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """N texts -> (N, length) int64: start, words, end, and the end's id again to the full length.

        Raises `InputError` for a text of more tokens.
        """
        rows = [item.ids for item in self._library.encode_batch(list(texts))]
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > self._length:
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                raise InputError(
                    f"the text {shown!r} is {len(ids)} tokens long, its start and end counted, and this model reads at "
                    f"most {self._length}; shorten it"
                )
        return np.array([ids + ids[-1:] * (self._length - len(ids)) for ids in rows], np.int64)
