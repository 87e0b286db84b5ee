"""A model and a context of libllama, and llama-bench's loops over them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp

from mllm_export.device_tests.peer import Ask, Spent
from mllm_export.errors import CheckError

BATCH_ROWS = 512
"""llama-bench's n_ubatch. Source: llama.cpp, tools/llama-bench/llama-bench.cpp."""


def open_decoder(decoder: Path, threads: int, context_tokens: int) -> tuple[Any, Any]:
    """Model and context; everything that is not said here is llama.cpp's own default.

    Raises: CheckError when the file is refused.
    """
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    # The same guard as in the runtime: without it a quantized model may end the process.
    params.use_extra_bufts = b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
    model = llama_cpp.llama_model_load_from_file(str(decoder).encode(), params)
    context = llama_cpp.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = context_tokens, BATCH_ROWS, BATCH_ROWS
    context.n_threads = context.n_threads_batch = threads
    opened = llama_cpp.llama_init_from_model(model, context) if model else None
    if not opened:
        raise CheckError(f"llama.cpp refuses {decoder}")
    return model, opened


def decode(context: Any, ids: Sequence[int]) -> None:
    """Token ids after what stands in the cache, with the logits of the last.

    Raises: CheckError when llama.cpp fails.
    """
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
    if llama_cpp.llama_decode(context, batch):
        raise CheckError(f"llama.cpp could not run a batch of {len(ids)} tokens")


class LibLlama:
    """llama-bench: tokens drawn at random, as many positions as the prompt has before decoding.

    Source: llama.cpp, tools/llama-bench/llama-bench.cpp, test_prompt and test_gen.
    """

    def __init__(self, decoder: Path, threads: int, context_tokens: int, image_tokens: int) -> None:
        """Load the file."""
        self._model, self._context = open_decoder(decoder, threads, context_tokens)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self._image_tokens = image_tokens
        self._random = random.Random(0)

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """See `Opened`; the picture's positions are tokens too."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        prompt = self._drawn(len(ask.ids) - 1 + self._image_tokens)
        singles = [self._drawn(1) for _ in range(tokens)]
        start = perf_counter()
        for row in range(0, len(prompt), BATCH_ROWS):
            decode(self._context, prompt[row : row + BATCH_ROWS])
        llama_cpp.llama_synchronize(self._context)
        read = perf_counter()
        for single in singles:
            decode(self._context, single)
            llama_cpp.llama_synchronize(self._context)
        done = perf_counter()
        return Spent(prefill_ms=1000 * (read - start), decode_ms=1000 * (done - read) / tokens)

    def _drawn(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(count)]
