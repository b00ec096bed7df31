"""Files of weights: safetensors, and pickled state dicts, which are read with `weights_only=True` and not otherwise."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from edgevtx.errors import CheckpointError
from edgevtx.export.layouts.mapping import Tensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# where trainers put the state dict, the one to use first: averaged weights before trained ones, as their authors do
WRAPPERS = ("ema", "model_ema", "state_dict_ema", "teacher", "module", "model", "state_dict", "student")
# what parallel and compiled modules put before every name
_PREFIXES = ("module.", "_orig_mod.", "teacher.")


def read_weights(path: Path) -> Any:
    """What a file of weights holds: a dictionary of tensors, or of dictionaries of them. Raises `CheckpointError`."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:  # damaged files raise whatever the parsers stumble over
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"the weights of {path} cannot be read ({reason}); expected safetensors or a state dict as torch.save "
            "writes it, so copy the file again"
        ) from error


def _refusal(path: Path, message: str) -> str:
    """Why a pickle is not read: the objects that it would make, and how to save the tensors alone."""
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # files of the old format cannot be listed
        objects = re.findall(r"GLOBAL ([\w.]+)", message)[:1]
    if not objects:
        return f"the weights of {path} cannot be read, for it is no file that torch.save wrote; copy the file again"
    return (
        f"{path} holds pickled objects beside tensors ({', '.join(sorted(objects)[:4])}); reading them can run "
        "code, so only tensors are read; where you trust the file, save those alone, and give class names that it has "
        "with --labels: "
        f"c = torch.load('{path.name}', weights_only=False); torch.save({{k: c[k] for k in c if k in "
        "('model', 'state_dict', 'teacher', 'ema')}, 'weights.pth')"
    )


class StateDict(NamedTuple):
    """A state dict from a file.

    `wrapper`: the keys of `WRAPPERS` that it was found under (`ema.module`; empty for none). `classes`: the names that
    MMSegmentation and its kin keep beside it; empty where there are none.
    """

    tensors: Tensors
    wrapper: str
    classes: tuple[str, ...] = ()


def state_dict(path: Path) -> StateDict:
    """A file's state dict.

    A dictionary is opened by the first of `WRAPPERS` under which it holds tensors, whatever lies beside that; then a
    prefix that every name has is taken off (`module.`, `_orig_mod.`, `teacher.` where the rest is `student.`). Raises
    `CheckpointError`.
    """
    found, under = read_weights(path), list[str]()
    classes = _class_names(found)
    while isinstance(found, dict):
        key = next((key for key in WRAPPERS if isinstance(found.get(key), dict) and _holds_tensors(found[key])), None)
        if key is None:
            break
        found = found[key]
        under.append(key)
    tensors = {}
    if isinstance(found, dict):
        tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        held = ", ".join(str(key) for key in list(found)[:4]) if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(
            f"{path} holds no tensors where a state dict is looked for ({held or 'it is empty'}); expected one, alone "
            f"or under {', '.join(WRAPPERS)}"
        )
    return StateDict(_without_prefix(tensors), ".".join(under), classes)


def _holds_tensors(found: dict[Any, Any]) -> bool:
    """Whether there are any, at whatever depth."""
    return any(
        isinstance(value, torch.Tensor) or (isinstance(value, dict) and _holds_tensors(value))
        for value in found.values()
    )


def _class_names(found: Any) -> tuple[str, ...]:
    """The names under `meta`: as `CLASSES` up to MMSegmentation 0.x, as `dataset_meta` since 1.0."""
    meta = found.get("meta") if isinstance(found, dict) else None
    if not isinstance(meta, dict):
        return ()
    since = meta.get("dataset_meta")
    names = (since.get("classes", since.get("CLASSES")) if isinstance(since, dict) else None) or meta.get("CLASSES")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _without_prefix(tensors: Tensors) -> Tensors:
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}  # counts averaged models
    if any(name.startswith("teacher.") for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("student.")}
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


def without_backbone(tensors: Tensors) -> Tensors:
    """The same with `backbone.` taken off the names that have it; heads beside it keep theirs."""
    return {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
