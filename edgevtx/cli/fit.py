"""`edgevtx fit`: a backbone and a folder of images a class give a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgevtx.cli import common

if TYPE_CHECKING:
    from edgevtx.fit import FitReport


@click.command(short_help="Give a backbone classes from folders of images.")
@common.bundle_argument
@click.option("--images", metavar="DIR", required=True, help="A folder that holds a folder of images for each class.")
@click.option("--out", metavar="NAME.vtx", required=True, help="The bundle to write.")
@click.option("-k", "k", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="Images that vote.")
@click.option(
    "--temperature",
    metavar="T",
    type=float,
    default=0.07,
    show_default=True,
    help="The smaller, the more the nearest images count.",
)
@common.runtime_option
@click.option("--device", metavar="NAME", default="CPU", show_default=True, help="The runtime's name for it.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is no bundle.")
@common.json_option
def command(
    bundle: str,
    images: str,
    out: str,
    k: int,
    temperature: float,
    runtime: str,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a bundle that names the class of a frame by the most similar images of a folder.

    The features come from BUNDLE, of a backbone such as DINO, and are stored in the new bundle beside it. Nothing is
    trained, and no PyTorch is needed. Files that are no images are skipped and named.

    \b
    Example:
      edgevtx fit dino.vtx --images photos --out animals.vtx     (photos/cat/*.jpg, photos/dog/*.jpg, ...)
      edgevtx run animals.vtx new.jpg
    """
    from edgevtx.fit import fit

    with common.stages("load the model") as progress:
        report = fit(
            bundle,
            images,
            out,
            k=k,
            temperature=temperature,
            runtime=runtime,
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        skipped = [{"source": item.source, "error": item.error} for item in report.skipped]
        common.print_json({"bundle": str(report.bundle), "images": report.images, "skipped": skipped})
    else:
        _print(report)


def _print(report: FitReport) -> None:
    out = common.console()
    out.print(common.facts_table({label: f"{count} images" for label, count in report.images.items()}))
    for item in report.skipped:
        out.print(f"skipped {item}", soft_wrap=True, markup=False)
    out.print(f"\n{report.bundle}", soft_wrap=True)
