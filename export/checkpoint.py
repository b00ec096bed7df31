"""A checkpoint on disk: its configuration, its processor's, and its weights with every tensor accounted for.

Three forms are read: a Hugging Face directory (`config.json` beside `model.safetensors`, sharded safetensors with
their index, or `pytorch_model.bin`); an architecture's `config.json` alone, which takes seeded random weights (see
`edgevtx.export.trial`); and a file of weights, or a directory of timm's, in a layout of its author's (see
`edgevtx.export.layouts`). Nothing here reaches for a network.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from edgevtx.errors import CheckpointError, InputError
from edgevtx.export import layouts, trial
from edgevtx.export.checkpoint_files import (
    PROCESSOR_FILES,
    WEIGHTS_FILES,
    brief,
    one_weight_file,
    processor_files,
    read_json,
    read_licence,
    weight_files,
)
from edgevtx.export.checkpoint_weights import Differences, fill, from_pretrained, offline, read_tensors
from edgevtx.export.layouts.files import SUFFIXES
from edgevtx.export.layouts.mapping import listed

Settings = TypeVar("Settings", bound=msgspec.Struct)
Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened with `Checkpoint.open`.

    `config` is `config.json` as published; `weights` are the weight files in name order, empty when `seed` asks for
    random ones. `configs` are the files that were read beside them. `published` is what a layout made of a file of
    weights. `allow_partial` loads a model some of whose tensors are missing or left over, and `notes` names them.
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    weights: tuple[Path, ...] = ()
    seed: int | None = None
    configs: tuple[Path, ...] = ()
    published: layouts.Published | None = field(default=None, repr=False, compare=False)
    allow_partial: bool = False
    _differences: dict[str, None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        seed: int | None = None,
        *,
        config: str | Path | None = None,
        allow_partial: bool = False,
    ) -> Checkpoint:
        """Open a Hugging Face directory, a file of weights, or with `seed` an architecture's config without weights.

        `config`, for a file of weights, is a `config.json` whose entries replace those that the layout reads off the
        shapes; an image processor's config beside it replaces the layout's. Raises `CheckpointError` where there is
        no checkpoint, its JSON is broken, or weights are missing and no seed was given; `InputError` where a
        directory with weights is opened with a seed, or one that has a config with another.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist; give a Hugging Face checkpoint directory, a file of weights or a config.json"
            )
        beside = path.parent / "config.json"
        if path.name in WEIGHTS_FILES and beside.is_file() and config is None:
            path = path.parent  # the weights of a directory stand for it
        if path.is_file() and path.suffix in SUFFIXES:
            return cls._open_file(path, path, seed, config, allow_partial)
        folder = path if path.is_dir() else path.parent
        config_file = path / "config.json" if path.is_dir() else path
        if not config_file.is_file():
            raise CheckpointError(
                f"{path} has no config.json; expected a Hugging Face checkpoint directory, or the path of a file of "
                "weights"
            )
        settings = read_json(config_file)
        if path.is_dir() and "model_type" not in settings and isinstance(settings.get("architecture"), str):
            return cls._open_file(path, one_weight_file(path), seed, config, allow_partial, timm=config_file)
        if config is not None:
            raise InputError(f"{path} has a config of its own, so {config} is not needed; leave it out")
        if not isinstance(settings.get("model_type"), str):
            raise CheckpointError(
                f"{config_file} names no model_type; the config.json of a Hugging Face checkpoint is expected"
            )
        weights = weight_files(folder)
        if seed is None and not weights:
            raise CheckpointError(
                f"{folder} has no weights ({WEIGHTS_FILES[1]} or {WEIGHTS_FILES[3]}); copy them beside config.json, "
                "or ask for seeded random ones with --seed 0 (seed=0 in Python)"
            )
        if seed is not None and path.is_dir() and weights:
            raise InputError(
                f"{folder} has weights, so a seed for random ones is not needed; leave the seed out, or give the "
                "path of its config.json to use the architecture alone"
            )
        configs = (config_file, *processor_files(folder))
        return cls(folder, settings, () if seed is not None else weights, seed, configs, allow_partial=allow_partial)

    @classmethod
    def _open_file(
        cls,
        path: Path,
        weights: Path,
        seed: int | None,
        config: str | Path | None,
        allow_partial: bool,
        timm: Path | None = None,
    ) -> Checkpoint:
        """A file of weights in a layout of its author's, opened as `path`."""
        if seed is not None:
            raise InputError(f"{path} has weights, so a seed for random ones is not needed; leave the seed out")
        given = None if config is None else Path(config)
        if given is not None and not given.is_file():
            raise CheckpointError(f"{given} is no file; give a config.json to complete what {path.name} tells")
        published = layouts.read(
            weights,
            timm=None if timm is None else read_json(timm),
            config=None if given is None else read_json(given),
            allow_partial=allow_partial,
        )
        configs = [] if timm is None else [timm]
        if given is not None:
            configs += [given, *processor_files(given.parent)]
        return cls(path, published.config, (weights,), None, tuple(configs), published, allow_partial)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of a file of weights, and what differed in a model loaded with `allow_partial`."""
        return (*(self.published.notes if self.published else ()), *self._differences)

    @property
    def name(self) -> str:
        """The directory's or file's name."""
        return self.path.resolve().name

    @property
    def model_type(self) -> str:
        """The config's `model_type`."""
        return str(self.config["model_type"])

    @property
    def architecture(self) -> str:
        """The class that the config names first under `architectures`, or an empty string."""
        named = self.config.get("architectures") or ("",)
        return str(named[0])

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The config's `id2label` in the order of its ids, or None where it has none."""
        table = self.config.get("id2label")
        if not table:
            return None
        by_id = {int(key): str(value) for key, value in table.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise CheckpointError(
                f"id2label of {self.path / 'config.json'} has ids {min(by_id)}..{max(by_id)} for {len(by_id)} names; "
                "ids from 0 without gaps are expected"
            )
        return tuple(by_id[index] for index in range(len(by_id)))

    @cached_property
    def processor_config(self) -> dict[str, Any]:
        """The image (or video) processor's configuration, empty where the checkpoint has none."""
        for file in self.configs:
            if file.name in PROCESSOR_FILES:
                config = read_json(file)
                return dict(config.get("image_processor") or config.get("video_processor") or config)
        return dict(self.published.processor) if self.published else {}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hex over config, processor config and weights; empty for seeded weights.

        Of a file of weights that needs no config beside it, it is the file's own.
        """
        if self.seed is not None:
            return ""
        digest = hashlib.sha256()
        for file in (*self.configs, *self.weights):
            if self.configs:
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    @cached_property
    def licence(self) -> str:
        """The licence in the YAML header of the directory's README.md, or in timm's config; empty where none is named.

        The licence of a single file is unknown: that a file has an author's layout does not make it the author's.
        """
        stated = read_licence(self.path)
        return (self.published.licence if self.published else "") if stated is None else stated

    def load(
        self,
        model_class: Any,
        *,
        config: Mapping[str, Any] | None = None,
        rename: Mapping[str, str] | None = None,
        unused: tuple[str, ...] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> torch.nn.Module:
        """The model with this checkpoint's weights: float32, eval mode, no gradients.

        `config` replaces the published one; `rename` maps regular expressions of the file's tensor names to the
        model's; `unused` are prefixes of tensors that the model does not need; `arguments` go to the model's
        constructor. Raises `CheckpointError` when a tensor is missing, left over or of another shape, unless
        `allow_partial` was asked for: then what is missing is random, always the same.
        """
        settings = dict(self.config if config is None else config)
        with offline():
            try:
                model_config = model_class.config_class.from_dict(settings)
            except Exception as error:  # the config classes raise whatever their validators raise
                raise CheckpointError(f"{self._config_name} is not a usable config: {brief(error)}") from error
            if self.seed is not None:
                with torch.random.fork_rng(devices=[]):
                    model = model_class._from_config(model_config, dtype=torch.float32, **(arguments or {}))
                trial.seed_weights(model, self.seed)
            else:
                model = self._load_weights(model_class, model_config, rename or {}, unused, arguments or {})
        module: torch.nn.Module = model.eval().requires_grad_(False)
        return module

    def settings(self, kind: type[Settings], also: Collection[str] | None = ()) -> Settings:
        """The config as a `msgspec.Struct` of ours, for modules that no library ships.

        Beside the struct's fields those may stand there that every config of transformers has, names that begin with
        an underscore, and `also`; None allows any. Raises `CheckpointError` naming the field that is missing, unknown
        or of another type.
        """
        if also is not None:
            self._refuse_unknown({field.encode_name for field in msgspec.structs.fields(kind)}, also)
        try:
            return msgspec.convert(self.config, kind)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{self._config_name} is not a usable config: {error}; mend it") from None

    def load_module(
        self,
        factory: Callable[[], Module],
        *,
        rename: Mapping[str, str] | None = None,
        unused: tuple[str, ...] = (),
    ) -> Module:
        """The module that `factory` makes, with this checkpoint's weights: float32, eval mode, no gradients.

        For modules of `edgevtx.export.models`; `load` is for those of transformers. `rename` maps regular expressions
        of the file's tensor names to the module's, applied one after another; `unused` are prefixes (after renaming)
        of tensors that the module does not need. Raises `CheckpointError` when the module cannot be made, or a tensor
        is missing, left over, of another shape or there twice.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for what a partial checkpoint leaves as it is
            try:
                module = factory().float().eval().requires_grad_(False)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # whatever torch's layers refuse
                raise CheckpointError(f"{self._config_name} is not a usable config: {brief(error)}; mend it") from error
        if self.seed is not None:
            trial.seed_weights(module, self.seed)
        else:
            parts = [self.published.tensors] if self.published else (read_tensors(file) for file in self.weights)
            self._account(fill(module, parts, rename or {}, unused), type(module))
        return module

    def _refuse_unknown(self, fields: set[str], also: Collection[str]) -> None:
        """Raise `CheckpointError` for a field of the config that nothing would read."""
        from transformers import PretrainedConfig

        known = fields | {*also, "model_type", "torch_dtype", *PretrainedConfig().to_dict()}
        unknown = sorted(name for name in self.config if name not in known and not name.startswith("_"))
        if not unknown:
            return
        near = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        named = [f"{name} (did you mean {like[0]}?)" if like else name for name, like in near.items()]
        raise CheckpointError(
            f"{self._config_name} has {'a field' if len(named) == 1 else 'fields'} that nothing here reads: "
            f"{', '.join(named)}; mend the spelling or leave it out (known: {', '.join(sorted(fields))})"
        )

    def _load_weights(
        self,
        model_class: Any,
        config: Any,
        rename: Mapping[str, str],
        unused: tuple[str, ...],
        arguments: Mapping[str, Any],
    ) -> Any:
        source = self.published.tensors if self.published else self.path
        try:
            model, differences = from_pretrained(model_class, config, source, rename, unused, arguments)
        except Exception as error:
            raise CheckpointError(
                f"the weights of {self.path} cannot be read: {brief(error)}; copy the checkpoint again"
            ) from error
        self._account(differences, model_class)
        return model

    def _account(self, differences: Differences, model_class: Any) -> None:
        """Report tensors that differ: the first kind as an error, or all as notes where a part is enough."""
        for what, keys in differences.items():
            if not keys:
                continue
            found = f"{len(keys)} {what} tensor{'s' if len(keys) > 1 else ''} for {model_class.__name__}"
            if self.allow_partial:
                self._differences[f"the checkpoint has {found}: {', '.join(sorted(keys))}"] = None
                continue
            read = f"what was read as {self.published.layout}" if self.published else "this config.json"
            raise CheckpointError(
                f"{self.path} has {found}: {listed(keys)}; the weights do not belong to {read}"
                " (--allow-partial, allow_partial=True, exports it nevertheless)"
            )

    @property
    def _config_name(self) -> str:
        """Where the config comes from, for errors."""
        return f"what {self.path} tells of its model" if self.published else str(self.path / "config.json")
