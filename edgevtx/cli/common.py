"""What the verbs share: options, consoles, progress, the way facts are printed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgevtx.manifest import Graph, Verdict

Command = TypeVar("Command", bound=Callable[..., Any])

STYLES = {
    "passed-here": "green",
    "passed-elsewhere": "green",
    "graph-only": "yellow",
    "insensitive": "red",
    "failed": "red",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
bundle_argument = click.argument("bundle", metavar="BUNDLE")
runtime_option = click.option(
    "--runtime",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto, openvino, onnxruntime, tensorrt or tensorrt-rtx.",
)


# -- options ---------------------------------------------------------------------------------------------------


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT in pixels as (height, width)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is no size; write it as WIDTHxHEIGHT, such as 1920x1080")
    return int(parts[1]), int(parts[0])


def parse_sizes(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Several times WIDTHxHEIGHT in pixels as (height, width), without repeats."""
    sizes = (parse_size(ctx, param, item) for item in value)
    return tuple(dict.fromkeys(size for size in sizes if size))


def parse_box(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """X0,Y0,X1,Y1 in pixels."""
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no region; write it as X0,Y0,X1,Y1 in pixels, such as 0,100,640,480")
    return tuple(int(part) for part in parts)


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names separated by commas, without repeats; empty where the option was not given."""
    return tuple(dict.fromkeys(name.strip() for name in (value or "").split(",") if name.strip()))


def engine_options(command: Command) -> Command:
    """The options that choose an engine; `engine_arguments` makes `edgevtx.load`'s arguments of them."""
    options = [
        runtime_option,
        click.option(
            "--device",
            metavar="NAME",
            default="CPU",
            show_default=True,
            help="The runtime's name: CPU, GPU, NPU, AUTO.",
        ),
        click.option(
            "--precision",
            metavar="NAME",
            help="One that the bundle has for the runtime, such as fp32 or fp16; default: what it recommends.",
        ),
        click.option(
            "--threads", metavar="N", type=click.IntRange(1), help="Processor threads; default: the runtime's choice."
        ),
        click.option(
            "--providers", metavar="NAME,...", callback=parse_names, help="ONNX Runtime execution providers, in order."
        ),
        click.option(
            "--compile",
            "compile_mode",
            type=click.Choice(["auto", "never", "force"]),
            default="auto",
            show_default=True,
            help="What to do when the cache holds no engine: compile one, or fail. force compiles anyway.",
        ),
        click.option("--allow-unverified", is_flag=True, help="Run a model that failed verification."),
    ]
    return with_options(command, options)


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """A command with click's options added, which its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def engine_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """`edgevtx.load`'s keyword arguments, out of a verb's options."""
    names = ("runtime", "device", "precision", "threads", "providers", "allow_unverified")
    return {**{name: options[name] for name in names}, "compile": options["compile_mode"]}


# -- printing --------------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or error; 120 columns wide where nobody says how wide it is."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return Console(file=stream, width=width, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def facts_table(facts: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Table:
    """Names and values in two columns; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items() if isinstance(facts, Mapping) else facts:
        if value not in ("", None, (), [], {}):
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def print_verdicts(out: Console, verdicts: Sequence[Verdict]) -> None:
    """One row a verdict: status, where it ran, the precision found; and below, why one did not pass."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("target", "precision", "verdict", "ran on", "executed as"):
        table.add_column(name, overflow="fold")
    for item in verdicts:
        table.add_row(
            item.target,
            item.precision,
            Text(item.status, STYLES.get(item.status, "")),
            Text(f"{item.device} {item.target_version}".strip() or "-"),
            Text(shares(item.precision_share)),
        )
    out.print(table)
    for item in verdicts:
        if item.reason:
            out.print(Text(f"{item.target} {item.precision}: {item.reason}"), soft_wrap=True)


def graph_notes(graph: Graph, version: str | None = None, gpu: str | None = None) -> Iterator[str]:
    """What a graph is made to avoid of its compiler, what is left of it, and what keeps a higher precision; of every
    version and GPU where none is named."""
    from edgevtx.runtimes import known_bad

    for row in known_bad.find(graph.target, version, gpu=gpu):
        if row.id in graph.avoids:
            yield f"rewritten for {graph.target} {row.versions}: {row}"
        elif row.pattern in graph.patterns and set(row.precisions) & set(graph.precisions):
            gpus = f" on {', '.join(row.gpus)}" if row.gpus else ""
            yield f"may be wrong in {graph.target} {row.versions}{gpus}: {row}; {row.advice}"
    if graph.kept_fp32:
        yield f"{graph.file}: keeps fp32 in {', '.join(graph.kept_fp32)}"
    if graph.unquantised:
        yield f"{graph.file}: keeps fp16 in {', '.join(graph.unquantised)}"


def print_notes(out: Console, notes: Iterable[str]) -> None:
    """Each note once, on a line of its own."""
    for note in dict.fromkeys(notes):
        out.print(note, soft_wrap=True, markup=False)


def shares(precision_share: Mapping[str, float]) -> str:
    """How much of the matrix work runs in which type: "bf16 98%, f32 2%"."""
    parts = sorted(precision_share.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in parts if share >= 0.005) or "-"


def seconds(value: float) -> str:
    """A duration as people read it."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextlib.contextmanager
def stages(first: str) -> Iterator[Callable[[str], None]]:
    """Show which stage of long work runs, and for how long, on a terminal; silent elsewhere."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield lambda stage: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=target, transient=True
    ) as progress:
        task = progress.add_task(first)
        yield lambda stage: progress.reset(task, description=stage)
