"""The device rung: a bundle's golden inputs on a device, held against the same on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.device_tests.device import Link, Settings
from mllm_export.device_tests.devices.local import LocalLink
from mllm_export.device_tests.distributions import cosines, kl_divergence, log_softmax
from mllm_export.device_tests.golden import JSON, Golden, answer_tokens
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.samples import read_evaluation
from mllm_export.device_tests.transfer import Sent
from mllm_export.device_tests.visit import Outcome, Visit
from mllm_export.errors import BundleError, DeviceError
from mllm_export.progress import Progress, Step, silent
from mllm_export.records import from_json
from mllm_export.report import Example, Measurement, Rung, rung_of
from mllm_export.runtimes.job import Asked, Description, Forced, Job

MEASURES = (
    "pixels, largest difference",
    "tower, worst-token cosine",
    "decoder, mean KL",
    "decoder, largest KL",
    "same greedy answers",
    "peak memory",
)
"""What a profile may limit on this rung."""

_SHOWN = 3

_PROMPT_ROWS = 32
"""Positions of the prompt's text that are compared too: a trained model is sure of its answer,
and a distribution with one likely token hides what moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visited:
    """What was done on a device."""

    rung: Rung
    device: Description
    sent: Sent
    push_s: float
    """Seconds for the connection, the runtime and the bundle."""
    run_s: float
    """Seconds for the job and its results; on an emulated device they mean nothing."""


def check_on_device(
    bundle: Bundle,
    link: Link,
    limits: Limits,
    *,
    evaluation: Path | None,
    questions: int,
    timeout_s: float,
    progress: Progress,
) -> Visited:
    """Push, run, pull, compare; greedy answers to `questions` of the evaluation file too.

    Raises: DeviceError, BundleError where this cannot be carried out.
    """
    job, pictures = _job(bundle, read_golden(bundle), evaluation, questions)
    start = perf_counter()
    visit = Visit(link, timeout_s, progress)
    remote, sent = visit.push(bundle)
    pushed = perf_counter()
    progress(Step(stage="run there", item=link.title, done=0, total=1, unit="jobs"))
    there = visit.run(remote, job, pictures)
    ran = perf_counter()
    progress(Step(stage="run there", item=link.title, done=1, total=1, unit="jobs"))
    here = _on_this_machine(bundle, job, pictures, timeout_s)
    rung = rung_of(
        "device",
        reference=f"the same bundle on this machine; on {_line(link.title, visit.description)}",
        samples=len(job.pictures) + len(job.forced) + len(job.asked),
        measurements=tuple(_measure(limits, job, here, there)),
        examples=_differing(job, here, there),
    )
    return Visited(
        rung=replace(rung, seconds=round(perf_counter() - start, 3)),
        device=visit.description,
        sent=sent,
        push_s=pushed - start,
        run_s=ran - pushed,
    )


def read_golden(bundle: Bundle) -> Golden:
    """Raises: BundleError for a bundle without golden files."""
    file = bundle.folder / "golden" / JSON
    if not file.is_file():
        raise BundleError(
            f"{bundle.folder} holds no golden files, which are what a device is asked; "
            "build it without --no-check"
        )
    return from_json(Golden, file.read_bytes(), file, BundleError)


def _job(
    bundle: Bundle, golden: Golden, evaluation: Path | None, questions: int
) -> tuple[Job, dict[str, Path]]:
    folder = bundle.folder / "golden"
    pictures = {one.picture: folder / one.picture for one in golden.samples}
    asked = [Asked(picture=one.picture, question=one.question) for one in golden.samples]
    if evaluation is not None:
        more, paths = _evaluation(evaluation, questions)
        asked += more
        pictures |= paths
    job = Job(
        threads=1,
        pictures=tuple(one.picture for one in golden.samples),
        forced=tuple(
            _forced(at, one.ids, answer_tokens(one.answer_ids, one.finished, golden.stop_ids[0]))
            for at, one in enumerate(golden.samples)
        ),
        asked=tuple(asked),
    )
    return job, pictures


def _forced(sample: int, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Forced:
    ids = (*prompt, *answer[:-1])
    return Forced(sample=sample, ids=ids, rows=min(len(ids), _PROMPT_ROWS + len(answer)))


def _evaluation(file: Path, questions: int) -> tuple[list[Asked], dict[str, Path]]:
    """The first questions about one picture each; pictures get a folder of their own."""
    samples = read_evaluation(file)
    folder = file if file.is_dir() else file.parent
    chosen = [one for one in samples.questions if len(one.pictures) == 1][:questions]
    names = dict.fromkeys(one.pictures[0] for one in chosen)
    asked = [Asked(picture=f"asked/{one.pictures[0]}", question=one.text) for one in chosen]
    return asked, {f"asked/{name}": folder / name for name in names}


def _on_this_machine(
    bundle: Bundle, job: Job, pictures: dict[str, Path], timeout_s: float
) -> Outcome:
    """In a process of its own, by the same runner: only the machine differs."""
    with tempfile.TemporaryDirectory() as folder:
        visit = Visit(LocalLink(Settings(home=folder)), timeout_s, silent)
        return visit.run(str(bundle.folder.resolve()), job, pictures)


def _measure(limits: Limits, job: Job, here: Outcome, there: Outcome) -> list[Measurement]:
    if set(here.values) != set(there.values) or len(there.result.answers) != len(job.asked):
        raise DeviceError("the device brought back other results than it was asked for")
    pixels = max(
        float(np.abs(here.values[f"pixels-{at}"] - there.values[f"pixels-{at}"]).max())
        for at in range(len(job.pictures))
    )
    cosine = min(
        float(cosines(here.values[f"embeds-{at}"], there.values[f"embeds-{at}"]).min())
        for at in range(len(job.pictures))
    )
    divergences = [_kl(here, there, at) for at in range(len(job.forced))]
    same = [a.ids == b.ids for a, b in zip(here.result.answers, there.result.answers, strict=True)]
    kl = np.concatenate(divergences)
    peak_mib = there.result.peak_memory_bytes / (1 << 20)
    values = (pixels, cosine, float(kl.mean()), float(kl.max()), float(np.mean(same)), peak_mib)
    units = ("", "", "nats", "nats", "", "MiB")
    tower_alone = {MEASURES[1]: limits.tower_kind}
    return [
        limits.measure("device", name, value, unit, tower_alone.get(name))
        for name, value, unit in zip(MEASURES, values, units, strict=True)
    ]


def _kl(
    here: Outcome, there: Outcome, at: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    name = f"logits-{at}"
    return kl_divergence(log_softmax(here.values[name]), log_softmax(there.values[name]))


def _differing(job: Job, here: Outcome, there: Outcome) -> tuple[Example, ...]:
    pairs = zip(job.asked, here.result.answers, there.result.answers, strict=True)
    return tuple(
        Example(
            name=f"{asked.picture}: {asked.question}",
            reference=ours.text,
            export=theirs.text,
            note="this machine, then the device",
        )
        for asked, ours, theirs in pairs
        if ours.ids != theirs.ids
    )[:_SHOWN]


def _line(title: str, device: Description) -> str:
    engines = ", ".join(f"{name} {number}" for name, number in device.engines)
    memory = f", {device.memory_bytes >> 20} MiB" if device.memory_bytes else ""
    return f"{title} ({device.architecture}, {device.cores} cores{memory}; {engines})"
