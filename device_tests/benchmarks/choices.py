"""What each choice in running a decoder pays: llama.cpp's settings, and what the runtime keeps.

    python -m mllm_export.device_tests.benchmarks.choices BUNDLE -o table.md

Every row is one choice changed against the first, which is what the runtime does. All take their
turn in every round, on the same weights and positions, and ratios are taken within a round.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import llama_cpp
import numpy as np
import typer

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.device_tests.peers._libllama import decode
from mllm_export.errors import CheckError
from mllm_export.kv_cache import KvType
from mllm_export.records import record
from mllm_export.runtimes.decoder import _library
from mllm_export.runtimes.decoder import llama_cpp as engine
from mllm_export.runtimes.decoder._handles import BATCH_ROWS, KV_TYPES, is_fused, open_model
from mllm_export.runtimes.engines import Segment

_BEGINNING = 62
"""Positions of a system prompt: MobileVLM's."""
_QUESTION = 14


@record
class Choice:
    """One way to set up a context."""

    text: str
    threads: int
    kv_type: KvType = "f16"
    fused: bool = False
    """llama.cpp's fused attention."""
    rows: int = BATCH_ROWS
    """Positions in one batch."""
    repacked: bool = True
    """Weights copied into the layout of this CPU's product."""


@record
class Times:
    """Milliseconds."""

    prefill: float
    token: float | None = None


def choices(threads: int) -> tuple[Choice, ...]:
    """The runtime's own first."""
    own = Choice(text="as the runtime does", threads=threads)
    return (
        own,
        replace(own, text="fused attention on a float16 cache", fused=True),
        *(
            replace(own, text=f"KV cache {kind}", kv_type=kind, fused=is_fused(kind))
            for kind in ("f32", "q8_0", "q4_0")
        ),
        *(replace(own, text=f"batches of {rows}", rows=rows) for rows in (64, 128, 256)),
        replace(own, text="weights as they lie in the file", repacked=False),
        *(
            replace(own, text=f"{n} thread{'s' * (n > 1)}", threads=n)
            for n in (1, 2 * threads)
            if n != threads
        ),
    )


class Models:
    """The decoder's file, opened as the runtime does, and once more without another layout."""

    def __init__(self, path: Path) -> None:
        """Map it twice."""
        _library.start()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        self._path = path
        self._models = {
            True: open_model(path),
            False: llama_cpp.llama_model_load_from_file(str(path).encode(), params),
        }

    @contextmanager
    def context(self, choice: Choice, positions: int) -> Iterator[Any]:
        """Raises: CheckError where llama.cpp gives none."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = positions, choice.rows, choice.rows
        params.n_threads = params.n_threads_batch = choice.threads
        params.type_k = params.type_v = KV_TYPES[choice.kv_type]
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if choice.fused
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        found = llama_cpp.llama_init_from_model(self._models[choice.repacked], params)
        if not found:
            raise CheckError(f"{self._path}: llama.cpp gives no context for '{choice.text}'")
        try:
            yield found
        finally:
            llama_cpp.llama_free(found)


def timed(models: Models, choice: Choice, prompt: Sequence[int], tokens: int) -> Times:
    """A prompt from an empty cache, then tokens one by one."""
    with models.context(choice, len(prompt) + tokens + BATCH_ROWS) as context:
        decode(context, prompt[:1])  # its first batch reserves memory
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        start = perf_counter()
        for row in range(0, len(prompt), choice.rows):
            decode(context, prompt[row : row + choice.rows])
        read = perf_counter()
        for token in prompt[:tokens]:
            decode(context, [token])
        done = perf_counter()
    return Times(prefill=1000 * (read - start), token=1000 * (done - read) / tokens)


def kept(bundle: Bundle, prompt: Sequence[int], threads: int) -> Iterator[tuple[str, Times]]:
    """The runtime's own prefill: from nothing, behind a kept beginning, of a second question."""
    spec = bundle.manifest.model
    head, image = list(prompt[:_BEGINNING]), spec.image_tokens
    rows = np.random.default_rng(0).standard_normal((image, spec.decoder.width), np.float32)
    opened = engine.ENGINE.open(bundle.path("decoder"), spec, len(prompt) + BATCH_ROWS, threads)

    def ask(question: Sequence[int]) -> Times:
        segments: list[Segment] = [head, rows * np.float32(0.02), list(question)]
        start = perf_counter()
        opened.evaluate(segments, all_logits=False)
        return Times(prefill=1000 * (perf_counter() - start))

    first, second = prompt[-_QUESTION:], prompt[-2 * _QUESTION : -_QUESTION]
    try:
        opened.evaluate([head[:1]], all_logits=False)
        state = opened.state_behind(head)
        yield "the runtime, from nothing", ask(first)
        opened.forget()
        opened.begin_with(head, state)
        yield "the runtime, the beginning kept", ask(first)
        yield "the runtime, a second question about the picture", ask(second)
    finally:
        opened.close()


def table(found: Sequence[Sequence[tuple[str, Times]]]) -> list[str]:
    """Markdown: medians, and the ratio to the first row of the same round."""
    lines = ["| | prefill, ms | over the first | token, ms | over the first |", "|---" * 5 + "|"]
    for at, (text, _) in enumerate(found[0]):
        cells = [*_cells(found, at, lambda one: one.prefill), *_cells(found, at, _token)]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def _token(times: Times) -> float | None:
    return times.token


def _cells(
    found: Sequence[Sequence[tuple[str, Times]]], at: int, figure: Callable[[Times], float | None]
) -> tuple[str, str]:
    pairs = [(figure(run[at][1]), figure(run[0][1])) for run in found]
    values = [(one, first) for one, first in pairs if one is not None and first is not None]
    if not values:
        return "", ""
    ratio = statistics.median(one / first for one, first in values)
    return f"{statistics.median(one for one, _ in values):,.1f}", f"{ratio:.2f}"


def main(
    bundle: Path,
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    threads: Annotated[int, typer.Option(help="All cores by default.")] = os.cpu_count() or 1,
    positions: Annotated[int, typer.Option(help="Of the prompt.", min=2 * _BEGINNING)] = 220,
    tokens: Annotated[int, typer.Option(help="Decoded one by one.", min=2)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print the table."""
    opened = open_bundle(bundle)
    vocab = opened.manifest.model.decoder.vocab
    prompt = [int(one) for one in np.random.default_rng(0).integers(3, vocab, positions)]
    models, own = Models(opened.path("decoder")), choices(threads)
    found = []
    for number in range(rounds):
        run = [(one.text, timed(models, one, prompt, tokens)) for one in own]
        found.append([*run, *kept(opened, prompt, threads)])
        typer.echo(f"{number + 1} of {rounds} rounds", err=True)
    lines = table(found)
    typer.echo("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
