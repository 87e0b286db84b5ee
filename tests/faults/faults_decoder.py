"""Faults in the decoder's file and in how it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gguf_edits as gguf
import llama_cpp
import numpy as np
import pytest
from fault import Fault, Plant
from fault_bench import Bench

from mllm_export.bundle import Bundle
from mllm_export.export.family import Reading
from mllm_export.runtimes import generation, session, text_stream
from mllm_export.runtimes.decoder import _handles
from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder
from mllm_export.runtimes.sampling import Sampler

WEIGHTS, LOGITS, TEXT = ("weights",), ("logits", "controls"), ("text",)


def file_edit(change: Callable[[Path], None]) -> Plant:
    return lambda bench, _: bench.with_file("decoder", change)


def tensor(name: str, change: gguf.Bytes) -> Plant:
    return file_edit(lambda path: gguf.change_tensor(path, name, change))


def decoder_spec(**changed: object) -> Plant:
    """The exporter reads the config otherwise."""

    def other(reading: Reading) -> Reading:
        decoder = replace(reading.spec.decoder, **changed)
        return replace(reading, spec=replace(reading.spec, decoder=decoder))

    return lambda bench, _: bench.with_decoder(reading=other)


def not_permuted(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """q and k in transformers' order of rows."""
    from mllm_export.export.decoders import llama

    patch.setattr(llama, "interleave_halves", lambda _, values: values[0])
    made = bench.with_decoder()
    patch.undo()
    return made


def stored_as(**schemes: str) -> Plant:
    by_name = {name.replace("__", "."): scheme for name, scheme in schemes.items()}
    return lambda bench, _: bench.with_decoder(schemes=by_name)


def reads(ending: str, scale: float) -> Plant:
    def scaled(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
        return np.array(get(name), np.float32) * np.float32(scale)

    return lambda bench, _: bench.with_decoder(read={ending: scaled})


def from_sibling(name: str) -> Plant:
    from mllm_export.checkpoint import Checkpoint

    def plant(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
        other = Checkpoint(bench.sibling)
        return bench.with_decoder(read={name: lambda _, full: other.read(full)})

    return plant


def embedding_as_head(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
    return bench.with_decoder(
        read={"lm_head.weight": lambda get, _: get("model.embed_tokens.weight")}
    )


def untied(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
    """The head that lies in the checkpoint, where the config says that the embedding is it."""
    from mllm_export.checkpoint import Checkpoint

    head = Checkpoint(bench.checkpoint).read("lm_head.weight").astype(np.float16)
    return bench.with_file("decoder", lambda path: gguf.add_tensor(path, "output.weight", head))


def flipped(place: tuple[int, int], mask: int) -> gguf.Bytes:
    def change(data: np.ndarray) -> np.ndarray:
        data.view(np.uint8).reshape(len(data), -1)[place] ^= mask
        return data

    return change


def infinite(data: np.ndarray) -> np.ndarray:
    data[3, 5] = np.inf
    return data


def narrow_cache(kind: int) -> Plant:
    """Keys and values in fewer bits; llama.cpp takes such values with its fused attention only."""

    def plant(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
        patch.setitem(_handles.KV_TYPES, "f16", kind)
        fused = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        patch.setattr(llama_cpp, "LLAMA_FLASH_ATTN_TYPE_DISABLED", fused)
        return bench.honest

    return plant


def spliced(change: Callable[[Sequence[np.ndarray]], list[np.ndarray]]) -> Plant:
    """What stands in the images' places is not what the tower gave."""

    def plant(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
        plain = session.splice
        patch.setattr(
            session, "splice", lambda ids, images, vocab: plain(ids, change(images), vocab)
        )
        return bench.honest

    return plant


def scaled_embeds(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As Gemma's decoder scales its own embeddings."""
    return [image * np.float32(image.shape[-1] ** 0.5) for image in images]


def second_best(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    patch.setattr(Sampler, "__call__", lambda _, logits: int(np.argsort(logits)[-2]))
    return bench.honest


def endless(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """Answers go on behind the stop token."""
    plain = generation.StopRules
    patch.setattr(session, "StopRules", lambda **rules: plain(**{**rules, "ids": frozenset()}))
    return bench.honest


def lost_blanks(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """The ids are right, and the text made of them is not."""
    plain = text_stream.TextStream.feed
    patch.setattr(
        text_stream.TextStream, "feed", lambda self, data: plain(self, data.replace(b" ", b""))
    )
    return bench.honest


def stale_cache(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """Keys and values of another picture are kept, for it has as many rows."""

    def common(self: LlamaCppDecoder, chunks: Sequence) -> int:
        count = 0
        for before, now in zip(self._kept, chunks[:-1], strict=False):
            if before.rows != now.rows:
                break
            count += 1
        return count

    patch.setattr(LlamaCppDecoder, "_common", common)
    return bench.honest


def fault(
    name: str, plant: Plant, rungs: tuple[str, ...] = WEIGHTS, quick: bool = False, **more: object
) -> Fault:
    stage = "decoder file" if rungs == WEIGHTS else "decoding"
    return Fault(name=name, stage=stage, rungs=rungs, plant=plant, quick=quick, **more)


DOWN, GATE, UP = (f"blk.1.ffn_{name}.weight" for name in ("down", "gate", "up"))
QUANTIZED = "blk.0.ffn_gate.weight"

FAULTS = (
    fault("q and k rows not permuted", not_permuted, quick=True),
    fault("rope base", decoder_spec(rope_theta=500000.0), quick=True),
    fault("RMS norm epsilon", decoder_spec(norm_eps=1e-5)),
    fault("rope scaled", file_edit(lambda p: gguf.set_field(p, "llama.rope.scaling.factor", 2.0))),
    fault("head taken from the embedding", embedding_as_head),
    fault("head of another checkpoint", from_sibling("lm_head.weight")),
    fault("tied head untied with other weights", untied, models=("tied",), quick=True),
    fault("embeddings scaled twice", reads("embed_tokens.weight", 16.0), quick=True),
    fault("gate and up swapped", file_edit(lambda p: gguf.swap_tensors(p, GATE, UP))),
    fault(
        "two layers swapped",
        file_edit(lambda p: gguf.swap_tensors(p, "blk.0.ffn_down.weight", "blk.1.ffn_down.weight")),
    ),
    fault("one projection quantized", stored_as(blk__1__ffn_down__weight="Q8_0"), quick=True),
    fault("one norm stored in float16", stored_as(blk__1__ffn_norm__weight="F16")),
    fault(
        "one tensor coarser than planned",
        stored_as(blk__0__attn_v__weight="Q4_0"),
        recipe="int8",
    ),
    fault("one bit flipped", tensor(DOWN, flipped((5, 8), 1))),
    fault("one value infinite", tensor(DOWN, infinite), quick=True),
    fault(
        "scale bytes of one block flipped",
        tensor(QUANTIZED, flipped((3, 1), 0x10)),
        recipe="int4",
        quick=True,
    ),
    fault("codes of one block flipped", tensor(QUANTIZED, flipped((3, 9), 0x80)), recipe="int4"),
    fault("q and k rows not permuted, INT4", not_permuted, recipe="int4"),
    fault(
        "decoder of another checkpoint",
        from_sibling(""),
    ),
    fault(
        "KV cache in 4 bits", narrow_cache(llama_cpp.GGML_TYPE_Q4_0), LOGITS, models=("reference",)
    ),
    fault(
        "KV cache in 8 bits", narrow_cache(llama_cpp.GGML_TYPE_Q8_0), LOGITS, models=("reference",)
    ),
    fault("image ignored", spliced(lambda all_: [one * 0 for one in all_]), LOGITS, quick=True),
    fault("two images swapped", spliced(lambda all_: list(all_)[::-1]), LOGITS, quick=True),
    fault("image embeddings scaled again", spliced(scaled_embeds), LOGITS),
    fault(
        "image tokens in reverse", spliced(lambda all_: [one[::-1].copy() for one in all_]), LOGITS
    ),
    fault(
        "last image token lost",
        spliced(lambda all_: [np.concatenate([one[:-1], one[-2:-1]]) for one in all_]),
        LOGITS,
    ),
    fault("second best token taken", second_best, TEXT, quick=True),
    # Random weights never choose the stop token.
    fault("stop token ignored", endless, TEXT, models=("reference",)),
    fault("keys and values of another picture kept", stale_cache, TEXT),
    fault("blanks lost in the text", lost_blanks, TEXT),
)
