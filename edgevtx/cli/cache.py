"""`edgevtx cache`: what the cache holds, and emptying it."""

from __future__ import annotations

import click

from edgevtx.cli import common


@click.group(short_help="List or clear unpacked bundles and engines.")
def command() -> None:
    """List or clear the cache of unpacked bundles and compiled engines.

    \b
    Example:
      edgevtx cache list
      edgevtx cache clear

    Its place is EDGEVTX_CACHE, its limit EDGEVTX_CACHE_MAX (bytes, or 2GB).
    """
