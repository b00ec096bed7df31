"""A checkpoint's tensors into a torch module, and what differs between the two, by name.

Both ways give a `Differences`: the names of the tensors that are missing, unknown, misshapen or there twice. Counters
that training keeps and inference never reads are no difference.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint_files import weight_files
from edgevtx.export.layouts.files import read_weights

Tensors = Mapping[str, torch.Tensor]
Differences = dict[str, set[str]]

_COUNTERS = re.compile(r"\.num_batches_tracked$")


def read_tensors(file: Path) -> Tensors:
    """The state dict that a file of weights is; raises `CheckpointError` where it holds anything else."""
    tensors = read_weights(file)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} holds more than tensors; expected a state dict and nothing beside it")
    return tensors


def fill(
    module: torch.nn.Module, parts: Iterable[Tensors], rename: Mapping[str, str], unused: tuple[str, ...]
) -> Differences:
    """Copy every tensor of the state dicts `parts` into `module`; one of them is in memory at a time.

    `rename` maps regular expressions of published names to the module's, applied one after another; `unused` are
    prefixes (after renaming) of tensors that the module does not need.
    """
    patterns = [(re.compile(pattern), name) for pattern, name in rename.items()]
    wanted = module.state_dict()
    seen: set[str] = set()
    unknown, misshapen, twice = set(), set(), set()
    for tensors in parts:
        for published, tensor in tensors.items():
            key = published
            for pattern, name in patterns:
                key = pattern.sub(name, key)
            target = wanted.get(key)
            if target is None:
                if not (key.startswith(unused) or _COUNTERS.search(key)):
                    unknown.add(published)
            elif target.shape != tensor.shape:
                misshapen.add(f"{published} {list(tensor.shape)} instead of {list(target.shape)}")
            elif key in seen:
                twice.add(key)
            else:
                target.copy_(tensor)
            if target is not None:
                seen.add(key)
    missing = {key for key in wanted if key not in seen and not _COUNTERS.search(key)}
    return {"missing": missing, "unknown": unknown, "misshapen": misshapen, "repeated": twice}


def from_pretrained(
    model_class: Any,
    config: Any,
    source: Path | Tensors,
    rename: Mapping[str, str],
    unused: tuple[str, ...],
    arguments: Mapping[str, Any],
) -> tuple[Any, Differences]:
    """transformers' `from_pretrained` of a directory or of tensors; raises whatever it raises.

    What is missing is random, always the same. Arguments as of `Checkpoint.load`.
    """
    weights: dict[str, Any]
    if isinstance(source, Path):  # the published revision's safetensors, or pickled tensors read with weights_only=True
        weights = {"use_safetensors": weight_files(source)[0].suffix == ".safetensors"}
    else:  # the model's parameters would be these tensors themselves
        weights = {"state_dict": {name: tensor.clone() for name, tensor in source.items()}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = model_class.from_pretrained(
            str(source) if isinstance(source, Path) else None,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            key_mapping=dict(rename) or None,
            **weights,
            **arguments,
        )
    skip = re.compile("|".join([_COUNTERS.pattern, *(f"^{re.escape(prefix)}" for prefix in unused)]))
    return model, {
        "missing": {key for key in info["missing_keys"] if not _COUNTERS.search(key)},
        "unknown": {key for key in info["unexpected_keys"] if not skip.search(key)},
        "misshapen": {f"{key} {list(found)} instead of {list(want)}" for key, found, want in info["mismatched_keys"]},
    }


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep transformers off the network and its reports and bars off the terminal; a checkpoint reports by itself."""
    from huggingface_hub import constants
    from transformers.utils import logging

    online, level, bars = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = online
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
