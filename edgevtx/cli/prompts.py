"""What `edgevtx run` asks of models that take prompts: points, boxes and texts, or everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgevtx.cli import common

if TYPE_CHECKING:
    from edgevtx.decode.everything import Everything
    from edgevtx.manifest import Manifest
    from edgevtx.predictor import Predictor
    from edgevtx.rules import PromptDecode

Command = TypeVar("Command", bound=Callable[..., Any])

PROMPTS = ("points", "boxes", "text")
EVERYTHING = ("points_per_side", "crop_layers", "min_region_area")
"""Fields of `edgevtx.decode.everything.Everything` that are options."""


def prompt_options(command: Command) -> Command:
    """`--points`, `--boxes` and `--text`, each of them once for every prompt, and how everything is looked for."""
    options = [
        click.option(
            "--points",
            metavar="X,Y[,LABEL][;...]",
            multiple=True,
            callback=_parse_points,
            help="Prompt with points, in px: 1 (the default) on the object, 0 not on it. Once for each prompt.",
        ),
        click.option(
            "--boxes",
            metavar="X0,Y0,X1,Y1",
            multiple=True,
            callback=_parse_boxes,
            help="Prompt with a box, in px. Once for each prompt.",
        ),
        click.option("--text", metavar="TEXT", multiple=True, help="Prompt with a text. Once for each prompt."),
        click.option(
            "--single-mask", is_flag=True, help="With prompts: one mask for each, instead of its three readings."
        ),
        click.option(
            "--points-per-side",
            metavar="N",
            type=click.IntRange(1),
            help="Without prompts: a grid of so many points a side finds everything; default: the bundle's.",
        ),
        click.option(
            "--crop-layers",
            metavar="N",
            type=click.IntRange(0),
            help="Without prompts: look at 4, 16, ... overlapping crops of the frame too, in so many layers.",
        ),
        click.option(
            "--min-region-area",
            metavar="PX",
            type=click.IntRange(0),
            help="Without prompts: fill holes and remove islands of fewer px.",
        ),
    ]
    return common.with_options(command, options)


def check_prompts(manifest: Manifest, options: dict[str, Any]) -> None:
    """Raise `InputError` for prompts and options that this model does not take, or that do not go together."""
    from edgevtx.decode import check_options
    from edgevtx.errors import InputError
    from edgevtx.prompts import read_prompts
    from edgevtx.rules import PromptDecode

    prompts = [name for name in PROMPTS if options[name]]
    settings = [name for name in EVERYTHING if options[name] is not None]
    limits = [name for name in ("threshold", "top_k") if options[name] is not None]
    rule = manifest.decode
    check_options(rule, options["threshold"], options["top_k"])
    if not isinstance(rule, PromptDecode):
        if given := prompts + settings + ["single_mask"] * options["single_mask"]:
            raise InputError(f"{manifest.name} ({manifest.family}) takes no prompts; leave them out ({_flags(given)})")
        return
    if prompts and (settings or limits):
        raise InputError(
            f"{_flags(settings + limits)} says what is kept of everything, and {_flags(prompts)} asks for something; "
            "leave one of them out"
        )
    if not prompts and options["single_mask"]:
        raise InputError("--single-mask needs a prompt; add --points, --boxes or --text, or leave it out")
    if prompts:
        read_prompts(**_prompts(options), rule=rule)
    elif settings:
        _everything(options, rule)


def apply_prompts(model: Predictor, options: dict[str, Any]) -> None:
    """Make the model ask of every frame what `check_prompts` has passed."""
    from edgevtx.prompt import PromptPredictor

    if not isinstance(model, PromptPredictor):
        return
    if any(options[name] for name in PROMPTS):
        model.ask(**_prompts(options), multimask=not options["single_mask"])
    else:
        model.everything = _everything(options, model.rule)


def _prompts(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `PromptPredictor.ask`."""
    return {
        "points": [[point[:2] for point in prompt] for prompt in options["points"]] or None,
        "point_labels": [[point[2] for point in prompt] for prompt in options["points"]] or None,
        "boxes": options["boxes"] or None,
        "text": options["text"] or None,
    }


def _everything(options: dict[str, Any], rule: PromptDecode) -> Everything:
    """The bundle's settings with those that were given."""
    from edgevtx.decode.everything import Everything

    given = {name: options[name] for name in EVERYTHING if options[name] is not None}
    return dataclasses.replace(Everything.of(rule), **given)


def _flags(names: list[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _parse_points(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[list[tuple[float, float, int]], ...]:
    return tuple([_point(word) for word in value.split(";") if word.strip()] for value in values)


def _point(word: str) -> tuple[float, float, int]:
    parts = word.split(",")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        return float(parts[0]), float(parts[1]), int(parts[2]) if len(parts) == 3 else 1
    except ValueError:
        raise click.BadParameter(
            f"{word!r} is no point; write it as X,Y or X,Y,LABEL in pixels, such as 320,240,1"
        ) from None


def _parse_boxes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(_box(value) for value in values)


def _box(value: str) -> tuple[float, ...]:
    parts = value.split(",")
    try:
        if len(parts) != 4:
            raise ValueError
        return tuple(float(part) for part in parts)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no box; write it as X0,Y0,X1,Y1 in pixels, such as 100,50,300,200"
        ) from None
