"""A GGUF file and its context: opened, held against the spec, freed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp

from mllm_export.errors import EngineError
from mllm_export.kv_cache import KvType
from mllm_export.pages import forget_file
from mllm_export.runtimes.decoder import _library
from mllm_export.spec import ModelSpec

BATCH_ROWS = 512
"""Rows per llama_decode call; with all logits asked for, the output buffer is this times V."""

KV_TYPES: dict[KvType, int] = {
    "f32": llama_cpp.GGML_TYPE_F32,
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
"""llama.cpp's number of each type."""


def open_model(path: Path) -> Any:
    """Map the file's weights.

    Raises: EngineError with llama.cpp's reason.
    """
    params = llama_cpp.llama_model_default_params()
    # Of a library that was built with a GPU (Metal, by default on a Mac) none is used: its bits are
    # not those that were checked. No device, nothing that long prompts could be handed to.
    params.n_gpu_layers = 0
    params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, -1
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    # Built by some compilers, the AMX kernels end the process: ggml-org/llama.cpp issue 20824.
    params.use_extra_bufts = b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise EngineError(f"{path}: llama.cpp refuses the file: {_library.last_complaint()}")
    # Loading reads the whole file, also what was copied into another layout.
    forget_file(path)
    return model


def open_context(path: Path, model: Any, context_tokens: int, threads: int, kv_type: KvType) -> Any:
    """A context of one sequence on the model.

    Raises: EngineError with llama.cpp's reason.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context_tokens
    params.n_batch = params.n_ubatch = min(BATCH_ROWS, context_tokens)
    params.n_seq_max = 1
    params.op_offload = params.offload_kqv = False
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = KV_TYPES[kv_type]
    params.flash_attn_type = (
        llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if is_fused(kv_type)
        else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise EngineError(
            f"{path}: llama.cpp gives no context of {context_tokens} tokens: "
            f"{_library.last_complaint()}; is there enough memory?"
        )
    return context


def is_fused(kv_type: KvType) -> bool:
    """Whether attention over such a cache is computed by llama.cpp's fused operator.

    On the CPU it sums float16 values in float16. On a random model, against a float32 cache: KL
    3.7e-5 and 99.4 % top-1 with it, 2.9e-6 and 99.9 % without. Values in blocks it sums in
    float32, and nothing else in llama.cpp reads them.
    """
    return kv_type in ("q8_0", "q4_0")


def free(context: Any, model: Any) -> None:
    """Give both back; a context goes before its model."""
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def check_sizes(path: Path, spec: ModelSpec, vocab: int, width: int) -> None:
    """Raises: EngineError when the file's sizes are not the spec's."""
    decoder = spec.decoder
    if (vocab, width) != (decoder.vocab, decoder.width):
        raise EngineError(
            f"{path}: the language model has vocabulary {vocab} and width {width}, the spec "
            f"says {decoder.vocab} and {decoder.width}; is it another model's?"
        )
