"""Hold a bundle against its original, rung by rung."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from mllm_export.bundle import Bundle
from mllm_export.catalog import unknown
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests import on_device
from mllm_export.device_tests.cases import Oracle
from mllm_export.device_tests.check import CHECKS, Context, StoredFiles
from mllm_export.device_tests.drift import layer_drift
from mllm_export.device_tests.folded import read_decoder
from mllm_export.device_tests.golden import write_golden
from mllm_export.device_tests.golden_oracle import GoldenOracle
from mllm_export.device_tests.latency import REPEATS, latency, machine
from mllm_export.device_tests.limit import KINDS
from mllm_export.device_tests.live import Effort, LiveOracle, effort_for
from mllm_export.device_tests.profile import Limits, load_profile
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import (
    Samples,
    generic_samples,
    is_reference,
    read_evaluation,
    reference_evaluation,
)
from mllm_export.device_tests.stored import Stored, decoder_kind
from mllm_export.device_tests.subject import Subject, open_subject
from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.errors import CheckError, EngineError, ImageError, MllmExportError
from mllm_export.plan import Plan
from mllm_export.progress import Progress, Step, silent
from mllm_export.report import RUNGS, ArtifactSize, Latency, LayerDrift, Report, Rung, not_run

_GENERIC_SCENES = 16
"""The most that are drawn for a model without questions of its own."""

_SPARE_TOKENS = 2
"""Behind a known answer: the stop token, and one where a model cuts the text otherwise."""


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
    oracle: Oracle | None = None,
    profile: str | None = None,
    fail_fast: bool = False,
    progress: Progress = silent,
) -> Report:
    """Measure every rung, or those named, and hold them against the bundle's profile.

    With a checkpoint against the original itself, else against the golden files in the bundle.
    `evaluation` is a JSONL file of questions; `golden` a new folder to record golden files in,
    unless a rung fails;
    `subject` an opened session to use in place of the bundle's own; `oracle` one that is asked
    about several bundles of one original, in place of `checkpoint`; `profile` another than the
    bundle was built for; `fail_fast` stops at the first rung that fails.

    Raises: CheckError when the check cannot be carried out; a failed rung is a result.
    """
    names = _rungs(rungs)
    if profile is not None:
        bundle = Bundle(bundle.folder, replace(bundle.manifest, profile=profile))
    opened = subject or open_subject(bundle)
    try:
        if oracle is None:
            oracle = _oracle(bundle, checkpoint, evaluation, progress, opened.rest)
        context = _context(bundle, opened, oracle, plan, float_tower, progress)
        found = _ladder(names, context, fail_fast)
        report = replace(
            _report(bundle, oracle, found), frontier=plan.frontier if plan is not None else ()
        )
        # They need the export's answers, and no bundle is left whose ladder failed.
        if golden is not None and isinstance(oracle, LiveOracle) and not report.first_failure:
            write_golden(golden, oracle, opened)
        if rungs is None and not fail_fast:
            report = _with_information(report, bundle, context)
    finally:
        if subject is None:
            opened.close()
    return report


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
    return oracle_of(bundle, checkpoint, evaluation, progress, rest)


def oracle_of(
    bundle: Bundle,
    checkpoint: Checkpoint,
    evaluation: Path | None,
    progress: Progress,
    rest: Callable[[], None],
) -> LiveOracle:
    """The original, with the evaluation file's questions, its own, or drawn scenes."""
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
    oracle = LiveOracle(reference, samples, manifest.context_tokens, progress, rest)
    oracle.effort = _long_enough(oracle, manifest.context_tokens)
    return oracle


def _long_enough(oracle: LiveOracle, context_tokens: int) -> Effort:
    """A right answer that is cut counts as wrong on both sides, so that no export could lose it."""
    known = {answer for question in oracle.samples.questions for answer in question.answers}
    longest = max((len(oracle.reference.text_ids(one)) for one in known), default=0)
    # Picture, prompt and the turn behind the answer need room in the context too.
    wanted = min(longest + _SPARE_TOKENS, context_tokens // 4)
    return replace(oracle.effort, answer_tokens=max(oracle.effort.answer_tokens, wanted))


def _context(
    bundle: Bundle,
    subject: Subject,
    oracle: Oracle,
    plan: Plan | None,
    float_tower: Path | None,
    progress: Progress,
) -> Context:
    tower_file = TOWER_FILES[bundle.manifest.vision_engine]
    tensors, keys = read_decoder(bundle.path("decoder"))
    stored = StoredFiles(tower=tower_file.read(bundle.path("tower")), decoder=tensors, keys=keys)
    same_file = float_tower is not None and float_tower == bundle.path("tower")
    return Context(
        bundle=bundle,
        subject=subject,
        oracle=oracle,
        limits=limits_of(bundle, stored.tower, stored.decoder, oracle.trained),
        stored=stored,
        plan=plan,
        float_tower=None if same_file else float_tower,
        other_runs=tower_file.more(bundle.path("tower"), bundle.manifest.model),
        takes_pictures=tower_file.takes_pictures(bundle.path("tower")),
        progress=progress,
    )


def limits_of(
    bundle: Bundle, tower: Mapping[str, Stored], decoder: Mapping[str, Stored], trained: bool
) -> Limits:
    """The bundle's profile, for what its files hold.

    Raises: CheckError for a profile that limits what no check measures.
    """
    of_tower = TOWER_FILES[bundle.manifest.vision_engine].kind(tower)
    of_decoder = decoder_kind(decoder)
    coarsest = KINDS[max(KINDS.index(of_tower), KINDS.index(of_decoder))]
    profile = load_profile(bundle.manifest.profile)
    for limit in profile.limits:
        measures = measures_of(limit.rung)
        if limit.measurement not in measures:
            text = unknown("measurement", limit.measurement, list(measures))
            raise CheckError(f"profile '{profile.name}', {limit.rung}: {text}")
    return Limits(profile, coarsest, of_tower, trained)


def _ladder(names: Sequence[str], context: Context, fail_fast: bool) -> tuple[Rung, ...]:
    found: list[Rung] = []
    for name in names:
        if fail_fast and found and found[-1].status == "failed":
            found.append(not_run(name, f"the {found[-1].name} rung failed before it"))
            break
        found.append(_run(name, context))
    return tuple(found)


def measures_of(rung: str) -> tuple[str, ...]:
    """The device rung runs elsewhere, so that it is no check of the ladder here."""
    return on_device.MEASURES if rung == "device" else tuple(CHECKS[rung].measures)


def _run(name: str, context: Context) -> Rung:
    """A rung with its time; what the export could not do is a failure of that rung."""
    step = Step(stage=f"check {name}", item=name, done=0, total=1, unit="rung")
    context.progress(step)
    start = perf_counter()
    try:
        rung = CHECKS[name].run(context)
    except (EngineError, ImageError, FloatingPointError) as failure:
        rung = Rung(name=name, status="failed", reason=str(failure))
    context.progress(replace(step, done=1))
    return _timed(rung, perf_counter() - start)


def _with_information(report: Report, bundle: Bundle, context: Context) -> Report:
    """The same report with what no limit is held against: drift of the layers, and latency."""
    times, note = _latency(bundle, context.subject)
    notes = (*report.notes, note) if note else report.notes
    drift: tuple[LayerDrift, ...] = ()
    if context.live is not None:
        drift, note = layer_drift(bundle, context.live, context.subject, context.stored.decoder)
        notes = (*notes, note) if note else notes
    device = machine() if times else ""
    return replace(report, drift=drift, latency=times, device=device, notes=notes)


def _latency(bundle: Bundle, subject: Subject) -> tuple[tuple[Latency, ...], str]:
    """The stages' times, and a note that says how or why not they were measured."""
    # What stands in for an engine that is not here says nothing of the device's time.
    if TOWER_FILES[bundle.manifest.vision_engine].stands_in():
        return (), "latency: not measured, the tower's engine runs elsewhere"
    try:
        times = latency(bundle, subject)
    except MllmExportError as failure:
        return (), f"latency: not measured, {failure}"
    how = f"latency: {REPEATS} answers on {machine()}, beside whatever else ran"
    return times, how if times else ""


def _timed(rung: Rung, seconds: float) -> Rung:
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
        notes=(
            f"reference: {oracle.title}",
            f"samples: {oracle.samples_title}",
            *TOWER_FILES[manifest.vision_engine].notes(bundle.path("tower")),
        ),
    )
