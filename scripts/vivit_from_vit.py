"""Make a ViViT checkpoint, ready to be trained on videos, out of a ViT image checkpoint (Arnab 2021, section 3.4).

python scripts/vivit_from_vit.py vit-base-patch16-224 vivit --labels classes.txt --attention factorised_encoder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from edgevtx.cli.export import read_labels
from edgevtx.errors import EdgevtxError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.models.vivit import Attention, Pooling
from edgevtx.export.vivit_from_vit import Filters, Wanted, write_vivit


@click.command()
@click.argument("vit", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), required=True, help="Class names, one a line.")
@click.option("--attention", type=click.Choice(get_args(Attention)), default=Wanted.attention, show_default=True)
@click.option("--filters", type=click.Choice(get_args(Filters)), default=Wanted.filters, show_default=True)
@click.option("--frames", "num_frames", default=Wanted.num_frames, show_default=True, help="Frames of a clip.")
@click.option("--tubelet-frames", default=Wanted.tubelet_frames, show_default=True, help="1: uniform frame sampling.")
@click.option("--frame-rate", type=float, help="Frames a second of the clips that it will be trained on.")
@click.option("--temporal-layers", "num_temporal_layers", default=Wanted.num_temporal_layers, show_default=True)
@click.option("--pooling", type=click.Choice(get_args(Pooling)), default=Wanted.pooling, show_default=True)
@click.option("--seed", default=Wanted.seed, show_default=True, help="Of the weights that the image model has not.")
def main(vit: Path, out: Path, labels: Path, **wanted: Any) -> None:
    """Write the ViViT checkpoint OUT, made of the ViT checkpoint VIT."""
    try:
        write_vivit(Checkpoint.open(vit), Wanted(labels=read_labels(labels), **wanted), out)
    except EdgevtxError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
