"""`edgevtx export`: from a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.cli.onnx_options import check_onnx_options, onnx_options, open_graph
from edgevtx.errors import InputError, VerificationError

if TYPE_CHECKING:
    from edgevtx.export.pipeline import ExportReport


@click.command(short_help="Export a checkpoint as a verified bundle.")
@click.argument("family")
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="A Hugging Face checkpoint directory, or a file of weights as authors publish it.",
)
@click.option(
    "--config",
    metavar="PATH",
    help="An architecture's config.json: alone, for seeded random weights; beside a file of weights, what that lacks.",
)
@click.option(
    "--allow-partial", is_flag=True, help="Export although tensors of the checkpoint are missing or left over."
)
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="The seed of those random weights.")
@click.option("--out", metavar="NAME.vtx", required=True, help="The bundle to write.")
@click.option(
    "--images",
    metavar="DIR",
    help="Your own photographs (for models of clips, videos) to verify on (recommended); one stays in the bundle.",
)
@click.option(
    "--targets",
    metavar="NAME,...",
    callback=common.parse_names,
    default="openvino,onnxruntime",
    show_default=True,
    help="Runtimes to export for.",
)
@click.option(
    "--precisions",
    metavar="NAME,...",
    callback=common.parse_names,
    default="fp32",
    show_default=True,
    help="Precisions to verify, preferred one first: fp32, fp16, bf16, int8.",
)
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Frames that the graph takes."
)
@click.option("--dynamic-batch", is_flag=True, help="Take any number of frames.")
@click.option(
    "--frame",
    metavar="WIDTHxHEIGHT",
    callback=common.parse_size,
    help="Fix the graph for one camera's frames; it compiles faster.",
)
@click.option(
    "--top-k", metavar="N", type=click.IntRange(1), help="Rows that the graph keeps; default: the family's own."
)
@click.option("--labels", metavar="FILE", help="Class names, one a line, in place of the checkpoint's; or: coco.")
@click.option("--task", metavar="NAME", help="Of a family with several tasks; default: what the checkpoint is for.")
@click.option("--attention", is_flag=True, help="Also give the last layer's attention (dino).")
@click.option(
    "--resize",
    type=click.Choice(["pillow", "opencv"]),
    help="pillow (the default) equals the checkpoint's own processor; opencv is faster and gated by verification. "
    "Imported YOLOs resize as their projects do and take neither.",
)
@click.option(
    "--clip-fps",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="Frames a second that a model of clips was trained at (vivit, attention_cnn); default: what its config says.",
)
@click.option(
    "--denoise",
    metavar="NAME[:P=V,...]",
    help="Denoise the resized frames: bilateral, nlmeans or lark, such as lark:smoothing=1.8,window=5.",
)
@click.option("--keep-failed", is_flag=True, help="Pack what failed verification too, marked; load refuses it.")
@click.option("--all-or-nothing", is_flag=True, help="Pack nothing if anything requested failed.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a file that is no bundle (an older bundle is replaced anyway)."
)
@click.option("--name", metavar="TEXT", default="", help="The model's name in the manifest; default: the file's.")
@click.option("--licence", metavar="TEXT", default="", help="The weights' licence; default: what the checkpoint says.")
@click.option("--source", metavar="TEXT", default="", help="Where the weights come from.")
@click.option("--intended-use", metavar="TEXT", default="", help="What the model is for.")
@onnx_options
@common.json_option
def command(**options: Any) -> None:
    """Export a checkpoint as a bundle, verified against its reference on every target and precision.

    \b
    Example:
      edgevtx export vit --checkpoint vit-base-patch16-224 --images photos --out vit.vtx
      edgevtx export detr --checkpoint detr-r50-e632da11.pth --images photos --out detr.vtx
      edgevtx export rtdetr --config config.json --out trial.vtx --precisions fp32,bf16
      edgevtx export onnx --graph yolox_nano.onnx --decode yolox --labels coco --out yolox.vtx

    What fails verification is not packed, and the exit code is 3.
    """
    checkpoint, config = options["checkpoint"], options["config"]
    check_onnx_options(options)
    if options["graph"] is None and checkpoint is None and config is None:
        raise click.UsageError("give --checkpoint (weights) or --config (architecture alone, random weights)")
    if checkpoint is None and options["allow_partial"]:
        raise click.UsageError("--allow-partial speaks of the tensors of a --checkpoint; leave it out")
    if options["dynamic_batch"] and options["batch"] != 1:
        raise click.UsageError("give either --batch or --dynamic-batch")
    from edgevtx.cli.families import missing_export_extra

    try:
        report = _export(options)
    except ImportError as error:
        raise missing_export_extra(error) from None
    if options["as_json"]:
        common.print_json(_facts(report))
    else:
        _print(report)
    if report.refused:
        names = ", ".join(f"{item.target} {item.precision}" for item in report.refused)
        if report.bundle is None:
            raise VerificationError(f"nothing was packed, since {names} did not pass; --keep-failed packs it, marked")
        kept = "is marked as failed in" if options["keep_failed"] else "was left out of"
        raise VerificationError(f"{names} did not pass and {kept} {report.bundle}")


def _export(options: dict[str, Any]) -> ExportReport:
    with common.stages("import torch") as progress:
        from edgevtx.denoise import parse_denoise
        from edgevtx.export.checkpoint import Checkpoint
        from edgevtx.export.pipeline import ExportOptions, export
        from edgevtx.export.recipe import BuildOptions, Source, get_recipe

        get_recipe(options["family"])  # an unknown family is reported before the checkpoint is read
        checkpoint: Source
        if options["graph"] is not None:
            checkpoint = open_graph(options)
        elif options["checkpoint"] is not None:
            checkpoint = Checkpoint.open(
                options["checkpoint"], config=options["config"], allow_partial=options["allow_partial"]
            )
        else:
            checkpoint = Checkpoint.open(options["config"], seed=options["seed"])
        build = BuildOptions(
            batch=None if options["dynamic_batch"] else options["batch"],
            frame=options["frame"],
            top_k=options["top_k"],
            attention=options["attention"],
            labels=None if options["labels"] is None else read_labels(options["labels"]),
            resize=options["resize"],
            clip_fps=options["clip_fps"],
            task=options["task"],
        )
        direct = ("targets", "precisions", "name", "licence", "source", "intended_use")
        flags = ("keep_failed", "all_or_nothing", "overwrite")
        asked = ExportOptions(
            build=build,
            denoise=None if options["denoise"] is None else parse_denoise(options["denoise"]),
            images=None if options["images"] is None else Path(options["images"]),
            **{key: options[key] for key in (*direct, *flags)},
        )
        return export(options["family"], checkpoint, Path(options["out"]), asked, progress=progress)


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of the class ids; "coco" are COCO's 80.

    Raises `InputError`.
    """
    if path == "coco":
        from edgevtx.export.labels import COCO

        return COCO
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels of {path} ({error}); give a UTF-8 text file, a name a line") from None
    labels = tuple(line.strip() for line in lines)
    while labels and not labels[-1]:
        labels = labels[:-1]
    if not labels or not all(labels):
        raise InputError(f"{path} has empty lines or none at all; give one class name a line")
    return labels


def _facts(report: ExportReport) -> dict[str, Any]:
    import msgspec

    return {
        "bundle": None if report.bundle is None else str(report.bundle),
        "verdicts": msgspec.to_builtins(report.manifest.verdicts),
        "graphs": msgspec.to_builtins(report.manifest.graphs),
        "recommended": report.manifest.recommended,
        "refused": [f"{item.target} {item.precision}" for item in report.refused],
        "skipped": list(report.skipped),
        "seconds": report.seconds,
    }


def _print(report: ExportReport) -> None:
    out = common.console()
    common.print_verdicts(out, report.manifest.verdicts)
    common.print_notes(out, (note for graph in report.manifest.graphs for note in common.graph_notes(graph)))
    for pair in report.skipped:
        out.print(f"{pair}: that target has no such precision, so nothing was exported for it", soft_wrap=True)
    spent = common.seconds(sum(report.seconds.values()))
    if report.bundle is None:
        return
    path = report.bundle
    size = path.stat().st_size if path.is_file() else sum(item.stat().st_size for item in path.rglob("*"))
    out.print(f"\n{path} ({common.size(size)}) in {spent}", soft_wrap=True, markup=False)
