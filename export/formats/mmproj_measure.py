"""Image embeddings as llama.cpp's own library computes them from an mmproj file.

The library aborts the process on some files, so it runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mllm_export.errors import CheckError

_LIMIT_S = 1800
"""A 1.7B model's tower takes seconds on two cores; past this the library hangs."""

_REFUSED = 3
"""Exit code of the process when the library says no."""


def measure_mmproj(
    mmproj: Path, image: npt.NDArray[np.uint8], threads: int = 2
) -> npt.NDArray[np.float32]:
    """Embeddings of one picture of the size that the file names, so that nothing is resized.

    Shapes: u8[S, S, 3] RGB -> f32[T, D].
    Raises: CheckError when the library refuses the file, crashes or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="mmproj.") as folder:
        source, result = Path(folder) / "image.npy", Path(folder) / "embeddings.npy"
        np.save(source, np.ascontiguousarray(image))
        command = [sys.executable, "-m", __name__, mmproj, source, result, _width(mmproj), threads]
        try:
            done = subprocess.run(
                [str(word) for word in command], capture_output=True, text=True, timeout=_LIMIT_S
            )
        except subprocess.TimeoutExpired as failure:
            raise CheckError(f"{mmproj}: llama.cpp gave no answer in {_LIMIT_S} s") from failure
        if done.returncode:
            raise CheckError(f"{mmproj}: {_how_it_ended(done.returncode, done.stderr)}")
        return np.asarray(np.load(result), dtype=np.float32)


def _width(mmproj: Path) -> int:
    """Width of an embedding, as the file tells it."""
    import gguf

    try:
        field = gguf.GGUFReader(mmproj).get_field("clip.vision.projection_dim")
    except (OSError, ValueError) as failure:
        raise CheckError(f"{mmproj}: not a GGUF file ({failure})") from failure
    if field is None:
        raise CheckError(f"{mmproj}: key clip.vision.projection_dim is missing")
    return int(field.contents())


def _how_it_ended(code: int, log: str) -> str:
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "no message")
    if code == _REFUSED:
        return f"llama.cpp refuses the file ({last})"
    if code < 0:
        return f"llama.cpp ended its process by {signal.Signals(-code).name} ({last})"
    return f"the measuring process ended with code {code} ({last})"


def _serve(mmproj: str, source: str, result: str, width: str, threads: str) -> int:
    """Measure in this process; see `measure_mmproj`."""
    from llama_cpp import mtmd_cpp

    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu = False
    params.n_threads = int(threads)
    params.warmup = False
    # No text model: the embeddings alone are wanted.
    context = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), None, params)
    if context is None:
        return _REFUSED
    rows = _encode(context, np.load(source), int(width))
    if rows is None:
        return _REFUSED
    np.save(result, rows)
    return 0


def _encode(
    context: int, image: npt.NDArray[np.uint8], width: int
) -> npt.NDArray[np.float32] | None:
    """Embeddings f32[T, width] of the picture as one image chunk, or None for a refusal."""
    from llama_cpp import mtmd_cpp

    height_px, width_px, _ = image.shape
    pixels = (ctypes.c_uint8 * image.size).from_buffer_copy(image.tobytes())
    bitmap = mtmd_cpp.mtmd_bitmap_init(width_px, height_px, pixels)
    part = mtmd_cpp.mtmd_input_part(text=None, bitmap=bitmap)
    parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    if chunks is None or mtmd_cpp.mtmd_tokenize_from_parts(context, chunks, parts, 1, False):
        return None
    for number in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, number)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            continue
        tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
        if mtmd_cpp.mtmd_encode_chunk(context, chunk):
            return None
        values = mtmd_cpp.mtmd_get_output_embd(context)
        return np.ctypeslib.as_array(values, shape=(tokens, width)).copy()
    return None


if __name__ == "__main__":
    raise SystemExit(_serve(*sys.argv[1:]))
