"""`mllm-export run`: ask a bundle a question about a picture, with the runtime alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mllm_export.commands.arguments import BundleArgument, JsonOption

if TYPE_CHECKING:
    from mllm_export.runtimes.session import Session

_MAX_TOKENS, _TEMPERATURE, _SEED = 128, 0.0, 0
"""Where the options are not given."""


def run(
    bundle: BundleArgument,
    prompt: Annotated[
        Optional[str],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option("--prompt", metavar="S", help="The question."),
    ] = None,
    image: Annotated[
        Optional[list[Path]],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option("--image", metavar="F", help="A picture; may be given several times, or not."),
    ] = None,
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--label", metavar="S", help="For an encoder alone: what may be shown."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Longest answer, in tokens.", min=1)
    ] = _MAX_TOKENS,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = _TEMPERATURE,
    seed: Annotated[int, typer.Option(help="For sampling.")] = _SEED,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="CPU threads; all cores by default.", min=1),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question; needs neither torch nor transformers."""
    from mllm_export.commands.alone import refuse_options, run_alone
    from mllm_export.commands.checking import tell_unchecked
    from mllm_export.embedder import is_embedder
    from mllm_export.runtimes import load

    if is_embedder(bundle):
        refuse_options(
            bundle,
            prompt=prompt is not None,
            max_tokens=max_tokens != _MAX_TOKENS,
            temperature=temperature != _TEMPERATURE,
            seed=seed != _SEED,
        )
        run_alone(bundle, image or [], label or [], threads, as_json)
        return
    if label:
        _refuse_labels(bundle)
    if prompt is None:
        raise typer.BadParameter("give the question", param_hint="--prompt")
    with load(bundle, threads=threads) as session:
        tell_unchecked(bundle, session.manifest.checked)
        _answer(session, prompt, image or [], max_tokens, temperature, seed, as_json)


def _refuse_labels(bundle: Path) -> None:
    """Raises: EngineError; BundleError for what is no bundle at all."""
    from mllm_export.bundle import read_manifest
    from mllm_export.errors import EngineError

    name = read_manifest(bundle).model.name
    raise EngineError(
        f"--label is for an encoder alone; {bundle} ({name}) answers questions, leave it out"
    )


def _answer(
    session: Session,
    prompt: str,
    images: list[Path],
    max_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    import json

    from mllm_export.records import as_plain

    steps = []
    for step in session.generate(
        prompt, images, max_tokens=max_tokens, temperature=temperature, seed=seed
    ):
        steps.append(step)
        if not as_json:
            typer.echo(step.text, nl=False)
    if as_json:
        text = "".join(step.text for step in steps)
        typer.echo(json.dumps({"text": text, "steps": [as_plain(step) for step in steps]}))
    else:
        typer.echo("")
