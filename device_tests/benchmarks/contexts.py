"""Decode speed over the length of the context: a decoder without attention beside one with it.

    python -m mllm_export.device_tests.benchmarks.contexts -o table.md

Both decoders have random weights in the shapes of published models, stored alike, and are run by
the runtime's own engine on the same cores, one after the other. The context is made of embeddings,
as a picture is, so that it can grow without being computed anew.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Annotated, Any, cast

import numpy as np
import typer

from mllm_export.config import Config
from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
from mllm_export.export.forecast import kv_cache_bytes
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS, TOKENIZERS, Array
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.quantize.recipe import load_recipe
from mllm_export.records import record
from mllm_export.runtimes.engines import DECODER_ENGINES
from mllm_export.spec import DecoderSpec, ModelSpec

LENGTHS = (64, 256, 1024, 2048, 4096)
TOKENS = 24
"""Decoded at each length; the first is left out of the median."""

_POOL = 1 << 20
_DRAWN_VALUES = 1 << 22
"""Larger tensors repeat a pool of values: drawing three billion would take longer than the rest."""

_MAMBA_2_8B = {"d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}}
"""Source: state-spaces/mamba-2.8b-slimpj, config.json."""

_MOBILELLAMA_2_7B = {
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
"""Source: mtgv/MobileLLaMA-2.7B-Base, config.json; its 2,048 positions raised for this bench."""


@record
class Subject:
    """A decoder that is measured."""

    title: str
    spec: DecoderSpec
    tokenizer: str
    """A file in export/tokenizers."""
    tokenizer_class: str = ""


@record
class Speed:
    """At one length of the context."""

    context_tokens: int
    token_ms: float
    """Median over the decoded tokens."""
    fastest_ms: float
    """What is left on cores that other work was on too."""
    carried_bytes: int
    """KV cache over that context, or state."""


def published() -> tuple[Subject, ...]:
    """Mamba 2.8B as in Cobra, and MobileLLaMA 2.7B as in MobileVLM."""
    mamba = DECODERS["mamba"].read_spec(Config(_MAMBA_2_8B, "config.json"))
    llama = DECODERS["llama"].read_spec(Config(_MOBILELLAMA_2_7B, "config.json"))
    return (
        Subject(
            title="Mamba 2.8B", spec=mamba, tokenizer="bpe", tokenizer_class="GPTNeoXTokenizer"
        ),
        Subject(title="LLaMA 2.7B", spec=llama, tokenizer="sentencepiece"),
    )


def shallower(subject: Subject, share: int) -> Subject:
    """One layer in `share`; what a token costs in a layer is the same in each."""
    layers = subject.spec.layers // share
    title = subject.title if share == 1 else f"{subject.title}, {layers} layers"
    return replace(subject, title=title, spec=replace(subject.spec, layers=layers))


def write_random_decoder(path: Path, subject: Subject, recipe: str) -> Path:
    """A decoder's file of random weights; its tokenizer stands beside it."""
    spec, chosen = subject.spec, load_recipe(recipe)
    decoder, tokenizer = DECODERS[spec.kind], TOKENIZERS[subject.tokenizer]
    shapes = decoder.parameters(spec)
    plan = plan_decoder_tensors(spec, chosen, {name: name for name in shapes})
    tensors = gguf_tensors(spec, plan)
    # A small vocabulary will do: rows without a token are padding.
    tokenizer.write_random(path.parent, min(spec.vocab, 512), subject.tokenizer_class)
    ids = tokenizer.read_spec(path.parent, Config({"vocab_size": spec.vocab}, "config.json"))
    fields = (
        *general_fields(subject.title, chosen.decoder_scheme, tensors),
        *decoder.metadata(spec),
        *tokenizer.metadata(path.parent, ids, spec.vocab),
    )
    pool = np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)

    def read(name: str) -> Array:
        shape = shapes[name]
        if math.prod(shape) <= _DRAWN_VALUES:
            return random_tensor(name, shape, 0)
        return np.resize(pool * np.float32(shape[-1] ** -0.5), shape)

    write_decoder(path, fields, tensors, read)
    return path


def speeds(
    path: Path, spec: DecoderSpec, lengths: Sequence[int], threads: int, tokens: int = TOKENS
) -> Iterator[Speed]:
    """Time of a token behind each length of context, rising."""
    # The engine asks the model's spec for the decoder's sizes alone.
    model = cast("ModelSpec", SimpleNamespace(decoder=spec))
    room = max(lengths) + tokens + 1
    engine = DECODER_ENGINES["llama_cpp"].open(path, model, room, threads)
    rows = np.random.default_rng(1).standard_normal((max(lengths), spec.width), dtype=np.float32)
    segments: list[Any] = []
    before = 0
    try:
        for length in lengths:
            segments.append(rows[before : length - 1] * np.float32(0.1))
            before = length - 1
            engine.evaluate([*segments, [3]], all_logits=False)
            times = [_timed(engine, 4 + at) for at in range(tokens)]
            yield Speed(
                context_tokens=length,
                token_ms=statistics.median(times[1:]),
                fastest_ms=min(times[1:]),
                carried_bytes=kv_cache_bytes(spec, length),
            )
    finally:
        engine.close()


def _timed(engine: Any, token_id: int) -> float:
    start = perf_counter()
    engine.extend(token_id)
    return 1000 * (perf_counter() - start)


def table(subjects: Sequence[Subject], found: Sequence[Sequence[Speed]]) -> list[str]:
    """Markdown: a line for each length, and how much slower the last is than the first."""
    titles = [f"{one.title}, tokens/s | ms | fastest, ms | carried, MiB" for one in subjects]
    lines = [f"| context | {' | '.join(titles)} |", "|---" * (1 + 4 * len(subjects)) + "|"]
    for row in zip(*found, strict=True):
        cells = [
            f"{1000 / one.token_ms:.2f} | {one.token_ms:.1f} | {one.fastest_ms:.1f} | "
            f"{one.carried_bytes / 2**20:.1f}"
            for one in row
        ]
        lines.append(f"| {row[0].context_tokens} | {' | '.join(cells)} |")
    slower = [rows[-1].fastest_ms / rows[0].fastest_ms for rows in found]
    told = (f"{one.title} {ratio:.2f}" for one, ratio in zip(subjects, slower, strict=True))
    return [*lines, "", f"Fastest token at the last length over the first: {', '.join(told)}"]


def main(
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    recipe: Annotated[str, typer.Option(help="How both are stored.")] = "q4_0",
    threads: Annotated[int, typer.Option(help="All cores by default.")] = os.cpu_count() or 1,
    share: Annotated[int, typer.Option(help="Run one layer in so many.", min=1)] = 1,
) -> None:
    """Print the table."""
    subjects = tuple(shallower(one, share) for one in published())
    found: list[list[Speed]] = []
    for one in subjects:
        with tempfile.TemporaryDirectory() as folder:
            path = write_random_decoder(Path(folder) / "decoder.gguf", one, recipe)
            size = path.stat().st_size / 2**20
            typer.echo(f"{one.title}: {recipe}, {size:.0f} MiB, {threads} threads", err=True)
            found.append(list(speeds(path, one.spec, LENGTHS, threads)))
    lines = table(subjects, found)
    typer.echo("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
