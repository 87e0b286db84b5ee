"""How verbs run the ladder: in a process of its own, with the report written as files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mllm_export.errors import CheckFailedError
from mllm_export.report import describe

if TYPE_CHECKING:
    from mllm_export.bundle import Bundle
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.commands.opening import Job
    from mllm_export.plan import Plan
    from mllm_export.progress import Progress
    from mllm_export.report import Report


def check_new_bundle(
    job: Job,
    bundle: Bundle,
    float_tower: Path | None,
    evaluation: Path | None,
    out: Path,
    progress: Progress,
) -> Report:
    """Check a bundle that has no manifest yet; writes report and golden files into its folder.

    Raises: CheckFailedError when a rung failed; the report stands beside `out` then.
    """
    report = check_in_child(
        bundle, job.checkpoint, job.plan, evaluation, float_tower, True, progress
    )
    if job.plan.artifact("mmproj") is not None:
        report = _judge_mmproj(job, bundle, report, progress)
    write_reports(report, bundle.folder)
    if not report.passed:
        beside = out.with_name(f"{out.name}.failed")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write_reports(report, beside)
        raise CheckFailedError(f"{verdict(report)}; no bundle was left, see {beside}/report.html")
    return report


def _judge_mmproj(job: Job, bundle: Bundle, report: Report, progress: Progress) -> Report:
    """Remove mmproj.gguf unless llama.cpp computes it rightly; either way the report says so."""
    from mllm_export.device_tests.mmproj import mmproj_stage
    from mllm_export.export.child import run_in_child

    path = bundle.path("mmproj")
    source = (job.checkpoint.path, job.checkpoint.asked)
    verdict = run_in_child(
        "check mmproj", mmproj_stage, path, bundle.manifest, source, progress=progress
    )
    if not verdict.passed:
        path.unlink()
    return replace(report, notes=(*report.notes, verdict.sentence()))


def check_again(
    bundle: Bundle, original: Checkpoint | None, evaluation: Path | None, progress: Progress
) -> Report:
    """The ladder on a finished bundle, against the original or its golden files.

    Raises: BundleError when the original is another model than the bundle's.
    """
    from mllm_export.commands.replanning import replan

    if original is None:
        return check_in_child(bundle, None, None, evaluation, None, False, progress)
    found = replan(bundle, original)
    report = check_in_child(bundle, original, found.plan, evaluation, None, False, progress)
    return replace(report, notes=(*report.notes, *found.notes))


def check_in_child(
    bundle: Bundle,
    checkpoint: Checkpoint | None,
    plan: Plan | None,
    evaluation: Path | None,
    float_tower: Path | None,
    golden: bool,
    progress: Progress,
) -> Report:
    """The ladder in a fresh process; `golden` also writes the golden files."""
    from mllm_export.device_tests.stage import check_stage
    from mllm_export.export.child import run_in_child

    source = None if checkpoint is None else (checkpoint.path, checkpoint.asked)
    return run_in_child(
        "check",
        check_stage,
        bundle.folder,
        bundle.manifest,
        source,
        plan,
        evaluation,
        float_tower,
        golden,
        progress=progress,
    )


def verdict(report: Report) -> str:
    """The first failed rung and its figures, in a line."""
    rung = report.first_failure
    if rung is None:
        return f"{report.model} passed"
    broken = [describe(m) for m in rung.measurements if m.passed is False]
    return f"the {rung.name} rung failed: {'; '.join(broken) or rung.reason}"


def tell_unchecked(bundle: Path, checked: Literal["passed", "unchecked"]) -> None:
    """Say of a bundle that nothing has held it against its original."""
    from mllm_export.terminal import print_note

    if checked == "unchecked":
        print_note(f"{bundle} was never checked against the original (built with --no-check)")


def write_reports(report: Report, folder: Path) -> None:
    """report.json, .md, .xml (JUnit) and .html."""
    from mllm_export.records import to_json
    from mllm_export.reports.html import to_html
    from mllm_export.reports.junit import to_junit
    from mllm_export.reports.markdown import to_markdown

    for name, text in (
        ("report.json", to_json(report)),
        ("report.md", to_markdown(report)),
        ("report.xml", to_junit(report)),
        ("report.html", to_html(report)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
