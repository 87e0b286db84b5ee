"""What a session hands its decoder, seen on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from mllm_export.device_tests.passing_decoder import PassingDecoder
from mllm_export.runtimes.engines import Decoder, Floats, Segment
from mllm_export.spec import IMAGE_ID


class SeenDecoder(PassingDecoder):
    """A decoder that keeps what its last sequence began with.

    Source: the protocol is `mllm_export.runtimes.engines.Decoder`.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Everything is passed on to `decoder`."""
        self._seen = decoder
        self.fed: tuple[Segment, ...] = ()

    @property
    def _decoder(self) -> Decoder:
        return self._seen

    @property
    def context_tokens(self) -> int:
        """Positions that prompt and answer may take together."""
        return self._seen.context_tokens

    def evaluate(self, segments: Sequence[Segment], all_logits: bool) -> Floats:
        """Start a new sequence."""
        self.fed = tuple(segments)
        return super().evaluate(segments, all_logits)

    def forget(self) -> None:
        """Drop the sequence."""
        self.fed = ()
        super().forget()

    def close(self) -> None:
        """Give the memory back."""
        self.fed = ()
        self._seen.close()


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
