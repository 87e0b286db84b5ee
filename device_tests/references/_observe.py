"""Second moments of what goes into every linear map of a module, while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import nn
from typing_extensions import Self

from mllm_export.device_tests.reference import Floats
from mllm_export.quantize.inputs import Inputs


class Observer:
    """Hooks on the linear maps of `module` from entry to exit."""

    def __init__(self, module: nn.Module, prefix: str, diagonal_only: bool) -> None:
        """`prefix` stands before the names of the module's parameters in the checkpoint."""
        self._module = module
        self._prefix = prefix
        self._diagonal_only = diagonal_only
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self.replaced = False
        """Whether weights were put into the module."""
        self.shares: torch.Tensor | None = None
        """How much each position of the next run counts, f32[T]; None: all the same."""

    def __enter__(self) -> Self:
        """Begin to watch."""
        for name, part in self._module.named_modules():
            if isinstance(part, nn.Linear):
                key = f"{self._prefix}{name}.weight" if name else f"{self._prefix}weight"
                hook = part.register_forward_pre_hook(
                    lambda _part, given, key=key: self.see(key, given[0])
                )
                self._handles.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def see(self, key: str, values: torch.Tensor) -> None:
        """Add inputs [..., cols] of the weight named `key`."""
        rows = values.reshape(-1, values.shape[-1]).float()
        if self.shares is not None:
            rows = rows * self.shares.sqrt()[:, None]
        squares = rows.double().square().sum(0) if self._diagonal_only else (rows.T @ rows).double()
        self._sums[key] = self._sums[key] + squares if key in self._sums else squares
        self._counts[key] = self._counts.get(key, 0) + len(rows)

    def inputs(self) -> dict[str, Inputs]:
        """What was seen, by transformers' name of the weight."""
        return {
            key: Inputs(gram=sums.float().numpy(), count=self._counts[key])
            for key, sums in self._sums.items()
        }

    def names(self) -> list[str]:
        """Every parameter of the module, in transformers' naming."""
        return [self._prefix + name for name, _ in self._module.named_parameters()]

    def replace(self, weights: Mapping[str, Floats]) -> None:
        """Put weights, by transformers' names, into the module."""
        self.replaced = True
        parameters = dict(self._module.named_parameters())
        for key, values in weights.items():
            own = parameters[key.removeprefix(self._prefix)]
            own.data = torch.from_numpy(values.copy()).reshape(own.shape).to(own.dtype)
