"""The decoder's state behind a prompt's unchanging beginning, kept in the bundle as one file.

A line of JSON that says what the state belongs to, then the engine's own bytes. Where any of that
differs the runtime computes the beginning itself: it takes longer, and the answer is the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from mllm_export.errors import BundleError
from mllm_export.kv_cache import KvType
from mllm_export.records import from_json, record

PREFIX = "prefix.state"


@record
class Prefix:
    """What a state can go on from, and where."""

    schema: int = 1
    decoder_sha256: str
    arithmetic: str
    """The engine, its version and the CPU features it computes with: what bits depend on."""
    kv_type: KvType
    ids: tuple[int, ...]
    """The tokens that led to it, from an empty context."""
    state_sha256: str


def prefix_bytes(prefix: Prefix, state: bytes) -> bytes:
    """The file; the same state gives the same bytes."""
    return json.dumps(asdict(prefix), sort_keys=True).encode() + b"\n" + state


def read_prefix(data: bytes, path: Path) -> tuple[Prefix, bytes]:
    """What a file holds; `path` is for errors.

    Raises: BundleError for a file of another form, or whose state was changed.
    """
    head, _, state = data.partition(b"\n")
    prefix = from_json(Prefix, head, path, BundleError)
    if hashlib.sha256(state).hexdigest() != prefix.state_sha256:
        raise BundleError(f"{path}: the state was changed since it was written; build it again")
    return prefix, state
