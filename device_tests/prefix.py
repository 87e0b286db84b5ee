"""The state behind a prompt's beginning, computed once by the machine that builds."""

from __future__ import annotations

import hashlib

import numpy as np

from mllm_export.bundle import Bundle, Manifest
from mllm_export.prefix import PREFIX, Prefix, write_prefix
from mllm_export.progress import Progress, Step
from mllm_export.runtimes.engines import DECODER_ENGINES, Decoder, KeepsBeginning
from mllm_export.runtimes.machine import usable_cores
from mllm_export.runtimes.opening import is_small
from mllm_export.runtimes.prompt import encode_prompt
from mllm_export.spec import IMAGE_ID

_PROBES = ("?", "What is in the picture?")
_ROOM = 32


def prefix_stage(bundle: Bundle, progress: Progress) -> bool:
    """Write prefix.state into a bundle without a manifest; False where none would be of use.

    It is left out unless a decoder that begins with it gives the bits of one that does not.
    """
    progress(Step(stage="prefix", item="state", done=0, total=1, unit="files"))
    manifest = bundle.manifest
    decoder = _open(bundle, manifest.context_tokens)
    try:
        ids = beginning(manifest, decoder)
        if not ids or len(ids) + _ROOM > manifest.context_tokens:
            return False
        assert isinstance(decoder, KeepsBeginning), "opened as llama.cpp's"
        state = decoder.state_behind(ids)
        if not state:
            return False
        question = [ids, ids[-_ROOM:]]
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
    write_prefix(bundle.folder / PREFIX, prefix, state)
    progress(Step(stage="prefix", item="state", done=1, total=1, unit="files"))
    return True


def beginning(manifest: Manifest, decoder: Decoder) -> list[int]:
    """The ids before the image, where they do not depend on the question; else none."""
    spec = manifest.model
    found = [encode_prompt(spec, decoder.tokenize, question, 1) for question in _PROBES]
    heads = [ids[: ids.index(IMAGE_ID)] for ids in found]
    return heads[0] if heads[0] == heads[1] else []


def _open(bundle: Bundle, context_tokens: int) -> Decoder:
    manifest, path = bundle.manifest, bundle.path("decoder")
    threads = 1 if is_small(path) else usable_cores()
    engine = DECODER_ENGINES[manifest.decoder_engine]
    return engine.open(path, manifest.model, context_tokens, threads, manifest.kv_type)
