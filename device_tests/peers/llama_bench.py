"""What llama.cpp's llama-bench measures, through the same calls: no picture, no sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mllm_export.bundle import open_bundle
from mllm_export.device_tests.peer import Errand, Opened, Peer


@contextmanager
def open_llama_bench(errand: Errand) -> Iterator[Opened]:
    """The bundle's decoder alone."""
    bundle = open_bundle(errand.files.bundle, verify=False)
    from mllm_export.device_tests.peers._libllama import LibLlama

    yield LibLlama(
        bundle.path("decoder"),
        errand.threads,
        errand.context_tokens,
        bundle.manifest.model.image_tokens,
    )


PEER = Peer(title="llama.cpp's own benchmark (llama-bench)", open=open_llama_bench)
