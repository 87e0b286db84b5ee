"""libmtmd with an mmproj file in front of libllama with a decoder."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from PIL import Image

from mllm_export.device_tests.peer import Ask, Spent
from mllm_export.device_tests.peers._libllama import BATCH_ROWS, decode, open_decoder
from mllm_export.errors import CheckError
from mllm_export.spec import IMAGE_ID


class LibMtmd:
    """A model, a context of one sequence, and the tower's context."""

    def __init__(self, decoder: Path, mmproj: Path, threads: int, context_tokens: int) -> None:
        """Load both files. Raises: CheckError when one is refused."""
        self._model, self._context = open_decoder(decoder, threads, context_tokens)
        tower = mtmd_cpp.mtmd_context_params_default()
        tower.use_gpu, tower.n_threads, tower.warmup = False, threads, False
        self._tower = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self._model, tower)
        if not self._tower:
            raise CheckError(f"llama.cpp refuses {mmproj}, or for {decoder.name}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._position = 0

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """See `Opened`."""
        start = perf_counter()
        chunks, image = self._chunks(ask.picture)
        cut = perf_counter()
        self._require(mtmd_cpp.mtmd_encode_chunk(self._tower, image) == 0, "the picture")
        seen = perf_counter()
        token = self._prefill(ask.ids, image)
        read = perf_counter()
        for _ in range(tokens):
            token = self._decode([token], last=True)
        done = perf_counter()
        # Its own programs evaluate the next question's whole prompt; the embeddings are kept.
        self._prefill(ask.second_ids, image)
        second = perf_counter()
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        return Spent(
            preprocess_ms=1000 * (cut - start),
            tower_ms=1000 * (seen - cut),
            prefill_ms=1000 * (read - seen),
            decode_ms=1000 * (done - read) / tokens,
            second_ms=1000 * (second - done),
        )

    def _chunks(self, picture: Path) -> tuple[Any, Any]:
        """The picture, cut and scaled by the library: its chunks, and the image among them."""
        with Image.open(picture) as opened:
            pixels = np.ascontiguousarray(opened.convert("RGB"))
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd_cpp.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data)
        part = mtmd_cpp.mtmd_input_part(text=None, bitmap=bitmap)
        parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        refused = mtmd_cpp.mtmd_tokenize_from_parts(self._tower, chunks, parts, 1, False)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        self._require(not refused, "the picture")
        for number in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, number)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                return chunks, chunk
        raise CheckError("llama.cpp made no image chunk of the picture")

    def _prefill(self, ids: Sequence[int], image: Any) -> int:
        """The whole prompt from an empty cache; the first token of the answer."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._position = 0
        place = list(ids).index(IMAGE_ID)
        self._decode(ids[:place], last=False)
        after = llama_cpp.llama_pos(0)
        failed = mtmd_cpp.mtmd_helper_decode_image_chunk(
            self._tower,
            self._context,
            image,
            mtmd_cpp.mtmd_get_output_embd(self._tower),
            self._position,
            0,
            BATCH_ROWS,
            ctypes.byref(after),
            mtmd_cpp.mtmd_helper_post_decode_callback(),
            None,
        )
        self._require(not failed, "the image embeddings")
        self._position = after.value
        return self._decode(ids[place + 1 :], last=True)

    def _decode(self, ids: Sequence[int], last: bool) -> int:
        """Token ids after what stands in the cache; the likeliest next one where asked."""
        decode(self._context, ids)
        self._position += len(ids)
        if not last:
            return -1
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _require(self, held: bool, what: str) -> None:
        if not held:
            raise CheckError(f"llama.cpp could not run {what}")
