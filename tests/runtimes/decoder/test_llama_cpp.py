"""Embeddings, positions and the KV cache: the places where an image can go wrong in silence."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from mllm_export.errors import EngineError
from mllm_export.runtimes.decoder._handles import BATCH_ROWS
from mllm_export.runtimes.decoder.llama_cpp import ENGINE, LlamaCppDecoder
from mllm_export.spec import ModelSpec

IDS = [int(token) for token in np.random.default_rng(0).integers(3, 800, 90)]


def test_embeddings_of_tokens_equal_the_tokens(
    decoder: LlamaCppDecoder, token_embeddings: np.ndarray
) -> None:
    tokens = decoder.evaluate([IDS], all_logits=True)
    np.testing.assert_array_equal(
        decoder.evaluate([token_embeddings[IDS]], all_logits=True), tokens
    )


def test_embeddings_equal_the_tokens_with_float16_weights(
    float16_gguf: Path, spec: ModelSpec
) -> None:
    decoder = ENGINE.open(float16_gguf, spec, 128, 1)
    (tensor,) = [t for t in gguf.GGUFReader(float16_gguf).tensors if t.name == "token_embd.weight"]
    rows = np.array(tensor.data, np.float32).reshape(800, 64)
    tokens = decoder.evaluate([IDS], all_logits=True)
    np.testing.assert_array_equal(decoder.evaluate([rows[IDS]], all_logits=True), tokens)
    decoder.close()


def test_positions_go_on_behind_an_image(
    decoder: LlamaCppDecoder, token_embeddings: np.ndarray
) -> None:
    plain = decoder.evaluate([IDS], all_logits=True)
    mixed = [IDS[:20], token_embeddings[IDS[20:36]], IDS[36:50], token_embeddings[IDS[50:66]]]
    spliced = decoder.evaluate([*mixed, IDS[66:]], all_logits=True)
    np.testing.assert_allclose(spliced, plain, atol=1e-4)


def test_a_wrong_position_would_be_seen(
    decoder: LlamaCppDecoder, token_embeddings: np.ndarray
) -> None:
    """An image taken for one position, as a naive count would have it, moves the logits."""
    plain = decoder.evaluate([IDS], all_logits=True)[-1]
    decoder.evaluate([IDS[:20], token_embeddings[IDS[20:36]]], all_logits=False)
    decoder.positions = 21
    with pytest.raises(EngineError, match="could not run a batch"):
        decoder.extend(IDS[36])
    decoder.evaluate([IDS[:20], token_embeddings[IDS[20:36]]], all_logits=False)
    decoder.positions += 1
    with pytest.raises(EngineError, match="could not run a batch"):
        decoder.extend(IDS[36])
    shifted = decoder.evaluate([IDS[:20], IDS[:1], IDS[20:]], all_logits=True)[-1]
    assert np.abs(shifted - plain).max() > 0.1


def test_image_rows_are_read_in_order(
    decoder: LlamaCppDecoder, token_embeddings: np.ndarray
) -> None:
    rows = token_embeddings[IDS[20:36]]
    right = decoder.evaluate([IDS[:20], rows, IDS[36:]], all_logits=False)
    turned = decoder.evaluate([IDS[:20], rows[::-1], IDS[36:]], all_logits=False)
    assert np.abs(right - turned).max() > 0.1


def test_a_long_prompt_is_cut_into_batches(decoder: LlamaCppDecoder) -> None:
    ids = (IDS * 12)[: BATCH_ROWS + 300]
    whole = decoder.evaluate([ids], all_logits=True)
    assert whole.shape == (BATCH_ROWS + 300, 800)
    decoder.evaluate([ids[:1]], all_logits=False)
    for token in ids[1:-1]:
        decoder.extend(token)
    last = decoder.extend(ids[-1])
    # One token at a time uses other kernels and a float16 cache: 0.03 was measured at 1000.
    np.testing.assert_allclose(last, whole[-1], atol=0.06)


def test_a_kept_prefix_gives_the_bits_of_a_fresh_evaluation(
    bundle: Path, spec: ModelSpec, token_embeddings: np.ndarray
) -> None:
    image = token_embeddings[IDS[20:36]]
    first, second = [IDS[:20], image, IDS[36:60]], [IDS[:20], image, IDS[60:]]
    warm = ENGINE.open(bundle / "decoder.gguf", spec, 512, 1)
    warm.evaluate(first, all_logits=False)
    for token in IDS[:9]:
        warm.extend(token)
    reused = warm.evaluate(second, all_logits=False)
    assert (warm.reused_positions, warm.positions) == (36, 66)
    cold = ENGINE.open(bundle / "decoder.gguf", spec, 512, 1)
    fresh = cold.evaluate(second, all_logits=False)
    assert cold.reused_positions == 0
    np.testing.assert_array_equal(reused, fresh)
    for token in IDS[:9]:
        np.testing.assert_array_equal(warm.extend(token), cold.extend(token))
    warm.close()
    cold.close()


@pytest.mark.parametrize("change", ["first token", "image", "order", "shorter"])
def test_only_equal_beginnings_are_kept(
    decoder: LlamaCppDecoder, token_embeddings: np.ndarray, change: str
) -> None:
    image = token_embeddings[IDS[20:36]]
    decoder.evaluate([IDS[:20], image, IDS[36:]], all_logits=False)
    nudged = image.copy()
    nudged[3, 5] = np.nextafter(nudged[3, 5], np.float32(9))
    prompt, kept = {
        "first token": ([[5, *IDS[1:20]], image, IDS[36:]], 0),
        "image": ([IDS[:20], nudged, IDS[36:]], 20),
        "order": ([image, IDS[:20], IDS[36:]], 0),
        "shorter": ([IDS[:20], image], 20),
    }[change]
    again = decoder.evaluate(prompt, all_logits=False)
    assert decoder.reused_positions == kept
    fresh = decoder.evaluate(prompt, all_logits=True)
    np.testing.assert_allclose(again[0], fresh[-1], atol=1e-4)


def test_the_same_prompt_again_computes_its_last_batch(decoder: LlamaCppDecoder) -> None:
    first = decoder.evaluate([IDS[:20], IDS[20:]], all_logits=False)
    again = decoder.evaluate([IDS[:20], IDS[20:]], all_logits=False)
    assert decoder.reused_positions == 20
    np.testing.assert_array_equal(first, again)


def test_a_prompt_longer_than_the_context_names_both_numbers(bundle: Path, spec: ModelSpec) -> None:
    decoder = ENGINE.open(bundle / "decoder.gguf", spec, 40, 1)
    with pytest.raises(EngineError, match="takes 41 positions, the context has 40"):
        decoder.evaluate([IDS[:41]], all_logits=False)
    decoder.evaluate([IDS[:40]], all_logits=False)
    with pytest.raises(EngineError, match="context of 40 tokens is full"):
        decoder.extend(5)
    decoder.close()


def test_what_does_not_fit_the_model_is_refused(decoder: LlamaCppDecoder) -> None:
    with pytest.raises(EngineError, match=r"\[3, 65\], needed: \[T, 64\]"):
        decoder.evaluate([np.zeros((3, 65), np.float32)], all_logits=False)
    with pytest.raises(EngineError, match="token id 800 is outside the vocabulary of 800"):
        decoder.evaluate([[1, 800]], all_logits=False)
    with pytest.raises(EngineError, match="the prompt is empty"):
        decoder.evaluate([], all_logits=False)
    with pytest.raises(EngineError, match="NaN or Inf"):
        decoder.evaluate([np.full((3, 64), np.nan, np.float32)], all_logits=False)


def test_a_float32_cache_brings_steps_and_batches_together(bundle: Path, spec: ModelSpec) -> None:
    decoder = ENGINE.open(bundle / "decoder.gguf", spec, 128, 1, "f32")
    batch = decoder.evaluate([IDS], all_logits=True)[-1]
    decoder.evaluate([IDS[:-1]], all_logits=False)
    np.testing.assert_allclose(decoder.extend(IDS[-1]), batch, atol=1e-4)
    decoder.close()


def test_a_closed_decoder_says_so(bundle: Path, spec: ModelSpec) -> None:
    decoder = ENGINE.open(bundle / "decoder.gguf", spec, 40, 1)
    decoder.close()
    decoder.close()
    for call in (
        lambda: decoder.evaluate([IDS[:2]], all_logits=False),
        lambda: decoder.extend(1),
        lambda: decoder.tokenize("a"),
        lambda: decoder.piece(1),
    ):
        with pytest.raises(EngineError, match="session is closed"):
            call()
