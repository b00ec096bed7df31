"""Version ranges of targets, as PEP 440 writes them, for versions as vendors write them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from itertools import zip_longest

from edgevtx.errors import BundleError

Release = tuple[int, ...]

_CLAUSE = re.compile(r"(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def release(version: str) -> Release:
    """The leading numbers of a version: "2026.4.1-22982-e213a-releases" -> (2026, 4, 1).

    Suffixes are dropped: a release candidate, a local build and a git hash count as the release they belong to.
    """
    found = re.match(r"\s*v?(\d+(?:\.\d+)*)", version)
    if not found:
        raise BundleError(f"{version!r} is no version: it must begin with numbers, such as 1.23.2")
    return tuple(int(part) for part in found.group(1).split("."))


def in_range(version: str, specifier: str) -> bool:
    """Whether `version` is in the range `specifier`, such as ">=1.23,<2", "==2026.*" or "~=10.3"; "" takes all."""
    have = release(version)
    return all(_clause(have, clause.strip(), specifier) for clause in specifier.split(",") if clause.strip())


def _clause(have: Release, clause: str, specifier: str) -> bool:
    found = _CLAUSE.fullmatch(clause)
    if not found:
        raise BundleError(f"version range {specifier!r} is not understood at {clause!r}; export the bundle again")
    sign, text, prefix = found.groups()
    want = release(text)
    if sign == "~=":
        return _order(have, want) >= 0 and have[: len(want) - 1] == want[:-1]
    if prefix:
        have = have[: len(want)]
    return _COMPARE[sign](_order(have, want), 0)


def _order(left: Release, right: Release) -> int:
    for a, b in zip_longest(left, right, fillvalue=0):
        if a != b:
            return -1 if a < b else 1
    return 0
