"""The benchmark over lengths of context: both kinds of decoder go through it."""

import math
from pathlib import Path

import pytest

from mllm_export.device_tests.benchmarks.contexts import (
    Speed,
    Subject,
    published,
    speeds,
    table,
    write_random_decoder,
)
from mllm_export.export.parts import DECODERS

LENGTHS = (16, 600)


@pytest.mark.parametrize(("kind", "tokenizer"), [("mamba", "bpe"), ("llama", "sentencepiece")])
def test_a_token_is_timed_behind_each_length(kind: str, tokenizer: str, tmp_path: Path) -> None:
    cut = "GPTNeoXTokenizer" if kind == "mamba" else ""
    spec = DECODERS[kind].tiny()
    subject = Subject(title=kind, spec=spec, tokenizer=tokenizer, tokenizer_class=cut)
    path = write_random_decoder(tmp_path / "decoder.gguf", subject, "q4_0")
    found = list(speeds(path, spec, LENGTHS, 1, tokens=3))
    assert [one.context_tokens for one in found] == list(LENGTHS)
    assert all(one.token_ms > 0 for one in found)
    grows = found[1].carried_bytes > found[0].carried_bytes
    assert grows == (kind == "llama")


def test_the_published_shapes_are_of_like_size() -> None:
    sizes = [
        sum(math.prod(shape) for shape in DECODERS[one.spec.kind].parameters(one.spec).values())
        for one in published()
    ]
    assert sizes == [2_768_345_600, 2_701_560_320]


def test_the_table_tells_how_much_slower_the_end_is() -> None:
    rows = [[Speed(context_tokens=n, token_ms=ms, fastest_ms=ms, carried_bytes=2**20)
             for n, ms in of]
            for of in (((64, 10.0), (4096, 10.0)), ((64, 10.0), (4096, 25.0)))]  # fmt: skip
    lines = table(published(), rows)
    assert lines[3] == "| 4096 | 100.00 | 10.0 | 10.0 | 1.0 | 40.00 | 25.0 | 25.0 | 1.0 |"
    assert lines[-1].endswith("Mamba 2.8B 1.00, LLaMA 2.7B 2.50")
