"""Runs on the device: `python -m mllm_export.runtimes.runner describe | run BUNDLE JOB OUT`.

It uses the runtime's public methods and nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import TypeVar

import numpy as np

from mllm_export import __version__
from mllm_export.bundle import check_file
from mllm_export.errors import EngineError, MllmExportError
from mllm_export.records import from_json, to_json
from mllm_export.runtimes import load
from mllm_export.runtimes.engines import Floats
from mllm_export.runtimes.generation import Step
from mllm_export.runtimes.job import (
    DONE,
    JOB,
    REGIONS,
    RESULT,
    VALUES,
    Asked,
    Description,
    Job,
    Result,
    Said,
    Times,
)
from mllm_export.runtimes.machine import (
    architecture,
    cpu_features,
    memory_bytes,
    state,
    usable_cores,
)
from mllm_export.runtimes.session import Session

T = TypeVar("T")

_MARK = 0x4D4C4D
"""A prctl option that Linux does not know: it does nothing, and an emulator's plugin sees it."""

_GOLDEN = "golden/values.npz"
_TOWER, _PREFILL, _DECODE = REGIONS


def describe() -> Description:
    """This machine, its Python and its engines."""
    features = cpu_features()
    return Description(
        architecture=architecture(),
        system=platform.system().lower(),
        cpu_features=None if features is None else tuple(sorted(features)),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        python=platform.python_version(),
        runtime=__version__,
        engines=tuple((name, _version(name)) for name in ("numpy", "onnxruntime", "llama_cpp")),
    )


def run(bundle: Path, folder: Path, out: Path) -> None:
    """Carry out `folder`/job.json into `out`; result.json is written last.

    Raises: MllmExportError as `load` and the session do.
    """
    job = from_json(Job, (folder / JOB).read_bytes(), folder / JOB, EngineError)
    before = state()
    load_ms = _timed_loads(bundle, job)
    with load(bundle, threads=job.threads) as session:
        values = {**_embed(session, job, folder), **_force(session, job, bundle)}
        asked = () if job.repeats or job.marks else job.asked
        answers = tuple(
            _answer(session, one, job, folder) for one in _told(asked, "questions answered")
        )
        times = tuple(_timed(session, job, folder))
        positions = _mark_regions(session, job, folder) if job.marks else 0
    out.mkdir(exist_ok=True)
    np.savez(out / VALUES, **values)  # type: ignore[arg-type]  # numpy 2's stub has a flag too
    result = Result(
        load_ms=load_ms,
        answers=answers,
        times=times[1:],
        prefill_positions=positions,
        peak_memory_bytes=_peak_bytes(),
        before=before,
        after=state(),
    )
    (out / RESULT).write_text(to_json(result), encoding="utf-8")


def _told(items: Sequence[T], what: str) -> Iterator[T]:
    """The same items; what is done is told, for whoever loses sight of this device."""
    for done, item in enumerate(items):
        yield item
        sys.stderr.write(f"{DONE}{done + 1} of {len(items)} {what}\n")


def _timed_loads(bundle: Path, job: Job) -> tuple[float, ...]:
    """The first one finds the files on the disk, the others in memory: it warms up."""
    times = []
    for _ in range(job.repeats + 1 if job.repeats else 0):
        start = perf_counter()
        with load(bundle, threads=job.threads):
            times.append(_since_ms(start))
    return tuple(times[1:])


def _embed(session: Session, job: Job, folder: Path) -> dict[str, Floats]:
    values: dict[str, Floats] = {}
    for at, picture in enumerate(_told(job.pictures, "pictures embedded")):
        pixels = session.preprocess(folder / picture)
        values[f"pixels-{at}"] = pixels
        values[f"embeds-{at}"] = session.embed(pixels)
    return values


def _force(session: Session, job: Job, bundle: Path) -> dict[str, Floats]:
    """Logits f32[rows, V] of each golden sample, on the original's embeddings."""
    if not job.forced:
        return {}
    for file in session.manifest.files:
        if file.path == _GOLDEN:
            check_file(bundle, file, True)
    with np.load(bundle / _GOLDEN, allow_pickle=False) as golden:
        return {
            f"logits-{at}": session.logits(one.ids, [golden[f"embeds-{one.sample}"]])[-one.rows :]
            for at, one in enumerate(_told(job.forced, "golden answers forced"))
        }


def _answer(session: Session, asked: Asked, job: Job, folder: Path) -> Said:
    steps = list(
        session.generate(asked.question, folder / asked.picture, max_tokens=job.max_tokens)
    )
    text = "".join(step.text for step in steps)
    return Said(ids=tuple(step.token_id for step in steps), text=text.strip())


def _timed(session: Session, job: Job, folder: Path) -> Iterator[Times]:
    """The first question again and again, with nothing remembered; the first one warms up."""
    if not job.repeats:
        return
    asked = job.asked[0]
    for _ in _told(range(job.repeats + 1), "answers timed, one of them to warm up"):
        session.forget()
        start = perf_counter()
        steps = session.generate(asked.question, folder / asked.picture, max_tokens=job.max_tokens)
        first = next(steps)
        first_ms = _since_ms(start)
        more = [step.decode_ms for step in steps]
        yield Times(
            preprocess_ms=first.preprocess_ms,
            tower_ms=first.tower_ms,
            prefill_ms=first.prefill_ms,
            first_token_ms=first_ms,
            decode_ms=fmean(more) if more else 0.0,
            prompt_positions=first.prompt_positions,
        )


def _mark_regions(session: Session, job: Job, folder: Path) -> int:
    """Tower, prefill and one decoded token, each between two marks, after a warm-up.

    Returns the positions of the prefill.
    """
    asked = job.asked[0]
    pixels = session.preprocess(folder / asked.picture)
    ids = session.encode(asked.question)
    # Where the interpreter collects its garbage depends on what ran before: up to 0.4 % of a tower.
    gc.disable()
    for counted in (False, True):
        session.forget()
        _mark(0)
        embeds = session.embed(pixels)
        _mark(_TOWER if counted else 0)
        steps = session.generate(ids, [embeds], max_tokens=2)
        _mark(0)
        next(steps)
        _mark(_PREFILL if counted else 0)
        last = _exhaust(steps)
        _mark(_DECODE if counted else 0)
    if last is None:
        raise EngineError(
            f"the answer to '{asked.question}' ends with its first token, so that no decoded "
            "token can be counted; ask something else first"
        )
    return last.prompt_positions


def _exhaust(steps: Iterator[Step]) -> Step | None:
    last = None
    for step in steps:
        last = step
    return last


def _mark(region: int) -> None:
    ctypes.CDLL(None).prctl(_MARK, region)


def _peak_bytes() -> int:
    """Source: getrusage(2), ru_maxrss: kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) << 10


def _version(module: str) -> str:
    try:
        return version({"llama_cpp": "llama-cpp-python"}.get(module, module))
    except PackageNotFoundError:  # a binding that was copied, not installed
        return str(__import__(module).__version__)


def _since_ms(start: float) -> float:
    return (perf_counter() - start) * 1000


def main(words: list[str]) -> int:
    """The command; errors are one line on stderr, with exit code 2."""
    try:
        if words == ["describe"]:
            sys.stdout.write(to_json(describe()))
        elif len(words) == 4 and words[0] == "run":
            run(*(Path(word) for word in words[1:]))
        else:
            sys.stderr.write(
                "usage: python -m mllm_export.runtimes.runner describe | run BUNDLE JOB OUT\n"
            )
            return 2
    except MllmExportError as failure:
        sys.stderr.write(f"error: {failure}\n")
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
