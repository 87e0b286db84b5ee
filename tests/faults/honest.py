"""Builds in which nothing is wrong: every one must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fault_bench import Bench, in_this_process, make_oracle

from mllm_export.commands.opening import reference_evaluation, reference_folder
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import Samples, generic_samples, read_evaluation
from mllm_export.export.family import FAMILIES
from mllm_export.export.graph import Graph
from mllm_export.export.graph import tower_graph as _plain_graph
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.quantize.recipe import recipe_names
from mllm_export.report import Measurement, Report
from mllm_export.spec import VisionSpec

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST = 20
_SEEDS = 3
_TWO_THREADS_EVERY = 5
"""Threads of so small a model wait for each other longer than they compute."""


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One build: which model, how stored, drawn how, computed with how many threads."""

    family: str
    """Whose tiny twin; or the name of a trained checkpoint, which has no seed."""
    recipe: str
    seed: int | None
    threads: int

    def __str__(self) -> str:
        drawn = "trained" if self.seed is None else f"seed {self.seed}"
        return f"{self.family}, {self.recipe}, {drawn}, {self.threads} threads"


TRAINED = (
    Honest(family="reference-phi", recipe="f16", seed=None, threads=1),
    Honest(family="reference", recipe="q8_0", seed=None, threads=1),
    Honest(family="reference", recipe="q4_k_m", seed=None, threads=2),
    Honest(family="reference-phi", recipe="int8", seed=None, threads=1),
    Honest(family="reference-phi", recipe="q5_k_m", seed=None, threads=2),
)
"""Checked on all their questions; the tests hold these models at other recipes already, see
tests/test_reference_bundles.py and tests/test_phi_bundle.py."""


def honest_builds() -> Iterator[Honest]:
    """Families, recipes, seeds and threads in turn: every recipe and every family at least once."""
    families = [name for name in FAMILIES.names() if name in REFERENCES.names()]
    recipes = recipe_names()
    count = max(LEAST, len(recipes), len(families))
    for at, family, recipe in zip(range(count), cycle(families), cycle(recipes), strict=False):
        # A round of the families has one seed, so that each family is drawn in several ways.
        seed = at // len(families) % _SEEDS + _SEEDS * (at // len(recipes))
        threads = 2 if at % _TWO_THREADS_EVERY == _TWO_THREADS_EVERY - 1 else 1
        yield Honest(family=family, recipe=recipe, seed=seed, threads=threads)


def build_and_check(one: Honest, folder: Path) -> Report:
    """The build in this process, then the whole ladder with as many threads on either side."""
    checkpoint, samples = _model(one, folder)
    before = torch.get_num_threads()
    torch.set_num_threads(one.threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            _settle(patch, one.threads)
            oracle = make_oracle(checkpoint, samples, few=one.seed is not None)
            bench = Bench(folder / one.family, checkpoint, one.recipe, oracle, checkpoint)
            return bench.check(bench.honest, whole=True)
    finally:
        torch.set_num_threads(before)


def nearest(report: Report) -> tuple[str, float]:
    """The measurement that used most of its room, and which share of it."""
    judged = [
        (f"{rung.name}: {one.name}", _used(one))
        for rung in report.rungs
        # What a block of a scheme may lose is derived, and used up by some block or other.
        if rung.name != "weights"
        for one in rung.measurements
    ]
    return max(judged, key=lambda pair: pair[1])


def _used(one: Measurement) -> float:
    """Share of the way from what nothing lost would give to the limit."""
    if one.limit is None or one.sense not in {"at_least", "at_most"} or one.unit == "dB":
        return 0.0
    if one.unit == "times" or one.name.endswith("perplexity ratio"):
        return max(0.0, (one.value - 1) / max(one.limit - 1, 1e-12))
    if one.sense == "at_least":
        return max(0.0, (1 - one.value) / max(1 - one.limit, 1e-12))
    return max(0.0, one.value / one.limit)


def _model(one: Honest, folder: Path) -> tuple[Path, Samples]:
    if one.seed is None:
        return reference_folder(one.family), read_evaluation(reference_evaluation())
    checkpoint = folder / f"{one.family}-{one.seed}" / "checkpoint"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, FAMILIES[one.family].tiny(), seed=one.seed)
    return checkpoint, generic_samples(4)


def _settle(patch: pytest.MonkeyPatch, threads: int) -> None:
    """As many threads in the runtime too; a graph of the same specs is traced once."""
    from mllm_export.export.formats import onnx as writer
    from mllm_export.runtimes import opening

    patch.setattr(opening, "usable_cores", lambda: threads)
    patch.setattr(opening, "is_small", lambda _: threads == 1)
    patch.setattr(writer, "tower_graph", _graph)
    patch.setattr(writer, "graph_skeleton", _skeleton)
    in_this_process(patch)


@cache
def _graph(vision: VisionSpec) -> Graph:
    """One object for the same specs, so that it stands for its traced form."""
    return _plain_graph(vision)


def _skeleton(graph: Graph) -> ModelProto:
    if id(graph) not in _TRACED:
        _TRACED[id(graph)] = graph, _trace(graph)
    made = type(_TRACED[id(graph)][1])()
    made.CopyFrom(_TRACED[id(graph)][1])
    return made


_TRACED: dict[int, tuple[Graph, ModelProto]] = {}
"""By the graph's id, which stays its own while the graph is kept here."""


def _tracer() -> Callable[[Graph], ModelProto]:
    from mllm_export.export.formats.onnx import graph_skeleton

    return graph_skeleton


_trace = _tracer()
