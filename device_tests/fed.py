"""What a session hands its decoder, seen on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from mllm_export.runtimes.engines import Decoder, Floats, Segment
from mllm_export.spec import IMAGE_ID


class SeenDecoder:
    """A decoder that keeps what its last sequence began with.

    Source: the protocol is `mllm_export.runtimes.engines.Decoder`.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Everything is passed on to `decoder`."""
        self._decoder = decoder
        self.fed: tuple[Segment, ...] = ()

    @property
    def context_tokens(self) -> int:
        """Positions that prompt and answer may take together."""
        return self._decoder.context_tokens

    @property
    def positions(self) -> int:
        """Positions taken now."""
        return self._decoder.positions

    @property
    def reused_positions(self) -> int:
        """How many positions the last `evaluate` found in the KV cache."""
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
        self.fed = tuple(segments)
        return self._decoder.evaluate(segments, all_logits)

    def extend(self, token_id: int) -> Floats:
        """Add one token to the sequence."""
        return self._decoder.extend(token_id)

    def forget(self) -> None:
        """Drop the sequence."""
        self.fed = ()
        self._decoder.forget()

    def close(self) -> None:
        """Give the memory back."""
        self.fed = ()
        self._decoder.close()


def positions_off(fed: Sequence[Segment], ids: Sequence[int], images: Sequence[Floats]) -> int:
    """Positions that hold another token or another row than ids and images say, in their order."""
    return sum(
        not _same(found, due)
        for found, due in zip_longest(_positions(fed), _expected(ids, images), fillvalue=None)
    )


def _positions(fed: Sequence[Segment]) -> Iterator[int | Floats]:
    for segment in fed:
        yield from segment


def _expected(ids: Sequence[int], images: Sequence[Floats]) -> Iterator[int | Floats]:
    waiting = iter(images)
    for token in ids:
        if token == IMAGE_ID:
            yield from next(waiting)
        else:
            yield token


def _same(found: int | Floats | None, due: int | Floats | None) -> bool:
    if isinstance(found, np.ndarray) or isinstance(due, np.ndarray):
        both = isinstance(found, np.ndarray) and isinstance(due, np.ndarray)
        return both and np.array_equal(found, due)  # type: ignore[arg-type]  # both are arrays
    return found == due
