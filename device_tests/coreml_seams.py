"""A Core ML program, open at its seams; it is run by the evaluator, rounding to float16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored_coreml import ENDINGS
from mllm_export.export.coreml_package import read_contents
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import Operation, read_program
from mllm_export.pixels import tiles_of

Feed = Callable[[dict[str, Floats]], dict[str, Floats]]
"""Normalised pixels by input to what the program takes."""


class CoremlSeams:
    """See `TowerSeams`; a package knows which of its constants is which published tensor."""

    def __init__(self, path: Path, feed: Feed) -> None:
        """Raises: EngineError for no ML Program, BuildError for another tool's package."""
        self._program = read_program(path)
        self._evaluator = Evaluator(self._program, "float16")
        self._feed = feed
        self._published = {
            held.constant + ending: held.name
            for held in read_contents(path).tensors
            if held.constant
            for ending in ("", *ENDINGS)
        }
        self._operations = tuple(o for o in self._program.operations if o.type != "const")
        self._makers = {result.name: o for o in self._operations for result in o.results}

    def entry(self, prefixes: Sequence[str]) -> str:
        """The value from which everything with weights under `prefixes` starts; "" if several.

        What comes from other inputs of the program alone is another encoder's, joined further on.
        """
        own = self._behind(lambda name: self._published.get(name, "").startswith(tuple(prefixes)))
        fed = self._fed
        seams: dict[str, None] = {}
        for operation in self._operations:
            if own.intersection(_results(operation)):
                for name in _given(operation):
                    if name in fed and name not in own:
                        seams[self._uncast(name)] = None
        first = next(iter(seams), "")
        others = (fed[one] for one in seams if one != first)
        return first if all(fed[first].isdisjoint(one) for one in others) else ""

    def states(self, names: Sequence[str], pixels: Floats) -> list[Floats]:
        """Values inside the program for one tile. Shapes: f32[1, C, S, S] -> as there."""
        shapes = {port.name: port.shape for port in self._program.inputs}
        (tile,) = tiles_of(pixels, shapes)
        return self._evaluator.values(self._feed(dict(tile)), names)

    def embed_from(self, name: str, value: Floats) -> Floats:
        """The output for one tile when the value `name` is this. Shapes: -> f32[T, D]."""
        return self._evaluator.values({name: value}, self._program.outputs)[0]

    def _behind(self, starts: Callable[[str], bool]) -> set[str]:
        """Values that depend on one whose name `starts` takes."""
        found: set[str] = set()
        for operation in self._operations:
            given = _given(operation)
            if any(name in found or starts(name) for name in given):
                found.update(_results(operation))
        return found

    @cached_property
    def _fed(self) -> dict[str, set[str]]:
        """Values that depend on pictures, and on which inputs."""
        found: dict[str, set[str]] = {port.name: {port.name} for port in self._program.inputs}
        for operation in self._operations:
            sources = set[str]().union(*(found.get(one, set()) for one in _given(operation)))
            if sources:
                found |= dict.fromkeys(_results(operation), sources)
        return found

    def _uncast(self, name: str) -> str:
        operation = self._makers.get(name)
        while operation is not None and operation.type == "cast":
            (name,) = (one for one in operation.inputs["x"] if isinstance(one, str))
            operation = self._makers.get(name)
        return name


def _given(operation: Operation) -> list[str]:
    named = (one for arguments in operation.inputs.values() for one in arguments)
    return [one for one in named if isinstance(one, str)]


def _results(operation: Operation) -> list[str]:
    return [result.name for result in operation.results]
