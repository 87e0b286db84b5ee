"""The original through transformers on the CPU, in a given precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from mllm_export.device_tests.peer import Errand, Opened, Peer, required


@contextmanager
def open_torch(errand: Errand, precision: str) -> Iterator[Opened]:
    """The checkpoint's tower and projector, and the decoder's own folder."""
    checkpoint = required(errand.files, "checkpoint")
    plain = required(errand.files, "language_model")
    from mllm_export.device_tests.peers._transformers import load_transformers

    yield load_transformers(errand.files.bundle, checkpoint, plain, precision, errand.threads)


def torch_peer(precision: str) -> Peer:
    """The peer of that torch dtype."""
    return Peer(
        title=f"transformers on torch, {precision}",
        open=partial(open_torch, precision=precision),
        needs=("checkpoint", "language_model"),
        package="transformers",
    )
