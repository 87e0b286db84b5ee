"""Planting every fault of the lists, and the table of what became of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faults_cobra
import faults_decoder
import faults_preprocessing
import faults_prompt
import faults_tower
import pytest
from fault import NOT_PLANTED, Fault
from fault_bench import Bench, SharedOracle, make_oracle
from sibling import write_sibling

from mllm_export.commands.opening import reference_evaluation, reference_folder
from mllm_export.device_tests.samples import Samples, generic_samples, read_evaluation
from mllm_export.errors import MllmExportError
from mllm_export.export.family import FAMILIES
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.report import Report

FAULTS: tuple[Fault, ...] = (
    *faults_preprocessing.FAULTS,
    *faults_prompt.FAULTS,
    *faults_tower.FAULTS,
    *faults_decoder.FAULTS,
    *faults_cobra.FAULTS,
)
MODELS = ("tiny", "reference", "tied", "cobra")
_QUESTIONS = 24


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of a fault."""

    fault: Fault
    model: str
    rung: str
    """The first that failed; `open` where the bundle was refused before; empty: not caught."""
    reason: str

    @property
    def caught(self) -> bool:
        return bool(self.rung)

    @property
    def named(self) -> bool:
        return self.rung in self.fault.rungs


class Benches:
    """Models at recipes, each made when a fault first asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._oracles: dict[str, tuple[Path, SharedOracle, Path]] = {}
        self._benches: dict[tuple[str, str], Bench] = {}

    def get(self, model: str, recipe: str) -> Bench:
        if (model, recipe) not in self._benches:
            checkpoint, oracle, sibling = self._oracle(model)
            self._benches[model, recipe] = Bench(
                self._folder / model, checkpoint, recipe, oracle, sibling
            )
        return self._benches[model, recipe]

    def _oracle(self, model: str) -> tuple[Path, SharedOracle, Path]:
        if model not in self._oracles:
            folder = self._folder / model
            checkpoint, samples = _MAKERS[model](folder)
            # Cobra's faults ask for none, and its files lie otherwise.
            has_files = (checkpoint / "pytorch_model.bin").is_file()
            sibling = write_sibling(folder / "sibling", checkpoint) if has_files else checkpoint
            self._oracles[model] = checkpoint, make_oracle(checkpoint, samples), sibling
        return self._oracles[model]


def _tiny(folder: Path) -> tuple[Path, Samples]:
    from tiny_original import write_original

    write_original(folder / "checkpoint")
    return folder / "checkpoint", generic_samples(6)


def _tied(folder: Path) -> tuple[Path, Samples]:
    """The config says that the head is the embedding; a head with other weights lies about."""
    found = _tiny(folder)
    file = folder / "checkpoint" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "tie_word_embeddings": True}))
    return found


def _cobra(folder: Path) -> tuple[Path, Samples]:
    made = write_random_checkpoint(folder / "checkpoint", FAMILIES["cobra"].tiny())
    return made, generic_samples(6)


def _reference(_: Path) -> tuple[Path, Samples]:
    """Every n-th question, so that several kinds are asked about several pictures."""
    samples = read_evaluation(reference_evaluation())
    asked = samples.questions[:: len(samples.questions) // _QUESTIONS][:_QUESTIONS]
    names = {name for question in asked for name in question.pictures}
    pictures = {name: p for name, p in samples.pictures.items() if name in names}
    return reference_folder(), replace(samples, pictures=pictures, questions=asked)


_MAKERS = {"tiny": _tiny, "reference": _reference, "tied": _tied, "cobra": _cobra}


def plant(fault: Fault, model: str, benches: Benches) -> Found:
    """Plant one fault and run the ladder up to the first rung that fails."""
    bench = benches.get(model, fault.recipe)
    with pytest.MonkeyPatch.context() as patch:
        bundle = fault.plant(bench, patch)
        try:
            report = bench.check(bundle)
        except MllmExportError as refusal:
            return Found(fault=fault, model=model, rung="open", reason=str(refusal))
    return found(fault, model, report)


def found(fault: Fault, model: str, report: Report) -> Found:
    first = report.first_failure
    return Found(
        fault=fault,
        model=model,
        rung=first.name if first else "",
        reason=first.reason if first else "",
    )


def markdown(results: Sequence[Found]) -> str:
    """The table, and the shares that count."""
    lines = [
        "| planted | stage | model | recipe | first rung to fail | stage named | what it says |",
        "|---|---|---|---|---|---|---|",
        *(_row(one) for one in results),
        "",
        _share("caught", [one.caught for one in results]),
        _share("stage named rightly", [one.named for one in results]),
        f"kinds: {len({one.fault.name for one in results})}",
        "",
        "Not planted:",
        *(f"- {one.name}: {one.why}" for one in NOT_PLANTED),
    ]
    return "\n".join(lines) + "\n"


def _row(one: Found) -> str:
    rung, named = one.rung or "**none**", "yes" if one.named else "no"
    reason = one.reason.replace("|", "/")[:110]
    cells = (one.fault.name, one.fault.stage, one.model, one.fault.recipe, rung, named, reason)
    return f"| {' | '.join(cells)} |"


def _share(what: str, marks: Sequence[bool]) -> str:
    return f"{what}: {sum(marks)} of {len(marks)} ({100 * sum(marks) / max(1, len(marks)):.1f} %)"
