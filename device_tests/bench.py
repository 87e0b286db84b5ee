"""How long a bundle's stages take on a device: medians and spread, never from an emulator."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.bundle import Bundle
from mllm_export.device_tests.device import Link
from mllm_export.device_tests.latency import summary
from mllm_export.device_tests.on_device import read_golden
from mllm_export.device_tests.visit import Visit
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress
from mllm_export.records import record
from mllm_export.report import Latency
from mllm_export.runtimes.job import Asked, Description, Job, Result
from mllm_export.runtimes.machine import MachineState
from mllm_export.runtimes.opening import is_small


@record
class Bench:
    """What `bench` measured."""

    schema: int = 1
    model: str
    target: str
    recipe: str
    device: str
    description: Description
    stages: tuple[Latency, ...]
    prefill_positions: int
    peak_memory_bytes: int
    """Of the runner's process: weights, KV cache, engines and Python."""
    before: MachineState
    after: MachineState


def bench(
    bundle: Bundle,
    link: Link,
    *,
    repeats: int,
    max_tokens: int,
    threads: int | None,
    timeout_s: float,
    progress: Progress,
) -> Bench:
    """Time the bundle's first golden question, after one warm-up, with nothing remembered.

    Raises: DeviceError for an emulated device, whose times mean nothing.
    """
    if link.emulated:
        raise DeviceError(
            f"{link.title} is emulated: its times mean nothing; count instructions with "
            "'check --cost'"
        )
    folder, sample = bundle.folder / "golden", read_golden(bundle).samples[0]
    job = Job(
        threads=threads,
        asked=(Asked(picture=sample.picture, question=sample.question),),
        max_tokens=max_tokens,
        repeats=repeats,
    )
    visit = Visit(link, timeout_s, progress)
    remote, _ = visit.push(bundle)
    result = visit.run(remote, job, {sample.picture: folder / sample.picture}).result
    manifest, cores = bundle.manifest, threads or visit.description.cores
    decoding = 1 if threads is None and is_small(bundle.path("decoder")) else cores
    return Bench(
        model=manifest.model.name,
        target=manifest.target,
        recipe=manifest.recipe,
        device=link.title,
        description=visit.description,
        stages=_stages(result, cores, decoding),
        prefill_positions=result.times[0].prompt_positions,
        peak_memory_bytes=result.peak_memory_bytes,
        before=result.before,
        after=result.after,
    )


def _stages(result: Result, cores: int, decoding: int) -> tuple[Latency, ...]:
    times = result.times
    rows: tuple[tuple[str, Sequence[float], int], ...] = (
        ("load", result.load_ms, 1),
        ("preprocess", [one.preprocess_ms for one in times], 1),
        ("tower", [one.tower_ms for one in times], cores),
        ("prefill", [one.prefill_ms for one in times], decoding),
        ("first token", [one.first_token_ms for one in times], cores),
        ("decode per token", [one.decode_ms for one in times if one.decode_ms], decoding),
    )
    return tuple(summary(name, values, threads) for name, values, threads in rows if len(values))
