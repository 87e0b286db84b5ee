"""The state behind a prompt's beginning, computed once by the machine that builds."""

from __future__ import annotations

import hashlib

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.prefix import PREFIX, Prefix, prefix_bytes
from mllm_export.progress import Progress, Step
from mllm_export.runtimes.beginning import ROOM, unchanging_ids
from mllm_export.runtimes.engines import DECODER_ENGINES, Decoder, KeepsBeginning
from mllm_export.runtimes.machine import usable_cores
from mllm_export.runtimes.opening import is_small


def prefix_stage(bundle: Bundle, progress: Progress) -> bool:
    """Write prefix.state into a bundle without a manifest; False where none would be of use.

    It is left out unless a decoder that begins with it gives the bits of one that does not.
    """
    progress(Step(stage="prefix", item="state", done=0, total=1, unit="files"))
    manifest = bundle.manifest
    decoder = _open(bundle, manifest.context_tokens)
    try:
        ids = list(unchanging_ids(manifest, decoder))
        if not ids:
            return False
        assert isinstance(decoder, KeepsBeginning), "opened as llama.cpp's"
        state = decoder.state_behind(ids)
        if not state:
            return False
        question = [ids, ids[-ROOM:]]
        computed = decoder.evaluate(question, all_logits=False)
        decoder.forget()
        decoder.begin_with(ids, state)
        begun = decoder.evaluate(question, all_logits=False)
        if decoder.reused_positions != len(ids) or not np.array_equal(computed, begun):
            return False
        arithmetic = decoder.arithmetic
    finally:
        decoder.close()
    (file,) = (one for one in manifest.files if one.role == "decoder")
    prefix = Prefix(
        decoder_sha256=file.sha256,
        arithmetic=arithmetic,
        kv_type=manifest.kv_type,
        ids=tuple(ids),
        state_sha256=hashlib.sha256(state).hexdigest(),
    )
    (bundle.folder / PREFIX).write_bytes(prefix_bytes(prefix, state))
    progress(Step(stage="prefix", item="state", done=1, total=1, unit="files"))
    return True


def _open(bundle: Bundle, context_tokens: int) -> Decoder:
    manifest, path = bundle.manifest, bundle.path("decoder")
    threads = 1 if is_small(path) else usable_cores()
    engine = DECODER_ENGINES[manifest.decoder_engine]
    return engine.open(path, manifest.model, context_tokens, threads, manifest.kv_type)
