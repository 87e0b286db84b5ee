"""Faults between a question and its token ids, and in what ends an answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
from fault import Fault, Plant
from fault_bench import Bench
from gguf_edits import set_field

from mllm_export.bundle import Bundle
from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder
from mllm_export.spec import ModelSpec, PromptSpec

PROMPT = ("prompt",)


def prompt_spec(change: Callable[[PromptSpec], PromptSpec]) -> Plant:
    return lambda bench, _: bench.with_model(
        lambda model: replace(model, prompt=change(model.prompt))
    )


def no_bos(model: ModelSpec) -> ModelSpec:
    return replace(model, tokenizer=replace(model.tokenizer, add_bos=False))


def doubled_bos(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """The engine adds one, and the template adds one: the first piece gets both."""
    plain = LlamaCppDecoder.tokenize

    def tokenize(self: LlamaCppDecoder, text: str) -> list[int]:
        found = plain(self, text)
        first = text.startswith(bench.honest.manifest.model.prompt.before[:8])
        return [bench.oracle.bos_id, *found] if first else found

    patch.setattr(LlamaCppDecoder, "tokenize", tokenize)
    return bench.honest


def image_last(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    def text(self: PromptSpec, question: str, images: int = 1) -> str:
        there = question.count(self.image_marker)
        tail = "" if there else (self.image_marker + self.after_image) * images
        return f"{self.before}{question}{tail}{self.after}"

    patch.setattr(PromptSpec, "text", text)
    return bench.honest


def special_as_text(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """Control tokens in a question are spelled out, letter by letter."""
    plain = llama_cpp.llama_tokenize

    def tokenize(vocab, data, size, ids, room, bos, special) -> int:
        del special
        return plain(vocab, data, size, ids, room, bos, False)

    patch.setattr(llama_cpp, "llama_tokenize", tokenize)
    return bench.honest


def joined_pieces(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """The text around the picture is tokenized as one, and cut afterwards."""
    plain = LlamaCppDecoder.tokenize

    def tokenize(self: LlamaCppDecoder, text: str) -> list[int]:
        found = plain(self, text)
        blank = plain(self, "")
        is_first = text.startswith(bench.honest.manifest.model.prompt.before[:8])
        return found if is_first or text[:1] != "\n" else found[len(blank) + 1 :]

    patch.setattr(LlamaCppDecoder, "tokenize", tokenize)
    return bench.honest


def other_tokenizer(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
    """The tokenizer of a model with the same number of pieces."""
    mixed = bench.folder / "mixed" / bench.checkpoint.name
    if not mixed.exists():
        shutil.copytree(bench.checkpoint, mixed)
        shutil.copyfile(bench.sibling / "tokenizer.model", mixed / "tokenizer.model")
    return bench.with_decoder(checkpoint=mixed)


def gguf_field(key: str, value: object) -> Plant:
    def change(path: Path) -> None:
        set_field(path, key, value)

    return lambda bench, _: bench.with_file("decoder", change)


def doubled_role(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
    """The template kept in the decoder's file, which other programs follow."""
    template = bench.job.reading.chat_template.replace("ASSISTANT:", "ASSISTANT: ASSISTANT:")
    assert template != bench.job.reading.chat_template
    return bench.with_file(
        "decoder", lambda path: set_field(path, "tokenizer.chat_template", template)
    )


def fault(name: str, plant: Plant, quick: bool = False) -> Fault:
    return Fault(name=name, stage="prompt", rungs=PROMPT, plant=plant, quick=quick)


FAULTS = (
    fault("BOS missing", lambda bench, _: bench.with_model(no_bos), quick=True),
    fault("BOS doubled", doubled_bos, quick=True),
    fault(
        "system prompt missing",
        prompt_spec(lambda p: replace(p, before=p.before[p.before.rindex("USER") :])),
        quick=True,
    ),
    fault("role of the assistant doubled", prompt_spec(lambda p: replace(p, after=2 * p.after))),
    fault("blank after the role", prompt_spec(lambda p: replace(p, after=p.after + " "))),
    fault("image placed after the question", image_last),
    fault("no line break after the image", prompt_spec(lambda p: replace(p, after_image=""))),
    fault("stop string missing", prompt_spec(lambda p: replace(p, stop_strings=())), quick=True),
    fault("stop id missing", prompt_spec(lambda p: replace(p, stop_ids=()))),
    fault("another stop string", prompt_spec(lambda p: replace(p, stop_strings=("<|end|>",)))),
    fault("special token typed as text", special_as_text, quick=True),
    fault("text around the image tokenized as one", joined_pieces),
    fault("tokenizer of a sibling model", other_tokenizer),
    fault("no blank before the first word", gguf_field("tokenizer.ggml.add_space_prefix", False)),
    fault("chat template in the decoder's file", doubled_role),
)
