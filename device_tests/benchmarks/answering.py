"""The same question answered by the runtime and by its peers, in turn, on the same cores.

    python -m mllm_export.device_tests.benchmarks.answering compare BUNDLE \
        --checkpoint CKPT --language-model DIR --mmproj FILE --threads 1 --threads 2 -o table.md

Every peer runs in a process of its own: its imports and its loading are part of the cold start.
In each round all peers run one after the other; the table has medians over rounds, and ratios
taken within each round. `--language-model` is the folder that
`benchmarks.building` leaves in its work folder.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from mllm_export.device_tests.peer import PEERS, Ask, Errand, Files, Outcome, Spent
from mllm_export.device_tests.pictures import scenes
from mllm_export.errors import CheckError
from mllm_export.records import from_json, to_json

_QUESTIONS = ("What is in the picture?", "Which colour is it?")
_ROWS: tuple[tuple[str, Callable[[Spent], float | None]], ...] = (
    ("preprocess", lambda spent: spent.preprocess_ms),
    ("tower", lambda spent: spent.tower_ms),
    ("prefill", lambda spent: spent.prefill_ms),
    ("first token", lambda spent: spent.first_token_ms),
    ("decode per token", lambda spent: spent.decode_ms),
    ("second question", lambda spent: spent.second_ms),
)

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def one(errand: Path) -> None:
    """One peer's process: the errand as a file in, the outcome on standard output."""
    import resource

    start = time.perf_counter()
    task = from_json(Errand, errand.read_bytes(), errand, CheckError)
    with PEERS[task.peer](task) as opened:
        load_ms = 1000 * (time.perf_counter() - start)
        spent = tuple(opened.answer(ask, task.tokens) for ask in task.asks)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    typer.echo(to_json(Outcome(load_ms=load_ms, spent=spent, peak_mib=peak_mib)), nl=False)


@app.command()
def compare(
    bundle: Path,
    out: Annotated[Path, typer.Option("-o", help="The table, in Markdown.")],
    checkpoint: Annotated[Optional[Path], typer.Option(help="For torch.")] = None,  # noqa: UP045
    language_model: Annotated[Optional[Path], typer.Option(help="For torch.")] = None,  # noqa: UP045
    mmproj: Annotated[Optional[Path], typer.Option(help="For llama.cpp.")] = None,  # noqa: UP045
    peer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Given more than once; all where none is given."),
    ] = None,
    threads: Annotated[list[int], typer.Option(help="Given more than once.")] = [1, 2],  # noqa: B006
    rounds: int = 5,
    tokens: int = 32,
) -> None:
    """Run all peers in turn and write the table."""
    files = Files(
        bundle=bundle, checkpoint=checkpoint, language_model=language_model, mmproj=mmproj
    )
    names = ["ours", *(name for name in peer or PEERS.names() if name != "ours")]
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="answering.") as folder:
        asks = _asks(bundle, Path(folder))
        for count in threads:
            errands = [
                Errand(
                    peer=name,
                    files=files,
                    threads=count,
                    tokens=tokens,
                    context_tokens=1024,
                    asks=asks,
                )
                for name in names
            ]
            runs = [[_run(errand, Path(folder)) for errand in errands] for _ in range(rounds)]
            lines += _table(names, runs, count)
            typer.echo("\n".join(lines))
            out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _asks(bundle: Path, folder: Path) -> tuple[Ask, ...]:
    """A warm-up picture and three others, with the ids that the bundle's own tokenizer gives."""
    from mllm_export.runtimes import load

    asks: list[Ask] = []
    with load(bundle, threads=1, context_tokens=64, verify=False) as session:
        first, second = (tuple(session.encode(question)) for question in _QUESTIONS)
    for number, picture in enumerate(scenes(4)):
        path = folder / f"{number}.png"
        with picture.open() as opened:
            opened.convert("RGB").save(path)
        asks.append(Ask(picture=path, ids=first, second_ids=second))
    return tuple(asks)


def _run(errand: Errand, folder: Path) -> Outcome:
    path = folder / "errand.json"
    path.write_text(to_json(errand), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "one", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise CheckError(f"{errand.peer}: {done.stderr[-2000:]}")
    return from_json(Outcome, done.stdout, errand.peer, CheckError)


def _table(names: Sequence[str], runs: Sequence[Sequence[Outcome]], threads: int) -> list[str]:
    """Medians in ms, and after a peer's name its ratio: ours over it."""
    lines = [
        f"\n{threads} thread{'s' if threads > 1 else ''}, medians of {len(runs)} rounds, ms; "
        "in brackets ours over the peer's\n",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        _row("start to ready", [[outcome.load_ms for outcome in round_] for round_ in runs]),
    ]
    for title, value in _ROWS:
        lines.append(_row(title, [[_warm(one, value) for one in round_] for round_ in runs]))
    cold = [[_cold(one) for one in round_] for round_ in runs]
    lines.append(_row("cold start to first token", cold))
    lines.append(_row("peak memory, MiB", [[float(o.peak_mib) for o in r] for r in runs]))
    return lines


def _warm(outcome: Outcome, value: Callable[[Spent], float | None]) -> float | None:
    """Median over all but the first picture."""
    found = [taken for spent in outcome.spent[1:] if (taken := value(spent)) is not None]
    return statistics.median(found) if found else None


def _cold(outcome: Outcome) -> float | None:
    first = outcome.spent[0].first_token_ms
    return None if first is None else outcome.load_ms + first


def _row(title: str, rounds: Sequence[Sequence[float | None]]) -> str:
    cells: list[str] = []
    for number in range(len(rounds[0])):
        values = [r[number] for r in rounds]
        if any(value is None for value in values):
            cells.append("")
            continue
        known = [float(value or 0) for value in values]
        ratios = [float(r[0] or 0) / value for r, value in zip(rounds, known, strict=True) if value]
        ratio = f" ({statistics.median(ratios):.2f})" if number and ratios else ""
        cells.append(f"{statistics.median(known):.1f}{ratio}")
    return f"| {title} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    app()
