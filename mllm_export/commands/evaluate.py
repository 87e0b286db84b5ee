"""`mllm-export evaluate`: how well does a bundle answer, and how well did the original?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mllm_export.commands.arguments import BundleArgument, JsonOption, TowerOption


def evaluate(
    bundle: BundleArgument,
    evaluation: Annotated[
        Path,
        typer.Option(
            "--evaluation",
            metavar="F",
            help="JSON lines of image, question, answers; choices for the metric choice.",
        ),
    ],
    against: Annotated[
        Optional[str],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option("--against", metavar="CKPT", help="Ask the original too, and test the pairs."),
    ] = None,
    vision_tower: TowerOption = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="M", help="exact, vqa (soft accuracy) or choice.")
    ] = "exact",
    answers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--answers",
            metavar="FILE",
            help="Keep the answers here; a run that was stopped goes on from it.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer of either side, in tokens.")
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Answer an evaluation file; scores with intervals, and a paired test against the original.

    Exit codes: 0 evaluated, 2 cannot be done as asked; a low score is a result.
    """
    from mllm_export.bundle import open_bundle
    from mllm_export.commands.opening import open_checkpoint
    from mllm_export.device_tests.stage import evaluate_stage
    from mllm_export.export.child import run_in_child
    from mllm_export.records import to_json
    from mllm_export.terminal import ProgressBars

    opened = open_bundle(bundle)
    original = None if against is None else open_checkpoint(against, vision_tower)
    source = None if original is None else (original.path, original.asked)
    asked = (opened.folder, opened.manifest, source, evaluation, metric, answers, max_tokens)
    with ProgressBars() as progress:
        found = run_in_child("evaluate", evaluate_stage, *asked, progress=progress)
    typer.echo(to_json(found) if as_json else found.sentence, nl=not as_json)
