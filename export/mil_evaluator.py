"""An ML Program, operation by operation, on any machine.

What it can tell: that the saved file computes what the model does, from the very bytes that Core
ML will read, and what rounding every result to float16 costs. What it cannot: how Apple's
hardware orders its sums, what it keeps in wider accumulators, or which unit an operation runs
on. Source of what each operation means: apple/coremltools, converters/mil/mil/ops/defs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mllm_export.catalog import Catalog, unknown
from mllm_export.errors import EngineError
from mllm_export.export.mil_call import Call, Group, Operator, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from mllm_export.export.mil_program import MilProgram, Operation, Value

Precision = Literal["float32", "float16"]

Watch = Callable[["Operation", float], None]
"""Told of every operation with the largest magnitude it made, inside or as a result."""

GROUPS: Catalog[Group] = Catalog(
    "mllm_export.export.mil", "OPERATIONS", "group of operations", EngineError
)


@cache
def operators() -> Mapping[str, Operator]:
    """Every operation known, by its name in the program."""
    return {name: run for group in GROUPS.names() for name, run in GROUPS[group].items()}


class Evaluator:
    """Runs one program; constants are decoded once and kept."""

    def __init__(self, program: MilProgram, precision: Precision) -> None:
        """float32 rounds nothing; float16 rounds every result that the program calls FLOAT16.

        Raises: EngineError, naming it, for an operation that is not known.
        """
        for operation in program.operations:
            if operation.type != "const" and operation.type not in operators():
                raise EngineError(
                    f"{program.path}: operation '{operation.name}': "
                    + unknown("operation", operation.type, sorted(operators()))
                )
        self.program = program
        self.precision = precision
        self._constants: dict[str, Any] = {}
        self._last_use = _last_uses(program)

    def run(self, given: Mapping[str, npt.NDArray[Any]], watch: Watch | None = None) -> Any:
        """The program's one output; see `outputs`."""
        (made,) = self.outputs(given, watch).values()
        return made

    def outputs(
        self, given: Mapping[str, npt.NDArray[Any]], watch: Watch | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The program's outputs by name, in float32, for its inputs by name.

        Shapes: f32[1, 3, S, S] each -> f32[T, D], or i64[1, T] -> f32[1, E]
        Raises: EngineError for an input that is missing or of another shape.
        """
        found = {name: pixels.shape for name, pixels in given.items()}
        if found != {port.name: port.shape for port in self.program.inputs}:
            needed = ", ".join(f"'{p.name}' {list(p.shape)}" for p in self.program.inputs)
            raise EngineError(
                f"{self.program.path}: needs {needed}, got "
                f"{', '.join(f'{name!r} {list(shape)}' for name, shape in found.items())}"
            )
        names = self.program.outputs
        return dict(zip(names, self.values(given, names, watch), strict=True))

    def values(
        self,
        given: Mapping[str, npt.NDArray[Any]],
        wanted: Sequence[str],
        watch: Watch | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """Values inside the program, from its inputs or from other values inside it.

        Raises: EngineError where a wanted value also depends on something that is not given.
        """
        import torch

        known: dict[str, Any] = {
            name: self._rounded(torch.tensor(values), self.program.result(name).type)
            for name, values in given.items()
        }
        kept = {*wanted}
        with torch.no_grad():
            for number in self._between(known, wanted):
                self._step(self.program.operations[number], known, watch)
                for name in self._last_use.get(number, ()):
                    if name not in kept:
                        known.pop(name, None)
        return [known[name].float().numpy() for name in wanted]

    def _between(self, given: Mapping[str, Any], wanted: Sequence[str]) -> list[int]:
        """Numbers of the operations that lead from `given` to `wanted`, in order."""
        open_ends = {*wanted} - {*given}
        found = []
        for number in range(len(self.program.operations) - 1, -1, -1):
            operation = self.program.operations[number]
            if open_ends.intersection(result.name for result in operation.results):
                found.append(number)
                open_ends.update(
                    one
                    for arguments in operation.inputs.values()
                    for one in arguments
                    if isinstance(one, str) and one not in given
                )
        return found[::-1]

    def constant(self, name: str) -> Tensor:
        """A constant's values, decoded, as the operations are given them; not kept."""
        return self.decode(next(o for o in self.program.operations if o.name == name))

    def decode(self, operation: Operation) -> Tensor:
        """See `constant`."""
        if operation.type == "const":
            return _constant(operation.attributes["val"])  # type: ignore[no-any-return]
        plain = {o.name: o for o in self.program.operations if o.type == "const"}
        names = [n for given in operation.inputs.values() for n in given if isinstance(n, str)]
        known = {name: _constant(plain[name].attributes["val"]) for name in names}
        made = operators()[operation.type](self._call(operation, known))
        return self._rounded(made, operation.results[0].type)

    def _step(
        self,
        operation: Operation,
        values: dict[str, Any],
        watch: Watch | None,
    ) -> None:
        if operation.name in self._constants:
            return
        if operation.type == "const":
            self._constants[operation.name] = _constant(operation.attributes["val"])
            return
        fixed = operation.type.startswith("constexpr_")
        call = self._call(operation, values)
        made = operators()[operation.type](call)
        results = made if isinstance(made, tuple) else (made,)
        into = self._constants if fixed else values
        for result, tensor in zip(operation.results, results, strict=True):
            into[result.name] = self._rounded(tensor, result.type)
        if watch is not None and not fixed:
            watch(operation, max([call.peak, *(_peak(one) for one in results)]))

    def _call(self, operation: Operation, values: Mapping[str, Any]) -> Call:
        given: dict[str, list[Any]] = {
            name: [_constant(value)]
            for name, value in operation.attributes.items()
            if name != "name"
        }
        for name, arguments in operation.inputs.items():
            given[name] = [
                self._find(operation, one, values) if isinstance(one, str) else _constant(one)
                for one in arguments
            ]
        return Call(operation, given)

    def _find(self, operation: Operation, name: str, values: Mapping[str, Any]) -> Any:
        if name in values:
            return values[name]
        if name in self._constants:
            return self._constants[name]
        raise EngineError(
            f"{self.program.path}: operation '{operation.name}' reads '{name}', "
            "which nothing before it makes"
        )

    def _rounded(self, tensor: Tensor, kind: str) -> Tensor:
        if self.precision == "float16" and kind == "FLOAT16" and tensor.is_floating_point():
            return tensor.half().float()
        return tensor


def _constant(value: Value) -> Any:
    read = value.read()
    return to_tensor(read) if isinstance(read, np.ndarray) else read


def _peak(tensor: Tensor) -> float:
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    return float(tensor.abs().max())


def _last_uses(program: MilProgram) -> dict[int, list[str]]:
    """Which results nobody reads after an operation, by its number."""
    last: dict[str, int] = {}
    for number, operation in enumerate(program.operations):
        for arguments in operation.inputs.values():
            for one in arguments:
                if isinstance(one, str):
                    last[one] = number
    found: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in program.outputs:
            found.setdefault(number, []).append(name)
    return found
