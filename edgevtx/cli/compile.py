"""`edgevtx compile`: fill the engine cache ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevtx.cli import common
from edgevtx.errors import InputError

if TYPE_CHECKING:
    from edgevtx.engines import CompileMode
    from edgevtx.predictor import ModelInfo

PLANS = ("tensorrt", "tensorrt-rtx")
"""The targets whose engines are plans; see `edgevtx.cli.plans`."""


@click.command(short_help="Compile a bundle ahead of its first use.")
@common.bundle_argument
@click.option(
    "--target",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="openvino, onnxruntime, tensorrt or tensorrt-rtx.",
)
@click.option(
    "--device", metavar="NAME", default="CPU", show_default=True, help="The runtime's name: CPU, GPU, NPU, AUTO."
)
@click.option(
    "--gpu",
    "gpus",
    metavar="NAME,...",
    callback=common.parse_names,
    help="tensorrt-rtx: compile for these architectures, such as sm86,sm89, which need not be here.",
)
@click.option("--precision", metavar="NAME", help="fp32, bf16, fp16 or int8; default: what the bundle recommends.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(1), help="Processor threads; default: the runtime's choice."
)
@click.option(
    "--providers", metavar="NAME,...", callback=common.parse_names, help="ONNX Runtime execution providers, in order."
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1, 1 << 16),
    help="tensorrt, tensorrt-rtx: the largest batch, which kernels are then chosen for.",
)
@click.option(
    "--frame",
    "frames",
    metavar="WIDTHxHEIGHT",
    multiple=True,
    callback=common.parse_sizes,
    help="tensorrt, tensorrt-rtx: serve frames of this size, and choose kernels for it; may be repeated.",
)
@click.option(
    "--workspace-mb",
    metavar="N",
    type=click.IntRange(1, 1 << 24),
    help="tensorrt, tensorrt-rtx: the most device memory, in MiB, that a layer may work in.",
)
@click.option(
    "--memory-mb",
    metavar="N",
    type=click.IntRange(1, 1 << 24),
    help="tensorrt, tensorrt-rtx: the most memory of this machine, in MiB, that compiling may take.",
)
@click.option(
    "--adopt",
    metavar="PLAN",
    multiple=True,
    type=click.Path(path_type=Path),
    help="tensorrt, tensorrt-rtx: take a plan that --out wrote on another machine, instead of compiling; may be "
    "repeated.",
)
@click.option(
    "--preflight",
    is_flag=True,
    help="tensorrt, tensorrt-rtx: only say what their versions would refuse; needs neither them nor a GPU.",
)
@click.option("--force", is_flag=True, help="Compile even if the cache holds the engine.")
@click.option("--allow-unverified", is_flag=True, help="Compile a model that failed verification.")
@click.option("--out", metavar="DIR", help="Also write OpenVINO IR (.xml, .bin) or TensorRT plans (.plan, .json).")
@click.option("--overwrite", is_flag=True, help="Replace what exists in --out.")
@common.json_option
def command(
    bundle: str,
    target: str,
    gpus: tuple[str, ...],
    batch: int | None,
    frames: tuple[tuple[int, int], ...],
    workspace_mb: int | None,
    memory_mb: int | None,
    adopt: tuple[Path, ...],
    preflight: bool,
    force: bool,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile a bundle for this device ahead of its first use, and replay the golden sample on the engine.

    \b
    Example:
      edgevtx compile fire.vtx --target openvino --precision bf16
      edgevtx compile fire.vtx --target openvino --out ir
      edgevtx compile fire.vtx --target tensorrt-rtx --gpu sm86,sm89 --out plans
      edgevtx compile fire.vtx --adopt plans/fire.tensorrt-rtx.sm86.fp16.plan

    A plan for a GPU that is not here replays nothing: its device does, when it first loads the bundle.
    """
    from edgevtx import cache
    from edgevtx.bundle import Bundle
    from edgevtx.cli import plans
    from edgevtx.cli.preflight import preflight as look
    from edgevtx.predictor import load
    from edgevtx.runtimes.base import EngineOptions, PlanOptions
    from edgevtx.runtimes.plan import read_plan
    from edgevtx.stream.sinks import make_folder

    if out is not None and target not in ("openvino", "auto", *PLANS):
        raise InputError(
            f"--out writes OpenVINO IR and TensorRT plans, and --target is {target}; choose another target"
        )
    if adopt and target == "auto":
        target = read_plan(adopt[0]).target
    asked = PlanOptions(batch, frames, workspace_mb)
    if (gpus or asked or memory_mb or adopt) and target not in PLANS:
        raise InputError(
            f"--gpu, --batch, --frame, --workspace-mb, --memory-mb and --adopt are for {' and '.join(PLANS)}, and "
            f"--target is {target}"
        )
    other = force or preflight or out is not None or options["precision"] or options["threads"] or options["providers"]
    if adopt and (asked or memory_mb or other):
        raise InputError(
            "--adopt takes plans as they are and compiles nothing; of the other options only --target, --device and "
            "--gpu go with it"
        )
    here = options["threads"] or options["providers"] or options["device"] != "CPU"
    if preflight and (gpus or asked or memory_mb or force or out is not None or here or options["allow_unverified"]):
        raise InputError("--preflight compiles nothing; of the other options only --target and --precision go with it")
    if gpus and here and not adopt:
        raise InputError("--gpu compiles for what need not be here; leave out --device, --threads and --providers")
    if preflight:
        look(bundle, target, options["precision"], as_json)
        return
    if out is not None:
        make_folder(Path(out))  # before minutes of work
    written: list[Path] = []
    made: list[plans.Made] = []
    info = None
    mode: CompileMode = "force" if force else "auto"
    with cache.kept_only(out is None), common.stages("open") as progress:
        if adopt:
            made = plans.adopt_plans(bundle, adopt, target, gpus, device=options["device"])
            options["precision"] = next((item.record.precision for item in made if not item.record.part), None)
            mode = "never"
        elif target in PLANS:
            claimed = Path(out) if out is not None and not overwrite else None
            wanted = EngineOptions(plan=asked, memory_mb=memory_mb, progress=progress)
            made = plans.compile_plans(bundle, target, gpus, wanted, mode, out=claimed, **options)
            mode = "auto"
        if not gpus:
            model = load(bundle, runtime=target, compile=mode, progress=progress, **options)
            info = model.info
            model.close()
        if out is not None:
            progress(f"write {out}")
            if target in PLANS:
                written = plans.write_plans(made, Path(out), overwrite)
            else:
                assert info is not None
                written = write_ir(bundle, info, Path(out), overwrite)
    if as_json:
        names = [str(path) for path in written]
        found = {**(info.to_dict() if info else {}), "plans": [item.to_dict() for item in made]}
        common.print_json({**found, "ir": [] if made else names, "written": names})
        return
    console = common.console()
    if info is not None:
        console.print(common.facts_table(facts(info)))
    for item in made if info is None else ():
        console.print(common.facts_table(plans.facts(item)), end="\n\n")
    graphs = {graph.file: graph for graph in Bundle.open(bundle).manifest.graphs} if made else {}
    for record in (item.record for item in made):
        common.print_notes(console, common.graph_notes(graphs[record.graph], record.target_version, record.gpu))
    for path in written:
        console.print(f"wrote {path} ({common.size(path.stat().st_size)})", soft_wrap=True, markup=False)


def facts(info: ModelInfo) -> dict[str, str]:
    """What was compiled, in words."""
    if info.cache_hit:
        cache = f"hit: opened in {common.seconds(info.load_seconds)}"
    else:
        cache = f"miss: compiled in {common.seconds(info.compile_seconds)}, {common.seconds(info.load_seconds)} in all"
    others = "".join(f"; {part} in {precision}" for part, precision in info.part_precisions.items())
    return {
        "model": f"{info.name} ({info.family})",
        "engine": f"{info.runtime} {info.runtime_version} on {info.device}",
        "precision": f"{info.precision} asked; executed as {common.shares(info.precision_share)}{others}",
        "cache": cache,
        "golden sample": info.verdict,
    }


def write_ir(bundle: str, info: ModelInfo, folder: Path, overwrite: bool) -> list[Path]:
    """Write the bundle's OpenVINO graphs as IR in fp32, weights uncompressed: NAME[.PART].xml and NAME[.PART].bin."""
    import openvino

    from edgevtx import disk
    from edgevtx.bundle import Bundle
    from edgevtx.errors import OutputError
    from edgevtx.stream.sinks import claim

    if info.runtime != "openvino":
        raise InputError(f"--out writes OpenVINO IR, and {info.runtime} was chosen; use --target openvino")
    opened = Bundle.open(bundle)
    graphs = {
        folder / f"{disk.file_name('.'.join(word for word in (info.name, part) if word))}.xml": opened.select_graph(
            info.runtime, info.runtime_version, info.part_precisions.get(part, info.precision), part
        )
        for part in opened.manifest.part_names
    }
    paths = [path for xml in graphs for path in (xml, xml.with_suffix(".bin"))]
    for path in paths:
        claim(path, overwrite)
    for xml, graph in graphs.items():
        try:
            model = openvino.Core().read_model(opened.graph_path(graph))
            openvino.save_model(model, xml, compress_to_fp16=False)
        except (OSError, RuntimeError) as error:
            for path in paths:
                path.unlink(missing_ok=True)
            raise OutputError(f"cannot write {xml}: {str(error).strip().splitlines()[-1]}; free space") from None
    return paths
