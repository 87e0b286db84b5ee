"""What this machine's memory gives, and what one decoded token takes from it."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.export.forecast import kv_cache_bytes
from mllm_export.progress import Progress, Step, silent
from mllm_export.records import record

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 1 << 30
_REPEATS = 5


@record
class Rates:
    """Bytes a second."""

    copy: float
    """Read and written together, as STREAM counts. Source: McCalpin, STREAM, 1995."""
    read: float


def memory_rates(threads: int, size_bytes: int = 0, progress: Progress = silent) -> Rates:
    """Median of copying an array, and of reading two, each thread its own part.

    Two arrays of `size_bytes`, by default together twice as large as the largest cache and
    between 512 MiB and 2 GiB: what a cache keeps of one pass is gone before the next comes to it.
    """
    size = size_bytes or min(max(_LEAST_BYTES, _largest_cache_bytes()), _MOST_BYTES)
    source, target = (np.ones(size, np.uint8) for _ in range(2))
    progress(Step(stage="memory", item=f"{threads} threads", done=0, total=1, unit="kernels"))
    libc = ctypes.CDLL(None)
    with ThreadPoolExecutor(threads) as pool:
        copy = _rate(pool, threads, libc.memcpy, target, source)
        read = _rate(pool, threads, libc.memcmp, target, source)
    return Rates(copy=copy, read=read)


def _rate(
    pool: ThreadPoolExecutor,
    threads: int,
    kernel: Callable[..., int],
    one: np.ndarray,
    other: np.ndarray,
) -> float:
    """Bytes of both arrays over the median time; ctypes lets threads run beside each other."""
    edges = np.linspace(0, len(one), threads + 1, dtype=np.int64)

    def part(at: int) -> int:
        start, size = int(edges[at]), int(edges[at + 1] - edges[at])
        places = (ctypes.c_void_p(array.ctypes.data + start) for array in (one, other))
        return kernel(*places, ctypes.c_size_t(size))

    times = []
    for _ in range(_REPEATS + 1):
        begin = perf_counter()
        list(pool.map(part, range(threads)))
        times.append(perf_counter() - begin)
    return 2 * len(one) / statistics.median(times[1:])


def _largest_cache_bytes() -> int:
    """As the kernel lists them; 0 where it does not."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    return max((int(text.removesuffix("K")) << 10 for text in sizes), default=0)


def token_bytes(bundle: Bundle, positions: int) -> int:
    """Bytes that one token reads with so many positions before it: weights, keys and values.

    Of the token embedding it is one row, unless the head is that table. What a decoder without
    attention carries is read and written, whatever the positions.
    """
    import gguf

    path, manifest = bundle.path("decoder"), bundle.manifest
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    table = "token_embd.weight"
    if "output.weight" in sizes:
        sizes[table] //= manifest.model.decoder.vocab
    cache = kv_cache_bytes(manifest.model.decoder, positions, manifest.kv_type)
    return sum(sizes.values()) + cache
