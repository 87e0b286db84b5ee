"""Tower and decoder of a large bundle, of which only one is in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol, TypeVar

from mllm_export.device_tests.passing_decoder import PassingDecoder
from mllm_export.pages import trim_heap
from mllm_export.runtimes.engines import Decoder, Floats, Tower


class _Closable(Protocol):
    def close(self) -> None:
        """Give the memory back."""


T = TypeVar("T", bound=_Closable)


class OnePart:
    """Whatever was opened last; opening another closes it."""

    def __init__(self) -> None:
        """Nothing is open."""
        self._name = ""
        self._open: _Closable | None = None

    def get(self, name: str, opening: Callable[[], T]) -> T:
        """The part of that name, opened if another one, or none, was open."""
        if self._name != name or self._open is None:
            self.close()
            self._open, self._name = opening(), name
        return self._open  # type: ignore[return-value]  # a name is always opened the same way

    def close(self) -> None:
        """Give the memory back; the next use opens again."""
        if self._open is not None:
            self._open.close()
            trim_heap()
        self._open = None
        gc.collect()
        trim_heap()


class PartTower:
    """A tower that is opened when it is asked; see `mllm_export.runtimes.engines.Tower`."""

    def __init__(self, part: OnePart, opening: Callable[[], Tower]) -> None:
        """Nothing is opened yet."""
        self._part = part
        self._opening = opening

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D]."""
        return self._part.get("tower", self._opening).embed(pixels)

    def close(self) -> None:
        """Give the memory back."""
        self._part.close()


class PartDecoder(PassingDecoder):
    """A decoder that is opened when it is asked; see `mllm_export.runtimes.engines.Decoder`."""

    def __init__(self, part: OnePart, opening: Callable[[], Decoder], context_tokens: int) -> None:
        """Nothing is opened yet."""
        self._part = part
        self._opening = opening
        self.context_tokens = context_tokens

    @property
    def _decoder(self) -> Decoder:
        return self._part.get("decoder", self._opening)

    def close(self) -> None:
        """Give the memory back."""
        self._part.close()
