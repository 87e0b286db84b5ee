"""A decoder in front of another: everything is passed on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mllm_export.runtimes.engines import Decoder, Floats, Segment


class PassingDecoder(ABC):
    """What `mllm_export.runtimes.engines.Decoder` asks, answered by the decoder behind."""

    @property
    @abstractmethod
    def _decoder(self) -> Decoder:
        """The one that answers."""

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
        """Raises: EngineError for a prompt that `evaluate` would refuse."""
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
