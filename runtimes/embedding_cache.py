"""Image embeddings that were computed already, by the hash of their pixels."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from mllm_export.runtimes.engines import Floats


class EmbeddingCache:
    """The last few images; an entry of 144 tokens of width 2048 takes 1.2 MB."""

    def __init__(self, entries: int = 8) -> None:
        """The image that was not asked for the longest goes first."""
        self._entries = entries
        self._kept: OrderedDict[bytes, Floats] = OrderedDict()

    def get(self, pixels: Floats, compute: Callable[[Floats], Floats]) -> Floats:
        """Embeddings of these pixels, read-only, computed only when they are new."""
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        if key not in self._kept:
            embeddings = compute(pixels)
            embeddings.setflags(write=False)
            self._kept[key] = embeddings
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
