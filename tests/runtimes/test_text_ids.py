"""What a text becomes before the text tower of an encoder alone, and what is refused."""

from pathlib import Path

import pytest

from mllm_export.embedder import TextTowerSpec
from mllm_export.errors import EngineError
from mllm_export.export.random_embedder import write_siglip_tokenizer
from mllm_export.runtimes.embedder import TextIds

SPEC = TextTowerSpec(
    kind="siglip_text",
    width=8,
    layers=1,
    heads=2,
    mlp_width=16,
    activation="gelu_pytorch_tanh",
    norm_eps=1e-6,
    vocab=200,
    context_tokens=6,
    embed_width=8,
    bos_id=None,
    eos_id=1,
    pad_id=0,
)


@pytest.fixture
def ids(tmp_path: Path) -> TextIds:
    write_siglip_tokenizer(tmp_path)
    return TextIds(tmp_path / "tokenizer.json", SPEC)


def test_a_text_ends_and_is_padded_or_cut_to_the_towers_length(ids: TextIds) -> None:
    short, long = ids.encode("red circle"), ids.encode("red circle " * 9)
    assert short[2:] == [1, 0, 0, 0]
    assert long[:5] == [*short[:2], *short[:2], short[0]]
    assert (len(long), long[-1]) == (6, 1)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_half_a_character_is_refused_with_the_text_and_its_place(ids: TextIds, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        ids.encode(text)
    said = str(caught.value)
    assert said.startswith(f"the text {text!r} holds half a character")
    assert f"at place {len(text) // 2}, " in said
    assert said.isascii(), "any terminal can show it"
