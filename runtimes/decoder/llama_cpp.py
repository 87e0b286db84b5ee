"""The language model through llama.cpp's C interface on the CPU."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from mllm_export.errors import EngineError
from mllm_export.kv_cache import KvType
from mllm_export.runtimes.decoder import _library
from mllm_export.runtimes.decoder._batches import Chunk, cut, make_batch
from mllm_export.runtimes.decoder._handles import (
    BATCH_ROWS,
    check_sizes,
    free,
    is_fused,
    open_context,
    open_model,
)
from mllm_export.runtimes.decoder._states import (
    NoStates,
    PrefixStates,
    States,
    states_of,
    take_state,
)
from mllm_export.runtimes.engines import Floats, Segment
from mllm_export.runtimes.prompt import count_positions
from mllm_export.runtimes.utf8 import utf8
from mllm_export.spec import ModelSpec

_SEQUENCE = 0


class LlamaCppDecoder:
    """A GGUF file with one context of one sequence."""

    def __init__(
        self, path: Path, spec: ModelSpec, context_tokens: int, threads: int, kv_type: KvType
    ) -> None:
        """Map the weights and make room for `context_tokens` positions."""
        _library.start()
        self.context_tokens = context_tokens
        self.positions = 0
        self.reused_positions = 0
        self._kept: list[Chunk] = []
        self._kv_type = kv_type
        model = open_model(path)
        try:
            self._vocab = llama_cpp.llama_model_get_vocab(model)
            self._vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
            self._width = int(llama_cpp.llama_model_n_embd(model))
            check_sizes(path, spec, self._vocab_size, self._width)
            self._context = open_context(path, model, context_tokens, threads, kv_type)
        except BaseException:
            llama_cpp.llama_model_free(model)
            raise
        self._states: States = states_of(model, self._context)
        self._free = weakref.finalize(self, free, self._context, model)

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._free()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of one piece of text, without BOS; special tokens are recognised in it.

        Equal to transformers' slow LlamaTokenizer. One that was saved with `"legacy": false`
        differs where text follows a special token: it puts no blank between, llama.cpp does.

        Raises: EngineError for text that has no UTF-8 form.
        """
        self._require_open()
        data = utf8(text, "the prompt")
        room = 3 * (len(data) + 1)  # a vocabulary without the blank spells it in three bytes
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, False, True)
        return list(ids[:count])

    def piece(self, token_id: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens."""
        self._require_open()
        self._require_id(token_id)
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def check(self, segments: Sequence[Segment]) -> None:
        """Refuse a prompt that cannot be evaluated, before anything is.

        Raises: EngineError for one that is empty, longer than the context, or of another width.
        """
        count = count_positions(segments)
        if not count:
            raise EngineError("the prompt is empty; give at least one token or image")
        if count > self.context_tokens:
            raise EngineError(
                f"the prompt takes {count} positions, the context has {self.context_tokens}; "
                "shorten it, give fewer images, or load with a larger context_tokens"
            )
        for segment in segments:
            if isinstance(segment, list):
                for token_id in segment:
                    self._require_id(token_id)
            elif segment.ndim != 2 or segment.shape[1] != self._width:
                raise EngineError(
                    f"image embeddings are {list(segment.shape)}, needed: [T, {self._width}]"
                )

    def evaluate(self, segments: Sequence[Segment], all_logits: bool) -> Floats:
        """Start a new sequence: f32[positions, V] with `all_logits`, else f32[1, V] of the last.

        Batches at the start that equal those of the sequence before stay in the KV cache,
        unless their logits are asked for; of a decoder without one, those up to the images' end.

        Raises: see `check`; EngineError when llama.cpp fails or gives NaN.
        """
        self._require_open()
        self.check(segments)
        chunks = list(cut(segments, BATCH_ROWS))
        kept = 0 if all_logits else self._common(chunks)
        self.reused_positions = self._rewind(kept)
        if not self._kept and not all_logits:
            self._restore(chunks)
        logits = np.empty(
            (count_positions(segments) if all_logits else 1, self._vocab_size), np.float32
        )
        for number in range(len(self._kept), len(chunks)):
            chunk, start = chunks[number], self.positions
            if all_logits:
                self._decode(chunk, logits[start : start + chunk.rows])
            else:
                self._decode(chunk, logits if number == len(chunks) - 1 else logits[:0])
            self._kept.append(chunk)
            self._states.save(self._kept, chunks[number + 1 :])
        return logits

    def extend(self, token_id: int) -> Floats:
        """Add one token to the sequence: its f32[V].

        Raises: EngineError when the context is full.
        """
        self._require_open()
        self._require_id(token_id)
        if self.positions >= self.context_tokens:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        (chunk,) = cut([[token_id]], 1)
        logits = np.empty((1, self._vocab_size), np.float32)
        self._decode(chunk, logits)
        row: Floats = logits[0]
        return row

    def forget(self) -> None:
        """Drop the sequence, so that nothing of it is used again."""
        self._require_open()
        self._rewind(0)
        self._states.drop()

    @property
    def arithmetic(self) -> str:
        """What the bits of a state depend on beside the file and the KV type."""
        attention = "fused" if is_fused(self._kv_type) else "plain"
        return f"{_library.arithmetic()}; {attention} attention, batches of {BATCH_ROWS}"

    def state_behind(self, ids: list[int]) -> bytes:
        """The state that a first segment of these ids leaves; empty where no batch ends there.

        Raises: EngineError for ids that cannot be evaluated.
        """
        if not isinstance(self._states, NoStates) or not 0 < len(ids) <= BATCH_ROWS:
            return b""
        self.forget()
        # Behind it something else, as in a prompt: of the last batch logits are computed.
        self.evaluate([ids, ids[:1]], all_logits=False)
        self._rewind(1)
        state = take_state(self._context)
        self.forget()
        return state

    def begin_with(self, ids: list[int], state: bytes) -> None:
        """Put that state back whenever a prompt begins with these ids and nothing is kept."""
        self._require_open()
        if isinstance(self._states, NoStates) and 0 < len(ids) <= BATCH_ROWS:
            (chunk,) = cut([ids], BATCH_ROWS)
            self._states = PrefixStates(self._context, chunk, state)

    def _require_open(self) -> None:
        if not self._free.alive:
            raise EngineError("the session is closed; load the bundle again")

    def _require_id(self, token_id: int) -> None:
        if not 0 <= token_id < self._vocab_size:
            raise EngineError(
                f"token id {token_id} is outside the vocabulary of {self._vocab_size}"
            )

    def _common(self, chunks: Sequence[Chunk]) -> int:
        """How many chunks stand in the KV cache already; the last is always computed."""
        count = 0
        for before, now in zip(self._kept, chunks[:-1], strict=False):
            if before.key != now.key:
                break
            count += 1
        return count

    def _rewind(self, chunks: int) -> int:
        """Keep the first chunks in the KV cache, drop what follows: the positions left."""
        positions = sum(chunk.rows for chunk in self._kept[:chunks])
        memory = llama_cpp.llama_get_memory(self._context)
        partly = positions and llama_cpp.llama_memory_seq_rm(memory, _SEQUENCE, positions, -1)
        if not partly:  # nothing to keep, or a memory that cannot drop a part
            llama_cpp.llama_memory_clear(memory, False)
            chunks = positions = 0
        del self._kept[chunks:]
        self.positions = positions
        return positions

    def _restore(self, chunks: Sequence[Chunk]) -> None:
        """Go on from a state that was saved, where these chunks begin with what led to it."""
        self._kept = self._states.restore(chunks)
        self.positions = self.reused_positions = sum(chunk.rows for chunk in self._kept)

    def _decode(self, chunk: Chunk, logits: Floats) -> None:
        """Run one batch; `logits` f32[rows, V] receives those of its last rows."""
        wanted = len(logits)
        outputs = np.zeros(chunk.rows, np.int8)
        outputs[chunk.rows - wanted :] = 1
        batch, _positions = make_batch(chunk, self.positions, outputs)
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            self._rewind(0)
            raise EngineError(
                f"llama.cpp could not run a batch of {chunk.rows} (code {code}): "
                f"{_library.last_complaint()}"
            )
        self.positions += chunk.rows
        if wanted:
            # llama.cpp's own buffer, which the next batch overwrites.
            logits[:] = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits(self._context), logits.shape
            )
        if not np.isfinite(logits).all():
            raise EngineError("the decoder gave NaN or Inf; did the bundle pass its checks?")


class LlamaCppEngine:
    """Opens GGUF files."""

    def open(
        self,
        path: Path,
        spec: ModelSpec,
        context_tokens: int,
        threads: int,
        kv_type: KvType = "f16",
    ) -> LlamaCppDecoder:
        """Raises: EngineError when llama.cpp or the spec refuses the file."""
        return LlamaCppDecoder(path, spec, context_tokens, threads, kv_type)


ENGINE = LlamaCppEngine()
