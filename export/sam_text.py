"""The text encoder of a SAM's checkpoint as a network of the bundle; `edgevtx.export.sam` describes the layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevtx.errors import CheckpointError
from edgevtx.export.checkpoint import Checkpoint
from edgevtx.export.models.sam_text import TextEncoder
from edgevtx.export.recipe import TraceablePart
from edgevtx.export.trial import seed_weights
from edgevtx.manifest import TensorInfo
from edgevtx.rules import TextPrompts
from edgevtx.runtimes.base import Arrays
from edgevtx.tokens import Tokenizer

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Texts:
    """A checkpoint's `clip` (`CLIPTextModelWithProjection`), its `projection` to SAM's width, and its `tokenizer`."""

    clip: Any
    projection: nn.Linear
    tokenizer: Path

    @property
    def prompts(self) -> TextPrompts:
        """What the manifest says of them."""
        return TextPrompts(file=TOKENIZER, length=int(self.clip.config.max_position_embeddings))

    def part(self) -> TraceablePart:
        """The network: token_ids (P,T) int64 -> text_embedding (P,C) float32."""
        return TraceablePart(
            module=TextEncoder(self.clip, self.projection).eval(),
            inputs=(TensorInfo(name="token_ids", shape=(None, self.prompts.length), dtype="int64"),),
            outputs=(TensorInfo(name="text_embedding", shape=(None, self.projection.out_features), dtype="float32"),),
            dynamic={"token_ids": {0: "prompts"}},
            examples=self._examples,
            reference=lambda inputs: {"text_embedding": self._embed(torch.from_numpy(inputs["token_ids"])).numpy()},
        )

    def reference(self, texts: Sequence[str]) -> torch.Tensor:
        """(N,C): transformers' tokenizer and model, one text after another and none padded."""
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(self.tokenizer))
        rows = [tokenizer(text)["input_ids"] for text in texts]
        return torch.cat([self._embed(torch.tensor([row])) for row in rows])

    def answer(self, texts: Sequence[str]) -> torch.Tensor:
        """(N,C): the runtime's tokenizer and our network."""
        ids = Tokenizer(self.tokenizer, self.prompts.length)(texts)
        with torch.inference_mode():
            found: torch.Tensor = TextEncoder(self.clip, self.projection)(torch.from_numpy(ids))[0]
        return found

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.projection(self.clip(input_ids=ids).text_embeds)
        return found

    def _examples(self, outputs: Arrays) -> list[Arrays]:
        """Token ids that end at different places; what they say does not matter."""
        random = np.random.default_rng(0)
        words, length = int(self.clip.config.vocab_size), self.prompts.length
        end = int(self.clip.config.eos_token_id)
        end = end if end != 2 else words - 1  # early CLIP configs name another id, and mean the highest one
        ids = random.integers(0, words, (3, length))
        ids[ids == end] = (end + 1) % words
        for row, stop in zip(ids, (3, length // 2, length - 1), strict=True):
            row[stop:] = end
        return [{"token_ids": ids.astype(np.int64)}]


def load_texts(checkpoint: Checkpoint, channels: int) -> Texts | None:
    """The text encoder of a checkpoint, None where it has none. Raises `CheckpointError` where it is not whole."""
    from transformers import CLIPTextModelWithProjection

    folder = checkpoint.path / "text_encoder"
    if not folder.is_dir():
        return None
    clip: Any = Checkpoint.open(folder, checkpoint.seed).load(CLIPTextModelWithProjection)
    projection = nn.Linear(int(clip.config.projection_dim), channels)
    file = checkpoint.path / "text_projection.safetensors"
    if file.is_file():
        _load_projection(projection, file)
    elif checkpoint.seed is None:
        raise CheckpointError(
            f"{checkpoint.path} has a text_encoder but no {file.name}, which maps CLIP's embedding to SAM's prompts; "
            "copy it there, or remove text_encoder to export without texts"
        )
    else:
        seed_weights(projection, checkpoint.seed)
    if not (checkpoint.path / TOKENIZER).is_file():
        raise CheckpointError(
            f"{checkpoint.path} has a text_encoder but no {TOKENIZER}, without which no text becomes tokens; copy the "
            "tokenizer's there, or remove text_encoder to export without texts"
        )
    return Texts(clip.eval(), projection.requires_grad_(False), checkpoint.path / TOKENIZER)


def _load_projection(projection: nn.Linear, file: Path) -> None:
    from safetensors.torch import load_file

    try:
        projection.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except Exception as error:  # safetensors and torch raise unlike types
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{file} cannot be used ({lines[-1].strip()}); it must hold weight {list(projection.weight.shape)} and "
            f"bias {list(projection.bias.shape)}"
        ) from None
