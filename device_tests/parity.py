"""Hold a bundle against its original, rung by rung."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from mllm_export.bundle import Bundle
from mllm_export.catalog import unknown
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.cases import Oracle
from mllm_export.device_tests.check import CHECKS, Context, StoredFiles
from mllm_export.device_tests.golden import write_golden
from mllm_export.device_tests.golden_oracle import GoldenOracle
from mllm_export.device_tests.live import LiveOracle, effort_for
from mllm_export.device_tests.profile import KINDS, Limits, load_profile
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import (
    Samples,
    generic_samples,
    is_reference,
    read_evaluation,
    reference_evaluation,
)
from mllm_export.device_tests.stored import (
    decoder_kind,
    read_gguf,
    read_onnx,
    tower_kind,
)
from mllm_export.device_tests.subject import Subject, open_subject
from mllm_export.errors import CheckError, EngineError, ImageError
from mllm_export.plan import Plan
from mllm_export.progress import Progress, Step, silent
from mllm_export.report import RUNGS, ArtifactSize, Report, Rung

_GENERIC_SCENES = 16
"""The most that are drawn for a model without questions of its own."""


def check(
    bundle: Bundle,
    checkpoint: Checkpoint | None = None,
    *,
    plan: Plan | None = None,
    evaluation: Path | None = None,
    float_tower: Path | None = None,
    golden: Path | None = None,
    rungs: Sequence[str] | None = None,
    subject: Subject | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure every rung, or those named, and hold them against the bundle's profile.

    With a checkpoint against the original itself, else against the golden files in the bundle.
    `evaluation` is a JSONL file of questions; `golden` a new folder to record golden files in;
    `subject` an opened session to use in place of the bundle's own.

    Raises: CheckError when the check cannot be carried out; a failed rung is a result.
    """
    names = _rungs(rungs)
    opened = subject or open_subject(bundle)
    try:
        oracle = _oracle(bundle, checkpoint, evaluation, progress, opened.rest)
        context = _context(bundle, opened, oracle, plan, float_tower, progress)
        found = tuple(_run(name, context) for name in names)
        if golden is not None and isinstance(oracle, LiveOracle):
            write_golden(golden, oracle, opened)
    finally:
        if subject is None:
            opened.close()
    return _report(bundle, oracle, found)


def _rungs(asked: Sequence[str] | None) -> list[str]:
    known = [name for name in RUNGS if name in CHECKS.names()]
    for name in asked or ():
        if name not in known:
            raise CheckError(unknown("rung", name, known))
    return [name for name in known if asked is None or name in asked]


def _oracle(
    bundle: Bundle,
    checkpoint: Checkpoint | None,
    evaluation: Path | None,
    progress: Progress,
    rest: Callable[[], None],
) -> Oracle:
    if checkpoint is None:
        if evaluation is not None:
            raise CheckError("an evaluation file needs the original too; give it with --against")
        return GoldenOracle(bundle.folder / "golden")
    manifest = bundle.manifest
    reference = REFERENCES[manifest.model.family](checkpoint)
    if evaluation is None and is_reference(checkpoint.path):
        evaluation = reference_evaluation()
    samples: Samples
    if evaluation is not None:
        samples = read_evaluation(evaluation)
    else:
        sequences = effort_for(reference.parameters).sequences
        samples = generic_samples(min(sequences, _GENERIC_SCENES))
    return LiveOracle(reference, samples, manifest.context_tokens, progress, rest)


def _context(
    bundle: Bundle,
    subject: Subject,
    oracle: Oracle,
    plan: Plan | None,
    float_tower: Path | None,
    progress: Progress,
) -> Context:
    tensors, keys = read_gguf(bundle.path("decoder"))
    stored = StoredFiles(tower=read_onnx(bundle.path("tower")), decoder=tensors, keys=keys)
    of_tower, of_decoder = tower_kind(stored.tower), decoder_kind(stored.decoder)
    coarsest = KINDS[max(KINDS.index(of_tower), KINDS.index(of_decoder))]
    profile = load_profile(bundle.manifest.profile)
    for limit in profile.limits:
        measures = CHECKS[limit.rung].measures
        if limit.measurement not in measures:
            text = unknown("measurement", limit.measurement, list(measures))
            raise CheckError(f"profile '{profile.name}', {limit.rung}: {text}")
    same_file = float_tower is not None and float_tower == bundle.path("tower")
    return Context(
        bundle=bundle,
        subject=subject,
        oracle=oracle,
        limits=Limits(profile, coarsest, of_tower, oracle.trained),
        stored=stored,
        plan=plan,
        float_tower=None if same_file else float_tower,
        progress=progress,
    )


def _run(name: str, context: Context) -> Rung:
    """A rung with its time; what the export could not do is a failure of that rung."""
    context.progress(Step(stage=f"check {name}", item=name, done=0, total=0, unit="rungs"))
    start = perf_counter()
    try:
        rung = CHECKS[name].run(context)
    except (EngineError, ImageError, FloatingPointError) as failure:
        rung = Rung(name=name, status="failed", reason=str(failure))
    return _timed(rung, perf_counter() - start)


def _timed(rung: Rung, seconds: float) -> Rung:
    from dataclasses import replace

    return replace(rung, seconds=round(seconds, 3))


def _report(bundle: Bundle, oracle: Oracle, rungs: tuple[Rung, ...]) -> Report:
    manifest = bundle.manifest
    return Report(
        model=manifest.model.name,
        family=manifest.model.family,
        target=manifest.target,
        recipe=manifest.recipe,
        profile=manifest.profile,
        rungs=rungs,
        sizes=tuple(
            ArtifactSize(path=file.path, size_bytes=file.size_bytes) for file in manifest.files
        ),
        tools=manifest.tools,
        notes=(f"reference: {oracle.title}", f"samples: {oracle.samples_title}"),
    )
