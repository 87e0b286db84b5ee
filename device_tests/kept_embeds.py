"""Embeddings that are kept once computed, as far as memory allows."""

from __future__ import annotations

from mllm_export.device_tests.reference import Floats

KEPT_BYTES = 512 << 20
"""Of one side, between groups of questions: all pictures of a small model, and some hundred of
one with 4096 channels. What is asked for again is computed again."""


class KeptEmbeds:
    """By the picture's name; nothing goes before `trim` says so."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._values: dict[str, Floats] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Floats:
        return self._values[name]

    def put(self, name: str, values: Floats) -> None:
        """Keep them by themselves: a view would hold all that it was cut from."""
        self._values[name] = values if values.base is None else values.copy()

    def trim(self) -> None:
        """Drop the oldest until the rest is no more than `KEPT_BYTES`."""
        held = sum(one.nbytes for one in self._values.values())
        for name in list(self._values):
            if held <= KEPT_BYTES:
                return
            held -= self._values.pop(name).nbytes
