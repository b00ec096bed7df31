"""`edgevtx info`: what a bundle, or a TensorRT plan, is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.bundle import Bundle
    from edgevtx.manifest import TensorInfo
    from edgevtx.rules import Preprocess


@click.command(short_help="Show what a bundle or a plan holds.")
@common.bundle_argument
@click.option("--bundle", "of", metavar="BUNDLE", help="Of a plan: also check that it was compiled from this bundle.")
@common.json_option
def command(bundle: str, of: str | None, as_json: bool) -> None:
    """Show what a bundle holds: the model, its input and outputs, where it was verified, its files.

    Given a TensorRT plan (NAME.plan, its NAME.json beside it), show what that is; this needs no GPU.

    \b
    Example:
      edgevtx info fire.vtx
      edgevtx info fire.vtx --json
      edgevtx info plans/fire.tensorrt-rtx.sm89.fp16.plan
    """
    if Path(bundle).suffix == ".plan":
        from edgevtx.cli import plans

        plans.show(Path(bundle), of, as_json)
        return
    if of is not None:
        raise InputError(f"--bundle is for plans (NAME.plan), and {bundle} is none; leave it out")
    import msgspec

    from edgevtx.bundle import Bundle

    opened = Bundle.open(bundle)
    if as_json:
        common.print_json({"digest": opened.digest, **msgspec.to_builtins(opened.manifest)})
        return
    out = common.console()
    out.print(common.facts_table(facts(opened)))
    out.print()
    common.print_verdicts(out, opened.manifest.verdicts)
    out.print()
    out.print(_graphs(opened))
    common.print_notes(out, (note for graph in opened.manifest.graphs for note in common.graph_notes(graph)))


def facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest in words."""
    manifest = bundle.manifest
    made = manifest.provenance
    recommended = ", ".join(f"{precision} on {target}" for target, precision in manifest.recommended.items())
    return {
        "name": manifest.name,
        "family": f"{manifest.family} ({manifest.task})",
        "input": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
        **{
            f"{name} (a further network)": f"{_tensors(part.inputs)} -> {_tensors(part.outputs)}"
            for name, part in manifest.parts.items()
        },
        "preprocessing": preprocessing(manifest.preprocess),
        "classes": _labels(manifest.labels),
        "recommended": recommended or "none",
        "checkpoint": made.checkpoint,
        "checkpoint sha256": made.checkpoint_sha256[:16] or "none: seeded random weights",
        "licence": made.licence or "not stated",
        "source": made.source,
        "intended use": made.intended_use,
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "size": f"{common.size(sum(item.size for item in manifest.files))} in {len(manifest.files)} files",
        "digest": bundle.digest[:16],
        "notes": "\n".join(manifest.notes),
    }


def preprocessing(rule: Preprocess) -> str:
    """The host's part of preprocessing in words."""
    size = rule.size
    names = {field: getattr(size, field) for field in size.__struct_fields__}
    words = type(size).__name__.lower()
    if "height" in names:
        words = f"{'letterbox' if words == 'letterbox' else 'exactly'} {names['width']}x{names['height']}"
    elif "shortest" in names:
        longest = f", longest {names['longest']}" if names["longest"] else ""
        words = f"shortest edge {names['shortest']}{longest}"
    else:
        words = f"longest edge {names['longest']}"
    crop = f", centre crop {rule.crop[1]}x{rule.crop[0]}" if rule.crop else ""
    clip = f"{rule.clip.frames} frames at {rule.clip.fps:g} a second, each " if rule.clip else ""
    denoised = ""
    if rule.denoise is not None:
        values = (f"{name} {getattr(rule.denoise, name):g}" for name in rule.denoise.__struct_fields__)
        denoised = f", denoised by {rule.denoise.__struct_config__.tag} ({', '.join(values)})"
    return f"{clip}{words}{crop}, {rule.interpolation}, by {rule.resize}{denoised}"


def _tensors(tensors: tuple[TensorInfo, ...]) -> str:
    def one(item: TensorInfo) -> str:
        return f"{item.name} {item.dtype}[{','.join('?' if n is None else str(n) for n in item.shape)}]"

    return ", ".join(map(one, tensors))


def _labels(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:6])
    return f"{len(labels)}: {shown}{', ...' if len(labels) > 6 else ''}" if labels else ""


def _graphs(bundle: Bundle) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("graph", "target", "serves", "precisions", "opset"):
        table.add_column(name, overflow="fold")
    for graph in bundle.manifest.graphs:
        table.add_row(graph.file, graph.target, graph.versions, ", ".join(graph.precisions), str(graph.opset))
    return table
