"""How long work tells what it is doing; the command line draws it, libraries stay silent."""

from __future__ import annotations

from collections.abc import Callable

from mllm_export.records import record


@record
class Step:
    """A moment of a stage."""

    stage: str
    """What is going on: 'decoder', 'tower', 'check logits'."""
    item: str
    """The tensor, sample or file in hand."""
    done: int
    total: int
    unit: str = "B"
    """B for bytes; else a plural noun such as 'samples'."""


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Say nothing."""
