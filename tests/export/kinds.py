"""The types that recipes read, for tests over all of them: (family, type), a family's further tasks behind the type."""

from __future__ import annotations

import pytest

from edgevtx.export.recipe import FAMILIES, get_recipe

CONFIGURED = [
    (family, f"{kind} {task}" if task in get_recipe(family).further else kind)
    for family in FAMILIES
    for kind in get_recipe(family).tiny_config()
    for task in get_recipe(family).results
]
"""Those that a config describes; the family onnx reads graphs. As in ("swin", "swin embed")."""


def each(cases):
    """Parametrises a test over (family, kind)."""
    return pytest.mark.parametrize(("family", "kind"), cases, ids=[f"{family}-{kind}" for family, kind in cases])


each_configured = each(CONFIGURED)
