"""How long the stages of an answer take here: information for a report, never a verdict."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.subject import Subject
from mllm_export.device_tests.yardstick import Yardstick
from mllm_export.report import YARDSTICK, Latency
from mllm_export.runtimes.machine import usable_cores
from mllm_export.runtimes.opening import is_small
from mllm_export.runtimes.session import Session

if TYPE_CHECKING:
    from mllm_export.runtimes.generation import Step

REPEATS = 5
_QUESTION = "What is in the picture?"
_TOKENS = 12
_CPUINFO = Path("/proc/cpuinfo")


def latency(bundle: Bundle, subject: Subject) -> tuple[Latency, ...]:
    """Medians and quartiles over answers about pictures that were not seen before.

    The template's first tokens stay in the KV cache between answers, as they do on a device. The
    last rows are a yardstick, timed between the answers.
    Nothing is measured on a session that is not the runtime's own.
    """
    session = subject.session
    if not isinstance(session, Session):
        return ()
    cores = usable_cores()
    yardstick, runs = Yardstick(cores), []
    for number in range(REPEATS + 1):
        runs.append(_answer(session, number))
        yardstick.measure()
    runs = runs[1:]
    first = [steps[0] for steps in runs]
    decoding = 1 if is_small(bundle.path("decoder")) else cores
    later = [step.decode_ms for steps in runs for step in steps[1:]]
    stages: tuple[tuple[str, Sequence[float], int], ...] = (
        ("preprocess", [one.preprocess_ms for one in first], 1),
        ("tower", [one.tower_ms for one in first], cores),
        ("prefill", [one.prefill_ms for one in first], decoding),
        ("decode per token", later, decoding),
        *((YARDSTICK, times, threads) for threads, times in yardstick.times_ms.items()),
    )
    return tuple(summary(name, times, threads) for name, times, threads in stages if times)


def _answer(session: Session, number: int) -> list[Step]:
    picture = list(scenes(number + 1))[number]
    with picture.open() as opened:
        image = opened.convert("RGB")
    # No check has asked about this very picture, so nothing of it is cached.
    image.putpixel((number, 0), (255, 0, 255))
    return list(session.generate(_QUESTION, image, max_tokens=_TOKENS))


def summary(stage: str, times: Sequence[float], threads: int) -> Latency:
    """Median and quartiles of repeated times, milliseconds."""
    low, median, high = (float(x) for x in np.quantile(times, [0.25, 0.5, 0.75]))
    return Latency(
        stage=stage,
        median_ms=round(median, 3),
        low_ms=round(low, 3),
        high_ms=round(high, 3),
        repeats=len(times),
        threads=threads,
    )


def machine() -> str:
    """The processor's own name and its cores, for a report."""
    name = platform.machine()
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {usable_cores()} cores"
