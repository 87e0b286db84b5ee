"""The on-device runtime itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mllm_export.device_tests.peer import Ask, Errand, Opened, Peer, Spent

if TYPE_CHECKING:
    from mllm_export.runtimes.generation import Step
    from mllm_export.runtimes.session import Session

_NO_ID = -1


class Ours:
    """A session that answers to the last token asked for."""

    def __init__(self, session: Session) -> None:
        """Nothing runs yet; the session's stop rules are lifted, since peers have none."""
        spec = session.spec
        session.spec = replace(
            spec,
            prompt=replace(spec.prompt, stop_ids=(), stop_strings=()),
            tokenizer=replace(spec.tokenizer, eos_id=_NO_ID),
        )
        self._session = session

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """See `Opened`. By the clock of who asks: sampling and text are within."""
        self._session.forget()
        steps, times = self._steps(ask.ids, ask.picture, tokens + 1)
        _, second = self._steps(ask.second_ids, ask.picture, 1)
        first = steps[0]
        return Spent(
            preprocess_ms=first.preprocess_ms,
            tower_ms=first.tower_ms,
            prefill_ms=times[0] - first.preprocess_ms - first.tower_ms,
            decode_ms=(times[-1] - times[0]) / tokens,
            second_ms=second[0],
        )

    def _steps(
        self, ids: Sequence[int], picture: Path, tokens: int
    ) -> tuple[list[Step], list[float]]:
        """The steps, and when each came, in ms after the question."""
        start = perf_counter()
        steps: list[Step] = []
        times: list[float] = []
        for step in self._session.generate(ids, picture, max_tokens=tokens):
            steps.append(step)
            times.append(1000 * (perf_counter() - start))
        return steps, times


@contextmanager
def open_ours(errand: Errand) -> Iterator[Opened]:
    """The bundle, verified as a program would have it."""
    from mllm_export.runtimes import load

    with load(
        errand.files.bundle, threads=errand.threads, context_tokens=errand.context_tokens
    ) as session:
        yield Ours(session)


PEER = Peer(title="this runtime", open=open_ours)
