"""What the verbs do for an encoder alone: CLIP, SigLIP, ViTamin without a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mllm_export.errors import CheckError, CheckFailedError, EngineError, PlanError
from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.embedder import EmbedderManifest, EmbedderPlan
    from mllm_export.export.embedder_parts import EmbedderReading
    from mllm_export.progress import Progress
    from mllm_export.report import Report


@record
class Alone:
    """A checkpoint of an encoder alone, read."""

    checkpoint: Checkpoint
    reading: EmbedderReading


def open_alone(name: str) -> Alone | None:
    """The checkpoint, if it is an encoder alone; None leaves it to the families."""
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.embedder_parts import embedder_for

    folder = Path(name)
    if not (folder / "config.json").is_file():
        return None
    checkpoint = Checkpoint(folder)
    entry = embedder_for(checkpoint.config)
    return None if entry is None else Alone(checkpoint=checkpoint, reading=entry.read(checkpoint))


def inspect_alone(alone: Alone, as_json: bool) -> None:
    """Parts, parameter counts, left-over tensors."""
    from math import prod

    from mllm_export.records import as_plain

    spec, weights = alone.reading.spec, alone.reading.weights
    dropped = weights.resolve(alone.checkpoint.shapes(False))
    counts: dict[str, int] = {}
    for take in weights.takes:
        counts[take.part] = counts.get(take.part, 0) + prod(take.shape)
    if as_json:
        typer.echo(json.dumps({"model": as_plain(spec), "parameters": counts}, indent=2))
        return
    typer.echo(f"{spec.name} ({spec.family}): an encoder alone")
    encoder = spec.encoder
    typer.echo(
        f"image tower: {encoder.kind}, {counts['tower']:,} parameters, {encoder.image.size_px} px "
        f"({encoder.image.fit}), {encoder.layers} layers, width {encoder.width}"
    )
    typer.echo(f"head: {spec.head}, {counts['head']:,} parameters, to {spec.embed_width} values")
    typer.echo("patches: {} of {} values".format(*spec.patch_shape))
    if spec.text is not None:
        typer.echo(
            f"text tower: {spec.text.kind}, {counts['text']:,} parameters, {spec.text.layers} "
            f"layers, width {spec.text.width}, {spec.text.context_tokens} tokens"
        )
    for row in dropped:
        typer.echo(f"Left out: {row.source} ({row.why})")
    for note in alone.reading.notes:
        typer.echo(f"Note: {note}")


def plan_alone(alone: Alone, target: str, recipe: str | None, as_json: bool) -> None:
    """What a build would write, tensor by tensor."""
    from mllm_export.commands.plan import artifact_table
    from mllm_export.records import to_json
    from mllm_export.terminal import mib, stdout

    plan = _plan(alone, target, recipe)
    if as_json:
        typer.echo(to_json(plan), nl=False)
        return
    console = stdout()
    for artifact in plan.artifacts:
        console.print(artifact_table(artifact))
    sizes = ", ".join(f"{a.path} {mib(a.size_bytes)} ({a.scheme})" for a in plan.artifacts)
    console.print(f"Artifacts: {sizes}")
    console.print(f"On the device: {mib(plan.device_memory_bytes)}")
    console.print(f"Dropped from the checkpoint: {len(plan.dropped)} tensors")


def refuse_options(alone: Path | str, **given: bool) -> None:
    """Raises: PlanError naming the first option that is for language models alone."""
    for option, is_given in given.items():
        if is_given:
            raise PlanError(
                f"--{option.replace('_', '-')} is for models that answer; {alone} is an encoder "
                "alone, leave it out"
            )


def _plan(alone: Alone, target: str, recipe: str | None) -> EmbedderPlan:
    from mllm_export.export.build_embedder import RECIPE, plan_embedder
    from mllm_export.export.target import load_target
    from mllm_export.quantize.recipe import load_recipe

    reading = alone.reading
    dropped = reading.weights.resolve(alone.checkpoint.shapes(False))
    return plan_embedder(reading, load_target(target), load_recipe(recipe or RECIPE), dropped)


def build_alone(
    alone: Alone,
    target: str,
    recipe: str | None,
    out: Path,
    evaluation: Path | None,
    no_check: bool,
    as_json: bool,
) -> None:
    """Export both towers and check; leave a bundle only if it passes."""
    from mllm_export.export.build_embedder import build_embedder
    from mllm_export.terminal import ProgressBars

    reading, checkpoint = alone.reading, alone.checkpoint
    plan = _plan(alone, target, recipe)
    reports: list[Report] = []
    with ProgressBars() as progress:

        def finish(folder: Path, draft: EmbedderManifest) -> Literal["passed", "unchecked"]:
            if no_check:
                return "unchecked"
            reports.append(_checked(folder, draft, checkpoint.path, evaluation, True, progress))
            _keep(reports[0], folder, out)
            return "passed"

        build_embedder(plan, reading, checkpoint, out, finish, progress)
    _print(reports[0] if reports else None, as_json)
    if not as_json:
        typer.echo(f"bundle: {out}")


def check_alone(
    bundle: Path,
    against: str | None,
    evaluation: Path | None,
    profile: str | None,
    report: Path | None,
    history: Path | None,
    when: str,
    as_json: bool,
) -> None:
    """Hold the bundle against its original, or against its golden files."""
    from dataclasses import replace

    from mllm_export.commands.check import finish
    from mllm_export.embedder import open_embedder
    from mllm_export.history import keep
    from mllm_export.terminal import ProgressBars

    manifest = open_embedder(bundle)
    if profile is not None:
        manifest = replace(manifest, profile=profile)
    if against is not None and open_alone(against) is None:
        raise CheckError(f"{bundle} is an encoder alone, and {against} is none")
    source = None if against is None else Path(against)
    with ProgressBars() as progress:
        found = _checked(bundle, manifest, source, evaluation, False, progress)
    if history is not None:
        keep(history, found, bundle, manifest.sources, when)
    finish(found, report, as_json)


def run_alone(
    bundle: Path, images: list[Path], labels: list[str], threads: int | None, as_json: bool
) -> None:
    """A probability for each label; without labels the picture's embedding as JSON."""
    from mllm_export.commands.checking import tell_unchecked
    from mllm_export.runtimes.embedder import open_embedder_session

    if len(images) != 1:
        raise EngineError(f"an encoder alone takes one picture, {len(images)} were given (--image)")
    session = open_embedder_session(bundle, threads)
    tell_unchecked(bundle, session.manifest.checked)
    if not labels:
        row = session.embed_image(images[0])
        typer.echo(json.dumps([float(value) for value in row]))
        return
    found = [float(value) for value in session.classify(images[0], labels)]
    ordered = sorted(zip(labels, found, strict=True), key=lambda one: -one[1])
    if as_json:
        typer.echo(json.dumps(dict(ordered)))
        return
    for label, share in ordered:
        typer.echo(f"{share:.4f}  {label}")


def _checked(
    folder: Path,
    manifest: EmbedderManifest,
    source: Path | None,
    evaluation: Path | None,
    golden: bool,
    progress: Progress,
) -> Report:
    from mllm_export.device_tests.embedder import check_embedder_stage
    from mllm_export.export.child import run_in_child

    return run_in_child(
        "check",
        check_embedder_stage,
        folder,
        manifest,
        source,
        evaluation,
        golden,
        progress=progress,
    )


def _keep(report: Report, folder: Path, out: Path) -> None:
    """Write the report into the bundle, or beside where it would be if a rung failed."""
    from mllm_export.commands.checking import verdict, write_reports

    write_reports(report, folder)
    if not report.passed:
        beside = out.with_name(f"{out.name}.failed")
        beside.mkdir(parents=True, exist_ok=True)
        write_reports(report, beside)
        raise CheckFailedError(f"{verdict(report)}; no bundle was left, see {beside}/report.html")


def _print(report: Report | None, as_json: bool) -> None:
    from mllm_export.records import to_json
    from mllm_export.terminal import parity_table, print_note, stdout

    if report is None:
        print_note("not checked against the original")
    elif as_json:
        typer.echo(to_json(report), nl=False)
    else:
        stdout().print(parity_table(report))
