"""Rewrites of a tower's graph to operators that ONNX Runtime has a kernel for: a catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mllm_export.catalog import Catalog
from mllm_export.export.graph_index import GraphIndex

if TYPE_CHECKING:
    from onnx import ModelProto


class GraphPass(Protocol):
    """One rewrite, which leaves what the graph computes as it is but for the order of sums."""

    after: tuple[str, ...]
    """Passes that must have run before."""

    def rewrite(self, graph: GraphIndex) -> int:
        """Exchange what matches; returns how often."""


PASSES: Catalog[GraphPass] = Catalog("mllm_export.export.passes", "PASS", "graph pass")
"""By file name; values between layers and initializers keep their names in every pass."""


def ordered_passes() -> tuple[str, ...]:
    """Every pass behind those it comes after, by name where that does not say."""
    waiting, done = PASSES.names(), list[str]()
    while waiting:
        ready = next(name for name in waiting if set(PASSES[name].after) <= set(done))
        done.append(ready)
        waiting.remove(ready)
    return tuple(done)


def run_pass(model: ModelProto, name: str) -> int:
    """One pass in place; returns how many rewrites it made."""
    index = GraphIndex(model)
    count = PASSES[name].rewrite(index)
    if count:
        index.sweep()
    return count


def run_passes(model: ModelProto) -> dict[str, int]:
    """All passes in place; how many rewrites each made, also where that is none."""
    return {name: run_pass(model, name) for name in ordered_passes()}
