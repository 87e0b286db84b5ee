"""The on-device runtime: a bundle in, answers out; no torch, no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mllm_export.kv_cache import KvType
    from mllm_export.runtimes.session import Session

__all__ = ["load"]


def load(
    folder: str | Path,
    *,
    threads: int | None = None,
    context_tokens: int | None = None,
    verify: bool = True,
    kv_type: KvType | None = None,
) -> Session:
    """Open a bundle for questions; close the session, or use it in a `with` statement.

    `threads` is every core this process may use unless given; `context_tokens` is the bundle's.
    `verify` compares the SHA-256 of every file that is opened, before an engine reads it; a file
    that was compared on this machine since it started, and has not changed since, is not read
    for it again, unless MLLM_VERIFY is `always`. `kv_type` is the bundle's unless given.

    Where the bundle has no state for this machine to begin prompts with, a first call computes it
    and keeps it in the user's cache folder; not for decoders below 32 MiB, which are as fast
    without, nor without `verify`.

    Raises: BundleError, saying why, for a bundle that is incomplete, changed, or not for this
    runtime; EngineError when an engine refuses one of its files.
    """
    # The engines cost a third of a second to import, so naming `load` does not import them.
    from mllm_export.runtimes.opening import open_session

    return open_session(folder, threads, context_tokens, verify, kv_type)
