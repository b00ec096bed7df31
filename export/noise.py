"""The reference's own rounding noise: how far float32 alone moves what a network answers.

Networks differ in how they amplify rounding errors. Two float32 computations of one that does so strongly, both as good
as float32 can be, lie further apart than the tolerance for fp32; against the same module in float64 that shows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgevtx.compare import compare
from edgevtx.compare.tolerance import NOISE, TOLERANCES
from edgevtx.export.onnx_file import ImportedGraph
from edgevtx.export.recipe import Traceable, TraceablePart
from edgevtx.golden import Exchange
from edgevtx.rules import Decode


def rounding_noise(
    network: Traceable | TraceablePart, exchanges: Sequence[Exchange], decode: Decode | None
) -> dict[str, float]:
    """The largest error of each output in the float32 answers of `exchanges`, in standard deviations, found in float64.

    Empty where nothing can be said: an imported graph has no float64, and a row that is lost there is no noise. Outputs
    with so little that the tolerance for fp32 allows for it are left out.
    """
    if isinstance(network.module, ImportedGraph):
        return {}
    module, found = copy.deepcopy(network.module).double(), dict[str, float]()
    for exchange in exchanges:
        inputs = (torch.from_numpy(exchange.inputs[item.name]) for item in network.inputs)
        with torch.inference_mode(), _doubles():
            values = module(*(value.double() if value.is_floating_point() else value for value in inputs))
        exact = {item.name: value.numpy() for item, value in zip(network.outputs, values, strict=True)}
        for check in compare(exact, exchange.outputs, decode, "fp32"):
            kind, _, name = check.name.partition(": ")
            if kind == "values" and name in exact:
                found[name] = max(found.get(name, 0.0), math.inf if check.error is None else check.error)
            elif kind == "values" and not check.passed:  # rows without a partner
                return {}
    limit = TOLERANCES["fp32"].values
    return {name: found[name] for name in sorted(found) if limit < NOISE * found[name] < math.inf}


class _Doubles(TorchFunctionMode):
    """Casts to float32 give float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = torch.Tensor.double if func is torch.Tensor.float else func
        return function(*map(_double, args), **{name: _double(item) for name, item in (kwargs or {}).items()})


def _double(item: Any) -> Any:
    return torch.float64 if item is torch.float32 else item


@contextmanager
def _doubles() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubles():
            yield
    finally:
        torch.set_default_dtype(default)
