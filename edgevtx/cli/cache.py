"""`edgevtx cache`: what the cache holds, and emptying it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common

if TYPE_CHECKING:
    from edgevtx.cache import Entry, Kind

kind_argument = click.argument("kind", required=False, type=click.Choice(["bundles", "engines"]))


@click.group(short_help="List or clear unpacked bundles and engines.")
def command() -> None:
    """List or clear the cache of unpacked bundles and compiled engines.

    \b
    Example:
      edgevtx cache list
      edgevtx cache clear engines

    EDGEVTX_CACHE is its folder; beyond EDGEVTX_CACHE_MAX (such as 500MB, 20GB, none) the least recently used goes.
    """


@command.command("list")
@kind_argument
@common.json_option
def list_entries(kind: Kind | None, as_json: bool) -> None:
    """List what is cached, the most recently used first."""
    from rich.table import Table

    from edgevtx import cache

    entries = [entry for entry in cache.entries() if kind in (None, entry.kind)]
    if as_json:
        common.print_json({"root": str(cache.root()), "limit": cache.limit(), "entries": [_facts(e) for e in entries]})
        return
    out = common.console()
    if entries:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("kind", "key", "size", "last used"):
            table.add_column(name, overflow="fold")
        for entry in entries:
            table.add_row(entry.kind, entry.key, common.size(entry.size), _ago(entry.used))
        out.print(table)
        out.print()
    limit = cache.limit()
    most = "without limit" if limit is None else f"of at most {common.size(limit)}"
    out.print(f"{cache.root()}: {common.size(sum(e.size for e in entries))} {most}", soft_wrap=True)


@command.command("clear")
@kind_argument
@common.json_option
def clear_entries(kind: Kind | None, as_json: bool) -> None:
    """Remove what is cached, but what a running program uses. The next load unpacks and compiles again."""
    from edgevtx import cache

    removed = cache.clear(kind)
    left = [entry for entry in cache.entries() if kind in (None, entry.kind)]
    if as_json:
        common.print_json({"removed": [_facts(e) for e in removed], "left": [_facts(e) for e in left]})
        return
    click.echo(f"removed {len(removed)} entries, {common.size(sum(entry.size for entry in removed))}")
    if left:
        click.echo(f"{len(left)} are in use by a running program, or cannot be removed, and stay")


def _facts(entry: Entry) -> dict[str, Any]:
    return {"kind": entry.kind, "key": entry.key, "path": str(entry.path), "bytes": entry.size, "used": entry.used}


def _ago(moment: float) -> str:
    spent = max(0.0, time.time() - moment)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if spent >= 2 * length:
            return f"{spent / length:.0f} {unit} ago"
    return "just now" if spent < 60 else "a minute ago"
