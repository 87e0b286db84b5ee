"""`mllm-export build`: a checked bundle, or none."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mllm_export.commands.arguments import (
    BudgetOption,
    CalibrationOption,
    CheckpointArgument,
    EvaluationOption,
    ImatrixOption,
    JsonOption,
    MmprojOption,
    RecipeOption,
    TargetOption,
    TowerOption,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mllm_export.bundle import Bundle
    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import Job
    from mllm_export.export.pace import Forecast
    from mllm_export.progress import Progress
    from mllm_export.report import Report

_UNREAD_BYTES = 256 << 20
"""Any disk gives as much while the build has other things to do."""


def build(
    checkpoint: CheckpointArgument,
    target: TargetOption,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The bundle's folder.")],
    recipe: RecipeOption = None,
    vision_tower: TowerOption = None,
    evaluation: EvaluationOption = None,
    mmproj: MmprojOption = False,
    memory_budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    imatrix: ImatrixOption = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave a bundle that is marked unchecked.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export, quantize and check; leave a bundle only if it passes."""
    from mllm_export.commands.alone import build_alone, open_alone, refuse_options
    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import plan_job
    from mllm_export.commands.widening import keep_floor
    from mllm_export.terminal import ProgressBars

    started = time.monotonic()
    alone = open_alone(checkpoint)
    if alone is not None:
        refuse_options(
            checkpoint,
            vision_tower=bool(vision_tower),
            mmproj=mmproj,
            memory_budget=memory_budget is not None,
            imatrix=imatrix is not None,
            calibration=calibration is not None,
        )
        build_alone(alone, target, recipe, out, evaluation, no_check, as_json)
        _figures(time.monotonic() - started)
        return
    given = Calibration(questions=calibration, imatrix=imatrix)
    job = plan_job(checkpoint, target, recipe, vision_tower, mmproj, given.importance)
    given.require(job.plan)
    evaluation = _evaluation(checkpoint, evaluation, no_check)
    if memory_budget is not None:
        job = _within(job, memory_budget, mmproj, given)
        given.require(job.plan)
    if job.recipe.tower_floor:
        with ProgressBars() as progress:
            job = keep_floor(job, mmproj, given, progress)
    given.tell_unused(job, has_budget=memory_budget is not None)
    expected = _forecast(job, out, no_check)
    checks_at_s: list[float] = []
    with ProgressBars() as progress:
        report = build_bundle(
            *(job, out, evaluation, no_check, progress, given),
            checks_begin=lambda: checks_at_s.append(time.monotonic() - started),
        )
    _tell(out, report, as_json)
    _figures(time.monotonic() - started, expected, *checks_at_s)


def _evaluation(checkpoint: str, given: Path | None, no_check: bool) -> Path | None:
    """The file of questions; a torn picture is better told now than when everything is built."""
    from mllm_export.commands.opening import REFERENCE, reference_evaluation
    from mllm_export.device_tests.samples import read_evaluation

    if given is None:
        return reference_evaluation() if checkpoint == REFERENCE else None
    if not no_check:
        read_evaluation(given)
    return given


def build_bundle(
    job: Job,
    out: Path,
    evaluation: Path | None,
    no_check: bool,
    progress: Progress,
    given: Calibration | None = None,
    checks_begin: Callable[[], None] = lambda: None,
) -> Report | None:
    """Build into `out`; returns the report, or None for a bundle left unchecked.

    `checks_begin` is told when all artifacts stand, where checks follow.

    Raises: CheckFailedError, with the report left beside where the bundle would be.
    """
    from mllm_export.commands.calibrating import Calibration
    from mllm_export.export.build import build as run_build

    given = given or Calibration()
    reports: list[Report] = []

    def finish(bundle: Bundle, float_tower: Path | None) -> Literal["passed", "unchecked"]:
        from mllm_export.commands.checking import check_new_bundle

        _keep_beginning(bundle, progress)
        if no_check:
            return "unchecked"
        checks_begin()
        reports.append(check_new_bundle(job, bundle, float_tower, evaluation, out, progress))
        return "passed"

    def calibrate(pixels: Path) -> None:
        from mllm_export.device_tests.calibration import pixels_stage
        from mllm_export.export.child import run_in_child

        spec = job.plan.spec
        questions = given.questions
        run_in_child("calibration", pixels_stage, spec, questions, pixels, progress=progress)

    run_build(
        job.plan,
        job.reading,
        job.checkpoint,
        job.target,
        out,
        finish,
        progress,
        calibrate,
        given.calibrated(job),
    )
    return reports[0] if reports else None


def _keep_beginning(bundle: Bundle, progress: Progress) -> None:
    """Compute the prompt's beginning here where the device computes as this machine does.

    Not for a small decoder, which does that sooner than it reads a file.
    """
    from mllm_export.device_tests.prefix import prefix_stage
    from mllm_export.export.child import run_in_child
    from mllm_export.prefix import PREFIX
    from mllm_export.runtimes.machine import architecture
    from mllm_export.runtimes.opening import is_small

    # A killed build of another decoder may have left one.
    (bundle.folder / PREFIX).unlink(missing_ok=True)
    here = bundle.manifest.arch == architecture()
    if here and not is_small(bundle.path("decoder")):
        run_in_child("prefix", prefix_stage, bundle, progress=progress)


def _keeps_beginning(job: Job) -> bool:
    """Whether `_keep_beginning` will have something to do."""
    from mllm_export.runtimes.machine import architecture
    from mllm_export.runtimes.opening import SMALL_BYTES

    decoder = job.plan.artifact("decoder")
    here = job.target.arch == architecture()
    return here and decoder is not None and decoder.size_bytes >= SMALL_BYTES


def _within(job: Job, memory_budget: str, mmproj: bool, given: Calibration) -> Job:
    """The job with what loses least in that memory."""
    from mllm_export.commands.budgeting import frontier_table, spend_budget
    from mllm_export.terminal import ProgressBars, stderr

    with ProgressBars() as progress:
        spent = spend_budget(job, memory_budget, mmproj, given, progress)
    stderr().print(frontier_table(spent.plan.frontier))
    return spent


def _forecast(job: Job, out: Path, no_check: bool) -> Forecast:
    """What was said of the build, as far as it can be held against what comes."""
    from mllm_export.commands.plan import summary
    from mllm_export.export.pace import forecast_build
    from mllm_export.export.partial import has_leftover
    from mllm_export.terminal import stderr

    console = stderr()
    for line in summary(job.plan):
        console.print(line, markup=False)
    reading = job.reading
    sources = job.checkpoint.source_paths(reading.uses_tower_folder, reading.folders)
    forecast = forecast_build(
        job.plan,
        [path for _, path in sources],
        keeps_beginning=_keeps_beginning(job),
        checked=not no_check,
    )
    console.print(f"Forecast: {_in_words(forecast)}", soft_wrap=True)
    # What is taken up takes no time, and nobody foretold how much that is.
    return replace(forecast, seconds=None) if has_leftover(out) else forecast


def _in_words(forecast: Forecast) -> str:
    from mllm_export.terminal import mib

    peak = f"peak of one process {mib(forecast.peak_bytes)}"
    if forecast.seconds is None:
        return f"{peak}; no time, for a stage of this build is not known"
    until = ", then the checks" if forecast.checked else ""
    given = ""
    if forecast.unread_bytes > _UNREAD_BYTES:
        given = f" (if a disk gives {mib(forecast.unread_bytes)} of the sources, which are not in "
        given += f"memory, within {forecast.reading_seconds:.0f} s)"
    return f"{forecast.seconds:.0f} s on a quiet machine{given}{until}; {peak}"


def _tell(out: Path, report: Report | None, as_json: bool) -> None:
    from mllm_export.records import to_json
    from mllm_export.terminal import parity_table, print_note, stdout

    if report is None:
        print_note(f"{out} was not checked against the original; 'run' will say so")
    elif as_json:
        typer.echo(to_json(report), nl=False)
    else:
        stdout().print(parity_table(report))
    for note in () if report is None else report.notes:
        print_note(note)
    if not as_json:
        typer.echo(f"bundle: {out}")
        if report is not None:
            typer.echo(f"report: {out / 'report.html'}")


def _figures(
    seconds: float, forecast: Forecast | None = None, checks_at_s: float | None = None
) -> None:
    from mllm_export.pages import family_peak_bytes
    from mllm_export.terminal import mib, stderr

    peak_bytes = family_peak_bytes()
    checks = "" if checks_at_s is None else f", {seconds - checks_at_s:.1f} s of it checks"
    stderr().print(f"Done in {seconds:.1f} s{checks}, peak of one process {mib(peak_bytes)}")
    if forecast is not None:
        before_checks_s = seconds if checks_at_s is None else checks_at_s
        stderr().print(f"Forecast over seen: {_compared(forecast, before_checks_s, peak_bytes)}")


def _compared(forecast: Forecast, before_checks_s: float, peak_bytes: int) -> str:
    """What was said before as a multiple of what came; the time of checks was not foretold."""
    peak = f"peak {forecast.peak_bytes / peak_bytes:.2f}"
    if forecast.seconds is None:
        return peak
    before = " before the checks" if forecast.checked else ""
    return f"time{before} {forecast.seconds / before_checks_s:.2f}, {peak}"
