"""In which types an engine really multiplies: read from the engine, weighed by multiply-adds, held to what was asked.

Peers have shipped FP32 engines for `fp16=True`, with exit code 0; what was asked proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from edgevtx.errors import CompileError

Shape = Sequence[int]

# precision -> the types of multiplicands that fulfil it
TYPES = {"fp32": ("f32",), "bf16": ("bf16",), "fp16": ("f16",), "int8": ("i8",)}

REQUIRED_SHARE = 0.9

LEAST_SHARES = {"fp32": REQUIRED_SHARE, "fp16": 0.5, "bf16": 0.5, "int8": 0.25}
"""Of a graph that was typed on purpose: export keeps in fp32 what does not bear less, or has no kernel in bf16, and
quantises neither attention's own products nor the heads."""


def product_work(left: Shape, out: Shape) -> int:
    """Multiply-adds of a matrix product, of which `left` is an operand, transposed or not, and `out` the result.

    With `left` of B·M·K elements and `out` of B·M·N: elements of `out`, times K.
    """
    rows = prod(out[:-1])
    return prod(out) * (prod(left) // rows if rows else 0)


def convolution_work(weights: Shape, out: Shape) -> int:
    """Multiply-adds of a convolution with weights (O, I, kh, kw) (grouped: without the group dimension of O)."""
    return prod(out) * prod(weights[1:])


def attention_work(query: Shape, tokens: int) -> int:
    """Multiply-adds of both products of attention: `query` (..., d) against `tokens` keys, then values."""
    return 2 * prod(query) * tokens


def shares(work: Iterable[tuple[str, int]]) -> dict[str, float]:
    """(type, multiply-adds) of every operation -> share of each type, largest first; empty where there is no work."""
    total: dict[str, int] = {}
    for kind, amount in work:
        total[kind] = total.get(kind, 0) + amount
    everything = sum(total.values())
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return {kind: round(amount / everything, 6) for kind, amount in ordered if amount}


def require(asked: str, found: dict[str, float], *, target: str, device: str, least: float = REQUIRED_SHARE) -> None:
    """Raise `CompileError` unless the share `least` of the work is in the type asked for.

    An engine without any convolution or matrix product, and one whose operations cannot be seen (a provider that
    compiles whole subgraphs), has no shares and passes: nothing can be told of it.
    """
    share = sum(found.get(kind, 0.0) for kind in TYPES[asked])
    if found and share < least:
        came = ", ".join(f"{share:.0%} {kind}" for kind, share in found.items())
        raise CompileError(
            f"{asked} was asked of {target} on {device}, but the engine that it built computes {came} of its matrix "
            f"products; at least {least:.0%} must be {asked}: choose another precision or runtime"
        )
