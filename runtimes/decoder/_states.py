"""The state of a decoder without attention, saved behind a prompt's images.

A KV cache drops the rows behind a kept beginning. A recurrent state cannot be turned back: every
token has gone into it. So it is copied where the images end, and put back for the next question.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import llama_cpp
import numpy as np

from mllm_export.errors import EngineError
from mllm_export.runtimes.decoder import _library
from mllm_export.runtimes.decoder._batches import Chunk

_SEQUENCE = 0


class States(Protocol):
    """What is kept of a sequence's beginning beside what the context itself holds."""

    def save(self, done: Sequence[Chunk], ahead: Sequence[Chunk]) -> None:
        """Told after each batch: those that were run, and those that will be."""

    def restore(self, wanted: Sequence[Chunk]) -> list[Chunk]:
        """Put back a state that a beginning of `wanted` leads to: that beginning, maybe empty.

        The context must be empty before; the last of `wanted` is never part of it.
        """

    def drop(self) -> None:
        """Keep nothing."""


class NoStates:
    """A KV cache keeps beginnings by itself."""

    def save(self, done: Sequence[Chunk], ahead: Sequence[Chunk]) -> None:
        """Nothing."""

    def restore(self, wanted: Sequence[Chunk]) -> list[Chunk]:
        """Nothing."""
        del wanted
        return []

    def drop(self) -> None:
        """Nothing."""


class RecurrentStates:
    """One copy: what the last prompt's images left behind, in the bits that they left."""

    def __init__(self, context: Any) -> None:
        """`context` must outlive this."""
        self._context = context
        self._chunks: list[Chunk] = []
        self._bytes = ctypes.create_string_buffer(0)

    def save(self, done: Sequence[Chunk], ahead: Sequence[Chunk]) -> None:
        """Copy the state if the last image ends here."""
        if not _is_image(done[-1]) or not ahead or any(_is_image(chunk) for chunk in ahead):
            return
        size = llama_cpp.llama_state_seq_get_size(self._context, _SEQUENCE)
        if len(self._bytes) != size:
            self._bytes = ctypes.create_string_buffer(size)
        self._chunks = []
        if llama_cpp.llama_state_seq_get_data(self._context, *self._place()) == size:
            self._chunks = list(done)

    def restore(self, wanted: Sequence[Chunk]) -> list[Chunk]:
        """The images' state, where they are the same.

        Raises: EngineError when llama.cpp does not take back what it gave.
        """
        keys = [chunk.key for chunk in self._chunks]
        if not keys or keys != [chunk.key for chunk in wanted[: len(keys)]]:
            return []
        if len(keys) == len(wanted):
            return []
        if not llama_cpp.llama_state_seq_set_data(self._context, *self._place()):
            self.drop()
            raise EngineError(
                f"llama.cpp could not restore the decoder's state: {_library.last_complaint()}"
            )
        return list(self._chunks)

    def drop(self) -> None:
        """Keep nothing."""
        self._chunks = []
        self._bytes = ctypes.create_string_buffer(0)

    def _place(self) -> tuple[object, int, int]:
        pointer = ctypes.cast(self._bytes, ctypes.POINTER(ctypes.c_uint8))
        return pointer, len(self._bytes), _SEQUENCE


class PrefixStates:
    """What a prompt's first batch leaves in a KV cache, computed before, in the bits it left."""

    def __init__(self, context: Any, chunk: Chunk, state: bytes) -> None:
        """`context` must outlive this."""
        self._context = context
        self._chunk = chunk
        self._bytes = ctypes.create_string_buffer(state, len(state))

    def save(self, done: Sequence[Chunk], ahead: Sequence[Chunk]) -> None:
        """Nothing: a KV cache keeps beginnings by itself."""

    def restore(self, wanted: Sequence[Chunk]) -> list[Chunk]:
        """The first batch, where it is the same; nothing where llama.cpp does not take it."""
        if len(wanted) < 2 or wanted[0].key != self._chunk.key:
            return []
        place = ctypes.cast(self._bytes, ctypes.POINTER(ctypes.c_uint8)), len(self._bytes)
        if llama_cpp.llama_state_seq_set_data(self._context, *place, _SEQUENCE):
            return [self._chunk]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        _library.last_complaint()
        return []

    def drop(self) -> None:
        """Nothing: it is the file's, not an earlier prompt's."""


def take_state(context: Any) -> bytes:
    """The sequence's state as it is now."""
    size = llama_cpp.llama_state_seq_get_size(context, _SEQUENCE)
    data = ctypes.create_string_buffer(size)
    place = ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8)), size
    written = llama_cpp.llama_state_seq_get_data(context, *place, _SEQUENCE)
    return data.raw[:written]


def states_of(model: Any, context: Any) -> States:
    """What a model's kind of memory needs."""
    recurrent = llama_cpp.llama_model_is_recurrent(model)
    return RecurrentStates(context) if recurrent else NoStates()


def _is_image(chunk: Chunk) -> bool:
    return chunk.values.dtype == np.float32
