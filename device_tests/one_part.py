"""Tower and decoder of a large bundle, of which only one is in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mllm_export.pages import trim_heap
from mllm_export.runtimes.engines import Decoder, Floats, Segment, Tower


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


class PartDecoder:
    """A decoder that is opened when it is asked; see `mllm_export.runtimes.engines.Decoder`."""

    def __init__(self, part: OnePart, opening: Callable[[], Decoder], context_tokens: int) -> None:
        """Nothing is opened yet."""
        self._part = part
        self._opening = opening
        self.context_tokens = context_tokens

    @property
    def _decoder(self) -> Decoder:
        return self._part.get("decoder", self._opening)

    @property
    def positions(self) -> int:
        """Positions taken now."""
        return self._decoder.positions

    @property
    def reused_positions(self) -> int:
        """Positions that the last prompt found in the KV cache."""
        return self._decoder.reused_positions

    def tokenize(self, text: str) -> list[int]:
        """Token ids of one piece of text."""
        return self._decoder.tokenize(text)

    def piece(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        return self._decoder.piece(token_id)

    def check(self, segments: Sequence[Segment]) -> None:
        """Refuse a prompt that `evaluate` would refuse."""
        self._decoder.check(segments)

    def evaluate(self, segments: Sequence[Segment], all_logits: bool) -> Floats:
        """Start a new sequence."""
        return self._decoder.evaluate(segments, all_logits)

    def extend(self, token_id: int) -> Floats:
        """Add one token to the sequence."""
        return self._decoder.extend(token_id)

    def forget(self) -> None:
        """Drop the sequence."""
        self._decoder.forget()

    def close(self) -> None:
        """Give the memory back."""
        self._part.close()
