"""How long a build will take here, from its plan and a moment's measuring."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from mllm_export.export.forecast import unchecked_build_memory_bytes
from mllm_export.export.page_cache import unread_bytes
from mllm_export.export.tower_int8 import quantize_columns
from mllm_export.export.tower_plan import tower_tensors
from mllm_export.plan import ArtifactPlan, Plan
from mllm_export.quantize.layout import LAYOUTS
from mllm_export.records import record

_ROWS, _COLS = 4096, 2048
"""As much as the writer of a decoder packs at once: threads are started for each slab."""
_SIDE = 768
_LEAST_TRIES, _MOST_TRIES = 3, 5
"""Memory that is just asked for may have to be freed first: one try was 100 times too long."""
_ENOUGH_SECONDS = 0.1
_CHUNK_BYTES = 32 << 20

_SORTED_SECONDS = 0.0116
"""What `_sorting` takes where the constants below were measured: one core of an AMD EPYC at
2.6 GHz, two of which the process had. They are work in Python, and follow that figure alone."""

_PLAN_SECONDS = 0.6
"""Reading the configs, the plan, and what the command itself imports."""
_DECODER_SECONDS = 0.5
"""A decoder's process: imports and the tokenizer's keys."""
_TOWER_SECONDS, _TOWER_SECONDS_A_LAYER = 4.1, 0.49
"""A tower's process with torch and its exporter, and each layer that is traced: from 3 layers of
the reference (6.0 s with a run) and 23 of CLIP ViT-L/14-336 (19.0 s with its weights)."""
_RUN_SECONDS = 0.4
"""A process that runs a tower's file once."""
_INT_SECONDS, _INT_SECONDS_A_LAYER = 0.34, 0.02
"""The process that quantizes a tower, and passes over each layer (the reference: 0.8 s)."""
_PREFIX_SECONDS = 0.8
"""The process that computes a prompt's beginning."""

_FLOAT_MOVES = 12
"""Bytes of a float tower count as copied so often: read, turned, written, and read for its run.
This one and those below are fitted to MobileVLM_V2-1.7B at int4, whose tower is 1,134 MiB."""
_PIECE_MOVES = 46
"""The same for a piece of it in memory: its message, its weights in each of three sessions, and
the arenas that these ask for (13.2 s in all)."""
_DECODER_MOVES, _WRITTEN_MOVES = 2, 12
"""What a decoder reads, and what any artifact writes."""
_SYNC_MOVES = 4
_LOAD_MOVES = 5
_PIECE_RUNS = 3
"""As published, with ONNX Runtime's operators, and quantized; see `tower_steps`."""
_PREFIX_TOKENS = 120
"""A prompt's beginning and a question, computed without the state and with it."""


@record
class Pace:
    """What this machine does in how long."""

    slowness: float
    """Time for a fixed piece of work in Python over its time where the constants were measured."""
    copied_bytes: float
    """A second, by one core, into memory that was just asked for."""
    hashed_bytes: float
    """A second, by one core."""
    multiplied: float
    """Multiplications with their additions a second in float32, by all cores."""
    column_seconds: float
    """Storing one value of a tower in 8 bits, on one core."""
    packed_seconds: Mapping[str, float]
    """Storing one value of a decoder on all cores, by layout."""


@record
class Forecast:
    """What a build is expected to take, before it begins."""

    seconds: float | None
    """Wall time before the checks; None where a stage is not known."""
    peak_bytes: int
    """Of the process that holds most, with the checks where there are some."""
    checked: bool
    unread_bytes: int = 0
    """Of the sources, what a disk has to give."""
    reading_seconds: float = 0.0
    """If it takes longer for them, the build takes longer by as much."""


def forecast_build(
    plan: Plan, sources: Sequence[Path], *, keeps_beginning: bool, checked: bool
) -> Forecast:
    """From the plan, its sources and this machine's pace; see `build_seconds`.

    A disk's pace is not measured: where several share one it is another a second later.
    """
    seconds, reading = None, 0.0
    if is_forecast(plan):
        pace = measure_pace(decoder_layouts(plan))
        size = sum(path.stat().st_size for path in sources)
        seconds = build_seconds(plan, pace, size, keeps_beginning=keeps_beginning)
        reading = reading_seconds(plan, pace)
    peak = unchecked_build_memory_bytes(plan, keeps_beginning=keeps_beginning)
    if checked:
        peak = max(peak, plan.build_memory_bytes)
    return Forecast(
        seconds=seconds,
        peak_bytes=peak,
        checked=checked,
        unread_bytes=unread_bytes(sources),
        reading_seconds=reading,
    )


def measure_pace(layouts: Iterable[str]) -> Pace:
    """About a second: the least of a few tries, since other work only adds."""
    some = np.random.default_rng(0).standard_normal((_ROWS // 64, _COLS), dtype=np.float32)
    rows = np.tile(some.astype(np.float16), (64, 1))
    square = np.ones((_SIDE, _SIDE), np.float32)
    chunk = np.ones(_CHUNK_BYTES, np.uint8)
    names = sorted(set(layouts))
    sorting, copying, hashing, multiplying, storing, *packing = _least_seconds(
        _sorting,
        chunk.copy,
        partial(hashlib.sha256, chunk.data),
        partial(np.matmul, square, square),
        partial(quantize_columns, some, signed=True),
        *(partial(LAYOUTS[name].pack, rows) for name in names),
    )
    return Pace(
        slowness=sorting / _SORTED_SECONDS,
        copied_bytes=_CHUNK_BYTES / copying,
        hashed_bytes=_CHUNK_BYTES / hashing,
        multiplied=_SIDE**3 / multiplying,
        column_seconds=storing / some.size,
        packed_seconds={
            name: seconds / rows.size for name, seconds in zip(names, packing, strict=True)
        },
    )


def decoder_layouts(plan: Plan) -> frozenset[str]:
    """Layouts whose speed the forecast asks for."""
    return frozenset(row.scheme for a in plan.artifacts if a.format == "gguf" for row in a.tensors)


def is_forecast(plan: Plan) -> bool:
    """Whether every stage is known: not calibration, nor a format other than ONNX and GGUF."""
    calibrates = bool(plan.decoder_methods) or plan.decoder_importance == "calibration"
    known = all(artifact.format in ("onnx", "gguf") for artifact in plan.artifacts)
    return known and not calibrates and not plan.needs_pictures


def build_seconds(
    plan: Plan, pace: Pace, source_bytes: int, *, keeps_beginning: bool
) -> float | None:
    """Wall time of a build before its checks; None where a stage is not known.

    `keeps_beginning`: the prompt's beginning is computed here, which only the device's own
    architecture can. The sources are hashed while the tower is made, and what follows waits for
    the hashes.
    """
    if not is_forecast(plan):
        return None
    seconds = _PLAN_SECONDS * pace.slowness
    for artifact in plan.artifacts:
        seconds += artifact.size_bytes / pace.hashed_bytes
        seconds += _SYNC_MOVES * artifact.size_bytes / pace.copied_bytes
        if artifact.format == "onnx":
            made = reading_seconds(plan, pace)
            if is_quantized(artifact):
                made += _quantized_tower_seconds(plan, pace)
            seconds += max(made, source_bytes / pace.hashed_bytes)
        else:
            seconds += _decoder_seconds(artifact, pace)
            if keeps_beginning:
                seconds += _prefix_seconds(artifact, pace)
    return seconds


def reading_seconds(plan: Plan, pace: Pace) -> float:
    """How long a disk may take for the sources without a build that waits for it.

    They are read while the float tower is made; without a tower nothing is made in the meantime.
    """
    return 0.0 if plan.artifact("tower") is None else _float_tower_seconds(plan, pace)


def is_quantized(artifact: ArtifactPlan) -> bool:
    """Whether a tower is made from a float one, which is written first."""
    return any(row.scheme != "f32" for row in artifact.tensors)


def float_bytes(plan: Plan) -> int:
    """Of the tower's weights before they are quantized."""
    return sum(4 * prod(tensor.shape) for tensor in tower_tensors(plan.spec.vision))


def _decoder_seconds(artifact: ArtifactPlan, pace: Pace) -> float:
    packing = sum(prod(row.shape) * pace.packed_seconds[row.scheme] for row in artifact.tensors)
    moved = _DECODER_MOVES * 2 * _values(artifact) + _WRITTEN_MOVES * artifact.size_bytes
    return _DECODER_SECONDS * pace.slowness + packing + moved / pace.copied_bytes


def _prefix_seconds(artifact: ArtifactPlan, pace: Pace) -> float:
    loaded = _LOAD_MOVES * artifact.size_bytes / pace.copied_bytes
    run = _PREFIX_TOKENS * _values(artifact) / pace.multiplied
    return _PREFIX_SECONDS * pace.slowness + loaded + run


def _values(artifact: ArtifactPlan) -> int:
    return sum(prod(row.shape) for row in artifact.tensors)


def _layers(plan: Plan) -> int:
    return sum(encoder.run_layers for encoder in plan.spec.encoders)


def _run_seconds(plan: Plan, pace: Pace) -> float:
    """One picture: every weight is multiplied with every token."""
    tokens = max(encoder.grid**2 + encoder.prefix_tokens for encoder in plan.spec.encoders)
    return float_bytes(plan) / 4 * tokens / pace.multiplied


def _float_tower_seconds(plan: Plan, pace: Pace) -> float:
    python = _TOWER_SECONDS + _TOWER_SECONDS_A_LAYER * _layers(plan) + _RUN_SECONDS
    copied = _FLOAT_MOVES * float_bytes(plan) / pace.copied_bytes
    return python * pace.slowness + copied + _run_seconds(plan, pace)


def _quantized_tower_seconds(plan: Plan, pace: Pace) -> float:
    python = _INT_SECONDS + _INT_SECONDS_A_LAYER * _layers(plan) + _RUN_SECONDS
    tensors = tower_tensors(plan.spec.vision)
    stored = sum(prod(tensor.shape) for tensor in tensors if tensor.is_product)
    copied = _PIECE_MOVES * float_bytes(plan) / pace.copied_bytes
    runs = _PIECE_RUNS * _run_seconds(plan, pace)
    hashed = float_bytes(plan) / pace.hashed_bytes
    return python * pace.slowness + copied + hashed + runs + stored * pace.column_seconds


def _sorting() -> None:
    words = [f"{(i * 7919) % 40961:05d}" for i in range(40000)]
    words.sort()


def _least_seconds(*works: Callable[[], object]) -> list[float]:
    """Of each, tried in turn: what else this machine does for a moment meets one try of each."""
    found: list[list[float]] = [[] for _ in works]
    for tries in range(_MOST_TRIES):
        for work, times in zip(works, found, strict=True):
            if tries < _LEAST_TRIES or sum(times) < _ENOUGH_SECONDS:
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
    return [min(times) for times in found]
