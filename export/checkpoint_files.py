"""The files of a checkpoint on disk: which of them are read, and the JSON and YAML in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgevtx.errors import CheckpointError

PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
WEIGHTS_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object; raises `CheckpointError` for anything else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is no JSON ({brief(error)}); expected a checkpoint's configuration") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is JSON but no object; expected a checkpoint's configuration")
    return data


def processor_files(folder: Path) -> tuple[Path, ...]:
    """The image processor's configs in a folder; the first is read."""
    return tuple(folder / name for name in PROCESSOR_FILES if (folder / name).is_file())


def one_weight_file(folder: Path) -> Path:
    """The only weight file of timm's directory; raises `CheckpointError` where there is none, or several."""
    files = weight_files(folder)
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} has timm's config.json and {len(files)} weight files; expected {WEIGHTS_FILES[1]} or "
            f"{WEIGHTS_FILES[3]} beside it"
        )
    return files[0]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files that transformers would read, in name order; raises where an index names absent ones."""
    name = next((name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if name is None:
        return ()
    if not name.endswith(".index.json"):
        return (folder / name,)
    shards = sorted(set(read_json(folder / name).get("weight_map", {}).values()))
    if absent := [shard for shard in shards if not (folder / shard).is_file()]:
        raise CheckpointError(f"{folder} lacks {len(absent)} of {len(shards)} weight files: {absent[0]}; copy them")
    return tuple(folder / shard for shard in shards)


def read_licence(folder: Path) -> str | None:
    """The licence in the YAML header of a folder's README.md, empty where it names none; None without a README."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    header = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text(encoding="utf-8", errors="replace"), re.S)
    found = header and re.search(r"^licen[sc]e:\s*(\S.*?)\s*$", header[1], re.M)
    return found[1].strip("\"'") if found else ""


def brief(error: Exception) -> str:
    """The start of an error's text, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()[:2]]
    return " ".join(lines).rstrip(".") or type(error).__name__
