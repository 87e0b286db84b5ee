"""The LLaMA decoder through transformers' own layers, in float32, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from mllm_export.config import Config
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.references._fill import (
    LayerStack,
    fill,
    float32_tensor,
    read_float32,
)
from mllm_export.device_tests.references._packing import Piece, Row, pack
from mllm_export.spec import IMAGE_ID

_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def llama_config(plain: dict[str, object]) -> LlamaConfig:
    """Transformers' configuration from a published config.json; its own names only."""
    known = {key: plain[key] for key in _KEYS if plain.get(key) is not None}
    config = LlamaConfig(**known)
    config._attn_implementation = "sdpa"
    return config


class LlamaRows:
    """Logits of packed rows; weights are read through `read` and never held all at once."""

    def __init__(
        self,
        plain: dict[str, object],
        config: Config,
        read: Reader,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`config` is `plain` again, typed: sizes without which nothing runs are required.

        `dtype` other than float32 is for measuring the noise floor.
        """
        self._dtype = dtype
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
            config.positive(key)
        self.config = llama_config(plain)
        self._read = read
        self._stack = self._stack_of(read)
        with torch.device("cpu"):
            self._rotary = LlamaRotaryEmbedding(self.config)
        self.resident = self._stack.resident
        self.parameters = self._stack.parameters

    def _stack_of(self, read: Reader) -> LayerStack:
        config = self.config
        return LayerStack(
            lambda index: LlamaDecoderLayer(config, index),
            read,
            "model.layers.{}.",
            config.num_hidden_layers,
            self._dtype,
        )

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Forced], weights: Reader | None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence; see `Reference.logits`."""
        read = weights or self._read
        stack = self._stack if weights is None else self._stack_of(weights)
        rows = pack(sequences)
        table = read("model.embed_tokens.weight")
        hidden = [_embedded(row, table).to(self._dtype) for row in rows]
        layouts = [row.layout() for row in rows]
        for index in range(stack.count):
            layer = stack.layer(index)
            for at, (positions, sees) in enumerate(layouts):
                hidden[at] = self._run(layer, hidden[at], positions, sees)
        return self._head(read, rows, hidden, len(sequences))

    def _run(
        self, layer: nn.Module, hidden: torch.Tensor, positions: np.ndarray, sees: np.ndarray
    ) -> torch.Tensor:
        placed = torch.from_numpy(positions)[None]
        out: torch.Tensor = layer(
            hidden,
            attention_mask=torch.from_numpy(sees)[None, None],
            position_ids=placed,
            position_embeddings=self._rotary(hidden, placed),
        )
        return out

    def _head(
        self, read: Reader, rows: list[Row], hidden: list[torch.Tensor], count: int
    ) -> list[Floats]:
        config = self.config
        make = partial(LlamaRMSNorm, config.hidden_size, config.rms_norm_eps)
        norm = fill(make, read, "model.norm.", self._dtype)
        tied = config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        head = read_float32(read, name).to(self._dtype)
        found: list[Floats | None] = [None] * count
        for row, states in zip(rows, hidden, strict=True):
            for index, positions in row.wanted():
                found[index] = (norm(states[0, positions]) @ head.T).float().numpy()
        return [one for one in found if one is not None]


def _embedded(row: Row, table: npt.NDArray[Any]) -> torch.Tensor:
    return torch.cat([_piece(piece, table) for piece in row.pieces])[None]


def _piece(piece: Piece, table: npt.NDArray[Any]) -> torch.Tensor:
    ids = np.asarray(piece.ids, np.int64)
    at_images = [at for at, one in enumerate(piece.ids) if one == IMAGE_ID]
    parts: list[torch.Tensor] = []
    start = 0
    for at, image in zip(at_images, piece.images, strict=True):
        parts.append(float32_tensor(table[ids[start:at]]))
        parts.append(torch.from_numpy(np.array(image, np.float32)))
        start = at + 1
    parts.append(float32_tensor(table[ids[start:]]))
    return torch.cat(parts)
