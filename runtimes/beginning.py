"""A session's prompt begins with a state that was computed before: the bundle's, or this machine's.

The bundle's is used where it was computed by the same decoder, engine, CPU features and KV type.
Elsewhere the first `load` computes one, as the first question would have, and keeps it in the
user's cache folder for later ones. Where no state can be had the answer is the same, and later.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mllm_export.bundle import Bundle, Manifest
from mllm_export.caches import cache_folder, read_own, write_own
from mllm_export.errors import BundleError, EngineError
from mllm_export.kv_cache import KvType
from mllm_export.prefix import Prefix, prefix_bytes, read_prefix
from mllm_export.runtimes.engines import Decoder, KeepsBeginning
from mllm_export.spec import IMAGE_ID

Kept = tuple[Prefix, bytes]
"""A state, and what it can go on from."""

FOLDER = "beginnings"
_MOST_FILES = 4
"""Of a 7B decoder one takes 31 MiB."""
_PROBES = ("?", "What is in the picture?")
ROOM = 32
"""Positions that a context must have behind the beginning for it to be of use."""


def bundled(bundle: Bundle) -> Kept | None:
    """The bundle's own state; None where it has none, or one that was changed."""
    path = bundle.find("prefix")
    try:
        return None if path is None else read_prefix(path.read_bytes(), path)
    except BundleError:
        return None


def begin(bundle: Bundle, decoder: KeepsBeginning, kv: KvType, kept: Kept) -> bool:
    """Have the decoder begin with a state; False where it is not for this one.

    Any other decoder, engine, CPU or KV type would have computed other bits.
    """
    prefix, state = kept
    wanted = _unfilled(bundle, decoder, kv, prefix.ids)
    if replace(prefix, state_sha256="") != wanted:
        return False
    decoder.begin_with(list(prefix.ids), state)
    return True


def begin_here(bundle: Bundle, decoder: Decoder, kv: KvType) -> bool:
    """The same with what this machine keeps, or computes now; False where that cannot be.

    A folder that cannot be written costs the computation each time, which the first question
    is spared.
    """
    ids = unchanging_ids(bundle.manifest, decoder)
    if not ids or not isinstance(decoder, KeepsBeginning):
        return False
    wanted = _unfilled(bundle, decoder, kv, ids)
    try:
        path = cache_folder() / FOLDER / _file_name(wanted)
    except RuntimeError:  # a user without a home
        path = None
    kept = _read(path, wanted) if path else None
    if kept is None:
        try:
            kept = compute(bundle, decoder, kv, ids)
        except EngineError:  # the first question meets it again, and says it
            return False
        if kept is not None and path is not None:
            with suppress(OSError):
                _keep(path, prefix_bytes(*kept))
    return kept is not None and begin(bundle, decoder, kv, kept)


def compute(
    bundle: Bundle, decoder: KeepsBeginning, kv: KvType, ids: tuple[int, ...]
) -> Kept | None:
    """The state behind these ids; None where this decoder has no such thing.

    Raises: EngineError for ids that cannot be evaluated.
    """
    state = decoder.state_behind(list(ids))
    unfilled = _unfilled(bundle, decoder, kv, ids)
    made = replace(unfilled, state_sha256=hashlib.sha256(state).hexdigest())
    return (made, state) if state else None


def unchanging_ids(manifest: Manifest, decoder: Decoder) -> tuple[int, ...]:
    """The ids before the image, where no question changes them and the context has room."""
    from mllm_export.runtimes.prompt import encode_prompt  # not before the engines are imported

    spec = manifest.model
    found = [encode_prompt(spec, decoder.tokenize, question, 1) for question in _PROBES]
    heads = [ids[: ids.index(IMAGE_ID)] for ids in found]
    fits = len(heads[0]) + ROOM <= decoder.context_tokens
    return tuple(heads[0]) if fits and heads[0] == heads[1] else ()


def _unfilled(bundle: Bundle, decoder: KeepsBeginning, kv: KvType, ids: tuple[int, ...]) -> Prefix:
    """What a state for this decoder says of itself, but for its hash."""
    (file,) = (one for one in bundle.manifest.files if one.role == "decoder")
    return Prefix(
        decoder_sha256=file.sha256,
        arithmetic=decoder.arithmetic,
        kv_type=kv,
        ids=ids,
        state_sha256="",
    )


def _file_name(wanted: Prefix) -> str:
    """Another one for all that a state depends on."""
    return f"{hashlib.sha256(repr(wanted).encode()).hexdigest()}.state"


def _read(path: Path, wanted: Prefix) -> Kept | None:
    """None where there is none that is whole, and that no other user could have written."""
    try:
        kept = read_prefix(read_own(path), path)
    except (OSError, BundleError):
        return None
    with suppress(OSError):
        os.utime(path)
    return kept if replace(kept[0], state_sha256="") == wanted else None


def _keep(path: Path, data: bytes) -> None:
    """Write a file; those that were used least lately make room.

    Raises: OSError.
    """
    write_own(path, data)
    # A clock that was set back makes the new one look old.
    others = [one for one in path.parent.iterdir() if one != path]
    by_use = sorted(others, key=lambda one: one.stat().st_mtime_ns, reverse=True)
    for old in by_use[_MOST_FILES - 1 :]:
        old.unlink()
