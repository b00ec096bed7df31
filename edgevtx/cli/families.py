"""`edgevtx families`: what can be exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli.common import console, json_option, print_json

if TYPE_CHECKING:
    from edgevtx.export.recipe import Recipe


@click.command(short_help="List what can be exported.")
@click.argument("family", required=False)
@json_option
def command(family: str | None, as_json: bool) -> None:
    """List the model families that can be exported, or describe one.

    \b
    Example:
      edgevtx families
      edgevtx families rtdetr
    """
    from edgevtx.export.recipe import FAMILIES

    recipes = [load_recipe(name) for name in ([family] if family else FAMILIES)]
    if as_json:
        print_json([_facts(recipe) for recipe in recipes])
    elif family:
        _describe(recipes[0])
    else:
        _list(recipes)


def load_recipe(family: str) -> Recipe:
    """A family's recipe; recipes need torch, and its absence is reported with the command that installs it."""
    from edgevtx.export.recipe import get_recipe

    try:
        return get_recipe(family)
    except ImportError as error:
        raise missing_export_extra(error) from None


def missing_export_extra(error: ImportError) -> Exception:
    """The error to raise for a missing package of the export side; `error` itself where it is a fault of ours."""
    from edgevtx.errors import RuntimeUnavailableError

    if (error.name or "").startswith("edgevtx"):
        return error
    return RuntimeUnavailableError(
        f'exporting needs packages that are not here ({error}); pip install "edgevtx[export]" on the workstation'
    )


def _facts(recipe: Recipe) -> dict[str, Any]:
    hidden = ("build", "tiny_config", "further")
    names = [field.name for field in dataclasses.fields(recipe) if field.name not in hidden]
    return {**{name: getattr(recipe, name) for name in names}, "results": recipe.results, "denoise": _denoisers()}


def _list(recipes: list[Recipe]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("family", no_wrap=True)
    table.add_column("task: result", no_wrap=True)
    table.add_column("what", overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.family, _answers(recipe.results), recipe.title)
    out = console()
    out.print(table)
    out.print("\nedgevtx families FAMILY says more of one: its variants, model types and layouts of checkpoints.")
    out.print(
        f"edgevtx fit gives {_listed(item.family for item in recipes if item.fit)} classes from folders of images."
    )
    out.print(f"Every family can denoise its frames: --denoise {_listed(_denoisers())}.")


def _answers(results: Mapping[Any, str]) -> str:
    return "\n".join(f"{task}: {result}" for task, result in results.items())


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _denoisers() -> list[str]:
    from edgevtx.denoise import KINDS

    return list(KINDS)


def _describe(recipe: Recipe) -> None:
    from edgevtx.cli.common import facts_table

    console().print(
        facts_table(
            {
                "family": recipe.family,
                "what": recipe.title,
                "paper": recipe.paper,
                "tasks": _answers(recipe.results),
                "by edgevtx fit": _answers(recipe.fit),
                "variants": "\n".join(recipe.variants),
                "model types": ", ".join(recipe.model_types),
                "checkpoints": "\n".join(recipe.layouts),
                "options": "\n".join(recipe.options),
                "denoising": f"--denoise {_listed(_denoisers())}",
            }
        )
    )
