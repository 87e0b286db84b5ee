"""One call of an ML Program's operation: its arguments by name, as torch takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

    from mllm_export.export.mil_program import Operation


class Call:
    """What an operation was given."""

    def __init__(self, operation: Operation, given: Mapping[str, list[Any]]) -> None:
        """`given` holds tensors, and texts."""
        self.operation = operation
        self._given = given
        self.peak = 0.0
        """Largest magnitude that the operation met inside, where that is not its result."""

    def __contains__(self, name: str) -> bool:
        """Whether an optional argument was given."""
        return bool(self._given.get(name))

    def tensor(self, name: str) -> Tensor:
        """A tensor, floats in float32. Raises: EngineError when it was not given."""
        if name not in self:
            raise self.error(f"has no argument '{name}'")
        return self._given[name][0]  # type: ignore[no-any-return]

    def tensors(self, name: str) -> list[Tensor]:
        """Every tensor of a list."""
        return list(self._given[name])

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None."""
        return self.tensor(name) if name in self else None

    def number(self, name: str, default: float | None = None) -> float:
        """A float."""
        return float(default) if name not in self and default is not None else self._item(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        return default if name not in self and default is not None else int(self._item(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        return bool(self._item(name)) if name in self else default

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """A list of integers."""
        if name not in self and default is not None:
            return default
        return [int(one) for one in self.tensor(name).reshape(-1)]

    def flags(self, name: str, count: int) -> list[bool]:
        """A list of truth values, all false when it was not given."""
        return [bool(one) for one in self.tensor(name)] if name in self else [False] * count

    def text(self, name: str, default: str) -> str:
        """A word."""
        return str(self._given[name][0]) if name in self else default

    def error(self, text: str) -> EngineError:
        """An error that names the operation."""
        return EngineError(f"operation '{self.operation.name}' ({self.operation.type}): {text}")

    def _item(self, name: str) -> float:
        return float(self.tensor(name).reshape(-1)[0])


Operator = Callable[[Call], Any]
"""Gives the operation's result, or a tuple of them."""

Group = Mapping[str, Operator]
"""A file in export/mil: operations by the name they have in a program."""


def to_tensor(values: npt.NDArray[Any]) -> Tensor:
    """Stored values as torch takes them: floats in float32, integers of any width in int64."""
    import torch

    if values.dtype == np.bool_:
        return torch.tensor(values)
    wide = np.float32 if values.dtype.kind == "f" else np.int64
    return torch.tensor(np.asarray(values, wide))
