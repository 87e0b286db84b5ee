"""The on-device runtime itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mllm_export.device_tests.peer import Ask, Errand, Opened, Spent
from mllm_export.runtimes.generation import Step
from mllm_export.runtimes.session import Session


class Ours:
    """A session."""

    def __init__(self, session: Session) -> None:
        """Nothing runs yet."""
        self._session = session

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """See `Opened`."""
        first = self._steps(ask.ids, ask.picture, tokens + 1)
        second = self._steps(ask.second_ids, ask.picture, 1)[0]
        decode = [step.decode_ms for step in first[1:]]
        return Spent(
            preprocess_ms=first[0].preprocess_ms,
            tower_ms=first[0].tower_ms,
            prefill_ms=first[0].prefill_ms,
            decode_ms=sum(decode) / len(decode) if decode else None,
            second_ms=second.preprocess_ms + second.tower_ms + second.prefill_ms,
        )

    def _steps(self, ids: Sequence[int], picture: Path, tokens: int) -> list[Step]:
        return list(self._session.generate(ids, picture, max_tokens=tokens))


@contextmanager
def open_ours(errand: Errand) -> Iterator[Opened]:
    """The bundle."""
    from mllm_export.runtimes import load

    with load(
        errand.files.bundle, threads=errand.threads, context_tokens=errand.context_tokens
    ) as session:
        yield Ours(session)


PEER = open_ours
