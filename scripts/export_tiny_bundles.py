"""Export a tiny seeded bundle of every family and option that changes its graph, with inputs and reference outputs.

    python scripts/export_tiny_bundles.py FOLDER [TARGET...]

For the targets whose runtimes are tested without a GPU, in fp32; or for those that are named, in every precision, where
a precision that random weights do not bear is packed with its verdict.
For tests on machines without torch: `FOLDER/NAME.vtx`, and `FOLDER/NAME.samples.npz` with arrays named
`SAMPLE/input/NAME` and `SAMPLE/output/NAME`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.pipeline import ExportOptions, export
from edgevtx.export.recipe import FAMILIES, BuildOptions, get_recipe
from edgevtx.export.samples import load_clips, load_photos
from edgevtx.export.verify import make_samples

VARIANTS = {"static": BuildOptions(), "dynamic-batch": BuildOptions(batch=None)}
# more of some families, for the options that change their graphs further
MORE = {
    "vit": {"top-k": BuildOptions(top_k=3)},
    "dino": {"attention": BuildOptions(attention=True), "camera": BuildOptions(frame=(90, 160))},
    "detr": {"camera": BuildOptions(frame=(90, 160), top_k=20)},
    "rtdetr": {"top-k": BuildOptions(top_k=20)},
}


def main(folder: Path, targets: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        configs = get_recipe(family).tiny_config()
        for model_type, config in configs.items():
            for variant, build in VARIANTS.items():
                _export(folder, family, f"{model_type}-{variant}", config, build, targets)
        for variant, build in MORE.get(family, {}).items():
            model_type, config = next(iter(configs.items()))
            _export(folder, family, f"{model_type}-{variant}", config, build, targets)


def _export(
    folder: Path, family: str, name: str, config: dict[str, object], build: BuildOptions, targets: tuple[str, ...]
) -> None:
    path = folder / f"{family}-{name}.config.json"
    path.write_text(json.dumps(config))
    checkpoint = Checkpoint.open(path, seed=0)
    options = ExportOptions(build=build, overwrite=True)
    if targets:
        options = replace(options, targets=targets, precisions=("fp32", "fp16", "bf16", "int8"), keep_failed=True)
    report = export(family, checkpoint, folder / f"{family}-{name}.vtx", options)
    words = [f"{item.target} {item.precision} {item.status}" for item in report.manifest.verdicts]
    print(f"{family} {name}: {', '.join(words)}")
    if report.bundle is None or (report.refused and not targets):
        raise SystemExit(f"{family} {name} was refused: {report.refused[0].reason}")
    arrays = {}
    traceable = get_recipe(family).build(checkpoint, build)
    clip = traceable.preprocess.clip
    for sample in make_samples(traceable, load_photos(None) if clip is None else load_clips(None, clip)):
        if sample.clear:
            arrays |= {f"{sample.name}/input/{key}": array for key, array in sample.inputs.items()}
            arrays |= {f"{sample.name}/output/{key}": array for key, array in sample.outputs.items()}
    np.savez(folder / f"{family}-{name}.samples.npz", **arrays)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python scripts/export_tiny_bundles.py FOLDER [TARGET...]")
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
