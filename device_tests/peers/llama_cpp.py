"""llama.cpp's own multimodal path: libmtmd with the mmproj file, libllama with the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mllm_export.bundle import open_bundle
from mllm_export.device_tests.peer import Errand, Opened, Peer, required


@contextmanager
def open_llama_cpp(errand: Errand) -> Iterator[Opened]:
    """The bundle's decoder beside the mmproj file."""
    mmproj = required(errand.files, "mmproj")
    decoder = open_bundle(errand.files.bundle, verify=False).path("decoder")
    from mllm_export.device_tests.peers._libmtmd import LibMtmd

    yield LibMtmd(decoder, mmproj, errand.threads, errand.context_tokens)


PEER = Peer(title="llama.cpp's multimodal library", open=open_llama_cpp, needs=("mmproj",))
