"""Keep PyTorch's exporter and onnxscript's optimizer off the terminal."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_CHATTY = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines, none of which a user can act on, off the terminal."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    loggers += [
        item
        for name, item in list(logging.root.manager.loggerDict.items())
        if isinstance(item, logging.Logger) and name.startswith(_CHATTY)
    ]
    levels = [(item, item.level) for item in loggers]
    try:
        for item in loggers:
            item.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in levels:
            item.setLevel(level)
