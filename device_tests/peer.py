"""Other engines on the same weights, picture, prompt and threads: what they take for an answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from mllm_export.catalog import Catalog
from mllm_export.errors import CheckError
from mllm_export.records import record


@record
class Files:
    """Where the same model lies in the layouts that peers read."""

    bundle: Path
    checkpoint: Path | None = None
    language_model: Path | None = None
    """The decoder alone, as transformers reads it."""
    mmproj: Path | None = None


@record
class Ask:
    """One picture and two questions about it."""

    picture: Path
    ids: tuple[int, ...]
    """The whole prompt, IMAGE_ID for the picture."""
    second_ids: tuple[int, ...]


@record
class Errand:
    """What one process of one peer is sent for."""

    peer: str
    files: Files
    threads: int
    tokens: int
    """Decoded after the first."""
    context_tokens: int
    asks: tuple[Ask, ...]


@record
class Spent:
    """Milliseconds of one picture and its two questions; None: the peer has no such stage."""

    preprocess_ms: float
    tower_ms: float
    prefill_ms: float | None = None
    decode_ms: float | None = None
    """Mean per token."""
    second_ms: float | None = None
    """To the first token of the second question."""

    @property
    def first_token_ms(self) -> float | None:
        """From the picture to the first token, the model loaded."""
        if self.prefill_ms is None:
            return None
        return self.preprocess_ms + self.tower_ms + self.prefill_ms


@record
class Outcome:
    """What a process came back with."""

    load_ms: float
    """Imports and opening, until the first picture can be given."""
    spent: tuple[Spent, ...]
    """One for each ask, in order."""
    peak_mib: int


class Opened(Protocol):
    """A loaded peer."""

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """Greedy, from a cold cache: nothing of an earlier ask is used."""


Peer = Callable[[Errand], AbstractContextManager[Opened]]
"""Raises: CheckError for a file it needs and was not given, or a package that is missing."""

PEERS: Catalog[Peer] = Catalog("mllm_export.device_tests.peers", "PEER", "peer", CheckError)
"""By name, as `--peers` takes it."""


def required(path: Path | None, what: str) -> Path:
    """Raises: CheckError where it was not given."""
    if path is None:
        raise CheckError(f"this peer needs {what}, which was not given")
    return path
