"""Rates of memory count what moved, and a token's bytes are the file's without the table."""

import gguf
import pytest

from mllm_export.device_tests import bandwidth
from mllm_export.device_tests.bandwidth import memory_rates, token_bytes
from mllm_export.export.forecast import kv_cache_bytes
from tests.conftest import Build


@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte_is_copied_once_whatever_the_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    rate = bandwidth._rate

    def watched(pool, threads, kernel, one, other):  # type: ignore[no-untyped-def]
        one[:], other[:] = 1, 2

        def counted(a, b, size):  # type: ignore[no-untyped-def]
            moved.append(size.value)
            return kernel(a, b, size)

        found = rate(pool, threads, counted, one, other)
        if kernel.__name__ == "memcpy":
            assert (one == 2).all()
        return found

    monkeypatch.setattr(bandwidth, "_rate", watched)
    found = memory_rates(threads, size_bytes=(1 << 20) + 7)
    assert sum(moved) == 2 * (bandwidth._REPEATS + 1) * ((1 << 20) + 7)
    assert len(moved) == 2 * (bandwidth._REPEATS + 1) * threads
    assert 1e7 < found.copy < 1e13
    assert 1e7 < found.read < 1e13


def test_a_token_reads_one_row_of_the_table_and_the_cache_before_it(
    reference_bundle: Build,
) -> None:
    bundle = reference_bundle("int4")
    decoder = bundle.manifest.model.decoder
    tensors = {
        one.name: int(one.n_bytes) for one in gguf.GGUFReader(bundle.path("decoder")).tensors
    }
    table = tensors.pop("token_embd.weight")
    assert "output.weight" in tensors
    assert token_bytes(bundle, 0) == sum(tensors.values()) + table // decoder.vocab
    row = token_bytes(bundle, 11) - token_bytes(bundle, 10)
    assert row == kv_cache_bytes(decoder, 1, bundle.manifest.kv_type) > 0
