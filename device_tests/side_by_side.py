"""The runtime and its peers in turn on the same cores, round by round."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mllm_export.bundle import Bundle
from mllm_export.device_tests.bandwidth import Rates, memory_rates, token_bytes
from mllm_export.device_tests.latency import machine
from mllm_export.device_tests.peer import (
    OURS,
    PEERS,
    Ask,
    Errand,
    Files,
    Outcome,
    Spent,
    require_able,
)
from mllm_export.device_tests.peer_process import run_errand
from mllm_export.device_tests.pictures import scenes
from mllm_export.errors import CheckError
from mllm_export.export.child import run_in_child
from mllm_export.progress import Progress, Step
from mllm_export.side_by_side import (
    DECODE,
    FIRST,
    SECOND,
    AtThreads,
    Bandwidth,
    Cell,
    Engine,
    SideBySide,
    Stage,
)

_QUESTIONS = ("What is in the picture?", "Which colour is it?")
PICTURES = 3
"""The first one warms up: what it takes counts as the cold start alone."""
_SPARE_TOKENS = 16
_CONTEXT_TOKENS = 1024

Value = Callable[[Outcome], float | None]


def side_by_side(
    bundle: Bundle,
    peers: Sequence[str],
    files: Files,
    *,
    threads: Sequence[int],
    rounds: int,
    tokens: int,
    progress: Progress,
    pictures: int = PICTURES,
) -> SideBySide:
    """All rounds with each number of threads, of ours alone where no peer is named.

    Nothing else should run on the machine.

    Raises: CheckError for a peer that cannot run, before anything does.
    """
    names = (OURS, *peers)
    for name in names:
        require_able(name, files)
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory(prefix="side-by-side.") as made:
        folder = Path(made)
        asks = _asks(bundle, folder, pictures)
        positions = len(asks[0].ids) - 1 + manifest.model.image_tokens
        errand = Errand(
            peer=OURS,
            files=files,
            threads=1,
            tokens=tokens,
            context_tokens=_context(bundle, positions, tokens),
            asks=asks,
        )
        read = token_bytes(bundle, positions + tokens // 2)
        table = _Rounds(folder, names, rounds * len(threads), progress)
        runs = tuple(
            fold(count, *table.run(replace(errand, threads=count), rounds), read)
            for count in threads
        )
    return SideBySide(
        model=manifest.model.name,
        target=manifest.target,
        recipe=manifest.recipe,
        machine=machine(),
        rounds=rounds,
        prompt_positions=positions,
        tokens=tokens,
        engines=tuple(Engine(name=name, title=PEERS[name].title) for name in names),
        runs=runs,
    )


class _Rounds:
    """Processes one after the other, and how many of them are through."""

    def __init__(self, folder: Path, names: Sequence[str], rounds: int, progress: Progress) -> None:
        self._folder = folder
        self._names = names
        self._total = rounds * len(names)
        self._done = 0
        self._progress = progress

    def run(self, errand: Errand, rounds: int) -> tuple[list[list[Outcome]], list[Rates]]:
        """The rounds of one number of threads: outcomes by round and name, the memory's rates."""
        outcomes: list[list[Outcome]] = []
        rates: list[Rates] = []
        for _ in range(rounds):
            rates.append(run_in_child("memory bandwidth", memory_rates, errand.threads))
            outcomes.append([self._one(replace(errand, peer=name)) for name in self._names])
        return outcomes, rates

    def _one(self, errand: Errand) -> Outcome:
        item = f"{errand.peer}, {errand.threads} thread{'s' if errand.threads > 1 else ''}"
        self._tell(item)
        outcome = run_errand(errand, self._folder)
        self._done += 1
        self._tell(item)
        return outcome

    def _tell(self, item: str) -> None:
        self._progress(
            Step(stage="rounds", item=item, done=self._done, total=self._total, unit="runs")
        )


def _asks(bundle: Bundle, folder: Path, pictures: int) -> tuple[Ask, ...]:
    """Pictures as files, with the ids that the bundle's own tokenizer gives."""
    from mllm_export.runtimes import load

    with load(bundle.folder, threads=1, context_tokens=64, verify=False) as session:
        first, second = (tuple(session.encode(question)) for question in _QUESTIONS)
    asks: list[Ask] = []
    for number, picture in enumerate(scenes(pictures)):
        path = folder / f"{number}.png"
        with picture.open() as opened:
            opened.convert("RGB").save(path)
        asks.append(Ask(picture=path, ids=first, second_ids=second))
    return tuple(asks)


def _context(bundle: Bundle, positions: int, tokens: int) -> int:
    """Room for the longest answer, the same for every engine.

    Raises: CheckError for more tokens than the model's context holds.
    """
    needed = positions + tokens + _SPARE_TOKENS
    room = bundle.manifest.model.decoder.context_tokens
    if needed > room:
        raise CheckError(
            f"the question takes {positions} positions and {tokens} tokens are to follow: more "
            f"than the model's context of {room}; ask for at most "
            f"{max(1, room - positions - _SPARE_TOKENS)} with --max-tokens"
        )
    return min(room, max(_CONTEXT_TOKENS, needed))


def _warm(value: Callable[[Spent], float | None]) -> Value:
    """Median over all but the first picture."""

    def of(outcome: Outcome) -> float | None:
        found = [taken for one in outcome.spent[1:] if (taken := value(one)) is not None]
        return statistics.median(found) if found else None

    return of


def _first(value: Callable[[Spent], float | None]) -> Value:
    """Of the first picture, which finds everything cold."""
    return lambda outcome: value(outcome.spent[0])


def _cold(outcome: Outcome) -> float | None:
    first = outcome.spent[0].first_token_ms
    return None if first is None else outcome.load_ms + first


_STAGES: tuple[tuple[str, str, Value], ...] = (
    ("preprocess", "ms", _warm(lambda spent: spent.preprocess_ms)),
    ("tower", "ms", _warm(lambda spent: spent.tower_ms)),
    ("prefill", "ms", _warm(lambda spent: spent.prefill_ms)),
    (FIRST, "ms", _warm(lambda spent: spent.first_token_ms)),
    (DECODE, "ms", _warm(lambda spent: spent.decode_ms)),
    (SECOND, "ms", _warm(lambda spent: spent.second_ms)),
    ("cold start: load", "ms", lambda outcome: outcome.load_ms),
    ("cold start: preprocess", "ms", _first(lambda spent: spent.preprocess_ms)),
    ("cold start: tower", "ms", _first(lambda spent: spent.tower_ms)),
    ("cold start: prefill", "ms", _first(lambda spent: spent.prefill_ms)),
    ("cold start to first token", "ms", _cold),
    ("peak memory", "MiB", lambda outcome: outcome.peak_bytes / (1 << 20)),
)


def fold(
    threads: int, rounds: Sequence[Sequence[Outcome]], rates: Sequence[Rates], read_bytes: int
) -> AtThreads:
    """Medians, quartiles and ratios; `rounds` by round and engine, ours the first."""
    stages = tuple(
        Stage(name=name, unit=unit, cells=_cells([[value(one) for one in r] for r in rounds]))
        for name, unit, value in _STAGES
    )
    decode = next(one for one in stages if one.name == DECODE).cells[0]
    assert decode is not None, "ours decodes"
    bandwidth = Bandwidth(
        copy_gb_s=statistics.median(one.copy for one in rates) / 1e9,
        read_gb_s=statistics.median(one.read for one in rates) / 1e9,
        token_bytes=read_bytes,
        decode_gb_s=read_bytes / decode.median / 1e6,
    )
    return AtThreads(threads=threads, stages=stages, bandwidth=bandwidth)


def _cells(rounds: Sequence[Sequence[float | None]]) -> tuple[Cell | None, ...]:
    """One engine after another; None for one that lacks the stage in any round."""
    cells: list[Cell | None] = []
    ours = [one[0] for one in rounds]
    for number, values in enumerate(zip(*rounds, strict=True)):
        known = [value for value in values if value is not None]
        if len(known) < len(rounds):
            cells.append(None)
            continue
        low, median, high = (float(x) for x in np.quantile(known, [0.25, 0.5, 0.75]))
        ratios = [a / b for a, b in zip(ours, known, strict=True) if a is not None and b > 0]
        ratio = statistics.median(ratios) if number and ratios else None
        cells.append(Cell(median=median, low=low, high=high, ratio=ratio))
    return tuple(cells)
