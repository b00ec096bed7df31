"""The prompts of `edgevtx run`: points, boxes and texts as options, for models that take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgevtx.predictor import Predictor

Command = TypeVar("Command", bound=Callable[..., Any])


def prompt_options(command: Command) -> Command:
    """`--points`, `--boxes` and `--text`, each of them once for every prompt."""
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
    ]
    for option in reversed(options):
        command = option(command)
    return command


def apply_prompts(model: Predictor, options: dict[str, Any]) -> None:
    """Make the model ask this of every frame, and look for everything down to the threshold.

    Raises `InputError` where there are prompts and the model takes none, or where they do not fit together.
    """
    from edgevtx.errors import InputError
    from edgevtx.prompt import PromptPredictor

    points, boxes, texts = (options.pop(name) for name in ("points", "boxes", "text"))
    given = bool(points or boxes or texts)
    if not isinstance(model, PromptPredictor):
        if given:
            raise InputError(f"{model.info.name} ({model.info.family}) takes no prompts; leave them out")
        return
    if given:
        model.ask(
            points=[[point[:2] for point in prompt] for prompt in points] or None,
            point_labels=[[point[2] for point in prompt] for prompt in points] or None,
            boxes=boxes or None,
            text=texts or None,
        )
    elif options["threshold"] is not None:
        model.everything = dataclasses.replace(model.everything, iou_threshold=options["threshold"])


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
