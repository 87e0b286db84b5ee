"""`mllm-export check`: is a bundle still right, on this machine?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mllm_export.commands.arguments import (
    QUESTIONS,
    AgainstOption,
    BundleArgument,
    CostOption,
    CostRecordOption,
    DeviceHomeOption,
    DeviceOption,
    DevicePythonOption,
    EvaluationOption,
    HistoryOption,
    JsonOption,
    ProfileOption,
    QuestionsOption,
    RecordCostOption,
    ReportOption,
    TimeoutOption,
    TowerOption,
    WhenOption,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mllm_export.bundle import Bundle
    from mllm_export.report import Report


def check(
    bundle: BundleArgument,
    against: AgainstOption = None,
    vision_tower: TowerOption = None,
    evaluation: EvaluationOption = None,
    profile: ProfileOption = None,
    report_dir: ReportOption = None,
    history: HistoryOption = None,
    when: WhenOption = "",
    device: DeviceOption = None,
    questions: QuestionsOption = QUESTIONS,
    cost: CostOption = False,
    cost_record: CostRecordOption = None,
    record_cost: RecordCostOption = False,
    timeout: TimeoutOption = 600.0,
    device_python: DevicePythonOption = "",
    device_home: DeviceHomeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Hold a bundle against the original, its golden outputs, or on a device against this machine.

    Exit codes: 0 every limit kept, 1 a rung failed, 2 cannot be done as asked.
    """
    from mllm_export.bundle import open_bundle
    from mllm_export.commands.alone import check_alone, refuse_options
    from mllm_export.commands.costing import check_cost
    from mllm_export.commands.there import Place, check_there, refuse_alone
    from mllm_export.embedder import is_embedder
    from mllm_export.history import keep

    place = Place.named(device, timeout, device_python, device_home)
    if is_embedder(bundle):
        refuse_alone(place, bundle)
        refuse_options(
            bundle,
            vision_tower=bool(vision_tower),
            questions=questions != QUESTIONS,
            cost=cost,
            cost_record=cost_record is not None,
            record_cost=record_cost,
        )
        check_alone(bundle, against, evaluation, profile, report_dir, history, when, as_json)
        return
    opened = open_bundle(bundle)
    if profile is not None:
        opened = judged_by(opened, profile)
    if cost or record_cost:
        check_cost(opened, place, cost_record, record_cost, as_json)
        return
    if place is not None:
        report = check_there(opened, place, against, evaluation, questions)
    else:
        report = _check_here(opened, against, vision_tower, evaluation)
    if history is not None:
        keep(history, report, opened.folder, opened.manifest.sources, when)
    finish(report, report_dir, as_json)


def _check_here(
    bundle: Bundle, against: str | None, vision_tower: TowerOption, evaluation: Path | None
) -> Report:
    from mllm_export.commands.checking import check_again
    from mllm_export.commands.opening import REFERENCE, open_checkpoint, reference_evaluation
    from mllm_export.terminal import ProgressBars

    original = None if against is None else open_checkpoint(against, vision_tower)
    if against == REFERENCE and evaluation is None:
        evaluation = reference_evaluation()
    with ProgressBars() as progress:
        return check_again(bundle, original, evaluation, progress)


def finish(report: Report, report_dir: Path | None, as_json: bool) -> None:
    """Write and print a report. Raises: CheckFailedError when a rung failed."""
    from mllm_export.commands.checking import verdict, write_reports
    from mllm_export.errors import CheckFailedError
    from mllm_export.records import to_json
    from mllm_export.terminal import parity_table, print_note, stdout

    if report_dir is not None:
        report_dir.mkdir(parents=True, exist_ok=True)
        write_reports(report, report_dir)
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        stdout().print(parity_table(report))
    for note in report.notes:
        print_note(note)
    if not report.passed:
        raise CheckFailedError(verdict(report))


def judged_by(bundle: Bundle, profile: str) -> Bundle:
    """The bundle as if it had been built for another profile.

    Raises: CheckError for one that does not exist.
    """
    from dataclasses import replace

    from mllm_export.bundle import Bundle
    from mllm_export.device_tests.profile import load_profile

    load_profile(profile)
    return Bundle(bundle.folder, replace(bundle.manifest, profile=profile))
