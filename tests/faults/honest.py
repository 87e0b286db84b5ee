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

from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import generic_samples
from mllm_export.export.family import FAMILIES
from mllm_export.export.graph import Graph
from mllm_export.export.graph import tower_graph as _plain_graph
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.quantize.recipe import recipe_names
from mllm_export.report import Report
from mllm_export.spec import EncoderSpec, ProjectorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST = 20
_SEEDS, _THREADS = (0, 1, 2), (1, 2)


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One build: which twin, how stored, drawn how, computed with how many threads."""

    family: str
    recipe: str
    seed: int
    threads: int

    def __str__(self) -> str:
        return f"{self.family}, {self.recipe}, seed {self.seed}, {self.threads} threads"


def honest_builds() -> Iterator[Honest]:
    """Families, recipes, seeds and threads in turn: every recipe and every family at least once."""
    families = [name for name in FAMILIES.names() if name in REFERENCES.names()]
    recipes = recipe_names()
    count = max(LEAST, len(recipes), len(families))
    for at, family, recipe in zip(range(count), cycle(families), cycle(recipes), strict=False):
        # Where one number divides the other, the seed tells the pairs of a second round apart.
        turn = at // len(recipes)
        seed, threads = at % len(_SEEDS) + len(_SEEDS) * turn, _THREADS[at % len(_THREADS)]
        yield Honest(family=family, recipe=recipe, seed=seed, threads=threads)


def build_and_check(one: Honest, folder: Path) -> Report:
    """The build in this process, then the whole ladder with as many threads on either side."""
    checkpoint = folder / f"{one.family}-{one.seed}" / "checkpoint"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, FAMILIES[one.family].tiny(), seed=one.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(one.threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            _settle(patch, one.threads)
            bench = Bench(
                checkpoint.parent,
                checkpoint,
                one.recipe,
                make_oracle(checkpoint, generic_samples(4)),
                checkpoint,
            )
            return bench.check(bench.honest, whole=True)
    finally:
        torch.set_num_threads(before)


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
def _graph(encoder: EncoderSpec, projector: ProjectorSpec) -> Graph:
    """One object for the same specs, so that it stands for its traced form."""
    return _plain_graph(encoder, projector)


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
