"""The on-device runtime, told of the first picture as it loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mllm_export.device_tests.peer import Errand, Opened, Peer
from mllm_export.device_tests.peers.ours import Ours


@contextmanager
def open_ours_ahead(errand: Errand) -> Iterator[Opened]:
    """The tower sees the first picture while the decoder is opened: loading counts it."""
    from mllm_export.runtimes import load

    with load(
        errand.files.bundle,
        threads=errand.threads,
        context_tokens=errand.context_tokens,
        pictures=[ask.picture for ask in errand.asks[:1]],
    ) as session:
        yield Ours(session, embedded=True)


PEER = Peer(title="this runtime, told of the first picture as it loads", open=open_ours_ahead)
