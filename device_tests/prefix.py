"""The state behind a prompt's beginning, computed once by the machine that builds."""

from __future__ import annotations

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.errors import EngineError
from mllm_export.prefix import PREFIX, prefix_bytes
from mllm_export.progress import Progress, Step
from mllm_export.runtimes.beginning import ROOM, Kept, compute, unchanging_ids
from mllm_export.runtimes.engines import DECODER_ENGINES, Decoder, KeepsBeginning
from mllm_export.runtimes.machine import usable_cores
from mllm_export.runtimes.opening import is_small


def prefix_stage(bundle: Bundle, progress: Progress) -> bool:
    """Write prefix.state into a bundle without a manifest; False where none would be of use.

    It is left out unless a decoder that begins with it gives the bits of one that does not.
    """
    progress(Step(stage="prefix", item="state", done=0, total=1, unit="files"))
    decoder = _open(bundle, bundle.manifest.context_tokens)
    try:
        kept = _kept(bundle, decoder)
    except EngineError:
        # Such as NaN, which the checks put into their report; without one no bundle is left.
        kept = None
    finally:
        decoder.close()
    if kept is None:
        return False
    (bundle.folder / PREFIX).write_bytes(prefix_bytes(*kept))
    progress(Step(stage="prefix", item="state", done=1, total=1, unit="files"))
    return True


def _kept(bundle: Bundle, decoder: Decoder) -> Kept | None:
    """The state, if it gives the bits of computing it."""
    manifest = bundle.manifest
    ids = list(unchanging_ids(manifest, decoder))
    if not ids:
        return None
    assert isinstance(decoder, KeepsBeginning), "opened as llama.cpp's"
    kept = compute(bundle, decoder, manifest.kv_type, tuple(ids))
    if kept is None:
        return None
    question = [ids, ids[-ROOM:]]
    computed = decoder.evaluate(question, all_logits=False)
    decoder.forget()
    decoder.begin_with(ids, kept[1])
    begun = decoder.evaluate(question, all_logits=False)
    same = decoder.reused_positions == len(ids) and np.array_equal(computed, begun)
    return kept if same else None


def _open(bundle: Bundle, context_tokens: int) -> Decoder:
    manifest, path = bundle.manifest, bundle.path("decoder")
    threads = 1 if is_small(path) else usable_cores()
    engine = DECODER_ENGINES[manifest.decoder_engine]
    return engine.open(path, manifest.model, context_tokens, threads, manifest.kv_type)
