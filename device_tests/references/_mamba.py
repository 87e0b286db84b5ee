"""Mamba as transformers computes it on the CPU: each sequence on its own, from an empty state.

Nothing is packed: what comes before a token in its row has gone into the state. Sequences of a
batch are filled up behind their ends, which no token before sees.
Source: transformers, models/mamba/modeling_mamba.py, MambaMixer.slow_forward; llama.cpp,
conversion/mamba.py, for A and the convolution's shape.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaRMSNorm

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.references._decoder import IMAGE_SHARE
from mllm_export.device_tests.references._fill import LayerStack, fill, float32_tensor, read_float32
from mllm_export.device_tests.references._observe import Observer
from mllm_export.device_tests.references._packing import Piece, Row
from mllm_export.device_tests.references._storage import gguf_name, gguf_names
from mllm_export.quantize.inputs import ObservedLayer
from mllm_export.spec import IMAGE_ID

_BATCH_BYTES = 192 << 20
"""Of each of the three arrays that a layer holds for all tokens of a batch."""

EMBEDDING, HEAD, NORM = "backbone.embedding.weight", "lm_head.weight", "backbone.norm_f."

# transformers warns of each layer that the CUDA kernels are not there.
logging.getLogger("transformers.models.mamba.modeling_mamba").setLevel(logging.ERROR)


def mamba_config(config: Config) -> MambaConfig:
    """Transformers' sizes from the keys of mamba_ssm."""
    step = config.positive("pad_vocab_size_multiple", 8)
    vocab = config.positive("vocab_size")
    cut = config.section("ssm_cfg") if "ssm_cfg" in config else Config({}, config.file)
    return MambaConfig(
        hidden_size=config.positive("d_model"),
        num_hidden_layers=config.positive("n_layer"),
        vocab_size=vocab + -vocab % step,
        state_size=cut.positive("d_state", 16),
        conv_kernel=cut.positive("d_conv", 4),
        layer_norm_epsilon=config.number("norm_epsilon", 1e-5),
        residual_in_fp32=True,
    )


class MambaRows:
    """Logits of sequences; weights are read through `read` and never held all at once."""

    def __init__(
        self, config: MambaConfig, prefix: str, read: Reader, head: str, dtype: torch.dtype
    ) -> None:
        """`prefix` stands before the authors' names; `head` is the output head's name below it."""
        self._config, self._prefix, self._head_name, self._dtype = config, prefix, head, dtype
        self._read = read
        self._stack = self._stack_of(read)
        self.resident = self._stack.resident
        self.parameters = self._stack.parameters

    def _stack_of(self, read: Reader) -> LayerStack:
        make = partial(MambaBlock, self._config)
        at = f"{self._prefix}backbone.layers.{{}}."
        return LayerStack(make, read, at, self._config.num_hidden_layers, self._dtype)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Forced], weights: Reader | None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence; see `Reference.logits`."""
        read = weights or self._read
        stack = self._stack if weights is None else self._stack_of(read)
        rows = [self._embedded(one, read) for one in sequences]
        batches = self._batches([len(row) for row in rows])
        hidden = [_filled_up([rows[at] for at in batch]).to(self._dtype) for batch in batches]
        for index in range(stack.count):
            layer = stack.layer(index)
            hidden = [layer(states) for states in hidden]
        # Other weights come from the decoder's file, which holds a tied head once.
        head = read_float32(read, self._prefix + (EMBEDDING if weights else self._head_name))
        norm = self._norm(read)
        found: dict[int, Floats] = {}
        for batch, states in zip(batches, hidden, strict=True):
            for at, own in zip(batch, norm(states), strict=True):
                end = len(rows[at])
                wanted = own[end - sequences[at].rows : end]
                found[at] = (wanted @ head.to(self._dtype).T).float().numpy()
        return [found[at] for at in range(len(sequences))]

    def walk(self, sequences: Sequence[Forced], diagonal_only: bool) -> Iterator[ObservedLayer]:
        """One layer after another, then the head; see `Walkable.walk`."""
        hidden = [self._embedded(one, self._read).to(self._dtype)[None] for one in sequences]
        shares = [torch.from_numpy(_row(one).shares(IMAGE_SHARE)) for one in sequences]
        stack = self._stack_of(self._read)
        for index in range(stack.count):
            layer = stack.fresh_layer(index)
            below = stack.prefix(index).removeprefix(self._prefix)
            observer = Observer(layer, below, diagonal_only)
            with observer, torch.inference_mode():
                after = []
                for states, observer.shares in zip(hidden, shares, strict=True):
                    after.append(layer(states))
            yield _observed(observer)
            with torch.inference_mode():
                hidden = [layer(states) for states in hidden] if observer.replaced else after
        yield self._walked_head(hidden, shares, diagonal_only)

    def _walked_head(
        self, hidden: list[torch.Tensor], shares: list[torch.Tensor], diagonal_only: bool
    ) -> ObservedLayer:
        norm = self._norm(self._read)
        observer = Observer(norm, "", diagonal_only)
        with torch.inference_mode():
            for states, observer.shares in zip(hidden, shares, strict=True):
                observer.see(EMBEDDING, norm(states))
        # Nothing stands behind the head.
        return ObservedLayer(inputs=observer.inputs(), replace=lambda _weights: None)

    def _norm(self, read: Reader) -> nn.Module:
        make = partial(MambaRMSNorm, self._config.hidden_size, self._config.layer_norm_epsilon)
        return fill(make, read, self._prefix + NORM, self._dtype)

    def _embedded(self, sequence: Forced, read: Reader) -> torch.Tensor:
        """Shapes: f32[T, D]."""
        table = read(self._prefix + EMBEDDING)
        waiting = iter(sequence.images)
        parts: list[torch.Tensor] = []
        for run in _runs(sequence.ids):
            if run[0] == IMAGE_ID:
                parts.append(torch.from_numpy(np.array(next(waiting), np.float32)))
            else:
                parts.append(float32_tensor(table[np.asarray(run, np.int64)]))
        return torch.cat(parts)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Sequences by length, as many together as memory allows."""
        token_bytes = 4 * self._config.intermediate_size * self._config.state_size
        most = max(_BATCH_BYTES // token_bytes, 1)
        batches: list[list[int]] = []
        for at in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batches and (len(batches[-1]) + 1) * lengths[at] <= most:
                batches[-1].append(at)
            else:
                batches.append([at])
        return batches


def _observed(observer: Observer) -> ObservedLayer:
    def replace(weights: Mapping[str, Floats]) -> None:
        observer.replace({name: weights[name] for name in observer.names() if name in weights})

    return ObservedLayer(inputs=observer.inputs(), replace=replace)


def _runs(ids: Sequence[int]) -> list[list[int]]:
    """Ids of text together, each image apart."""
    found: list[list[int]] = []
    for one in ids:
        if found and one != IMAGE_ID != found[-1][0]:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _row(sequence: Forced) -> Row:
    whole = Piece(ids=sequence.ids, images=sequence.images)
    return Row(prefix=whole, suffixes=())


def _filled_up(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Shapes: f32[T of each, D] -> f32[B, longest T, D]; the last row stands for what lacks."""
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, row[-1:].expand(longest - len(row), -1)]) for row in rows])


def mamba_originals(config: MambaConfig, prefix: str, read: Reader) -> dict[str, Original]:
    """Every tensor of the decoder's file, by name in GGUF."""
    table = gguf_names("MAMBA", config.num_hidden_layers)
    found: dict[str, Original] = {}
    for name, shape in _parameters(config):
        source = prefix + name
        is_rate = name.endswith("A_log")
        stored = (shape[0], shape[2]) if name.endswith("conv1d.weight") else shape
        found[gguf_name(table, name)] = Original(
            source=source,
            shape=stored,
            read=partial(read, source),
            made=_rate if is_rate else None,
            unmade=_logarithm if is_rate else None,
        )
    return found


def _rate(values: Floats) -> Floats:
    """A from its logarithm, as the authors compute it: in float32, by torch."""
    made: Floats = (-torch.exp(torch.from_numpy(values))).numpy()
    return made


def _logarithm(values: Floats) -> Floats:
    made: Floats = torch.log(-torch.from_numpy(values)).numpy()
    return made


def _parameters(config: MambaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    with torch.device("meta"):
        layer = MambaBlock(config, 0)
    for index in range(config.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            yield f"backbone.layers.{index}.{name}", tuple(parameter.shape)
    yield f"{NORM}weight", (config.hidden_size,)


def mamba_keys(config: MambaConfig, tokenizer: Any) -> tuple[OriginalKey, ...]:
    """Sizes, constants and special ids. Source: llama.cpp, src/models/mamba.cpp."""
    sizes: tuple[tuple[str, int | float], ...] = (
        ("block_count", config.num_hidden_layers),
        ("embedding_length", config.hidden_size),
        ("ssm.conv_kernel", config.conv_kernel),
        ("ssm.inner_size", config.intermediate_size),
        ("ssm.state_size", config.state_size),
        ("ssm.time_step_rank", int(config.time_step_rank)),
        ("attention.layer_norm_rms_epsilon", config.layer_norm_epsilon),
    )
    words: tuple[tuple[str, int | str | bool], ...] = (
        ("general.architecture", "mamba"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.bos_token_id", tokenizer.bos_token_id),
        ("tokenizer.ggml.eos_token_id", tokenizer.eos_token_id),
        ("tokenizer.ggml.add_bos_token", False),
    )
    return (
        *(OriginalKey(key=f"mamba.{key}", value=value) for key, value in sizes),
        OriginalKey(key="mamba.ssm.dt_b_c_rms", value=False, default=False),
        *(OriginalKey(key=key, value=value) for key, value in words),
    )
