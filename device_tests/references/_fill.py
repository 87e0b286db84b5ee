"""Fill transformers' modules with a checkpoint's weights in float32, a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mllm_export.device_tests.reference import Reader
from mllm_export.device_tests.references._watch import watch
from mllm_export.pages import forget_weight_files

RESIDENT_BYTES = 1 << 30
"""Layers whose float32 weights fit in this stay filled; larger ones are refilled each pass."""


def float32_tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    """Stored values as a float32 tensor of its own memory; exact for bfloat16 and float16."""
    if values.dtype.name == "bfloat16":
        bits = np.array(values.view(np.uint16))
        return torch.from_numpy(bits).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(values, dtype=np.float32))


def read_float32(read: Reader, name: str) -> torch.Tensor:
    """One tensor as float32."""
    return float32_tensor(read(name))


def fill(
    make: Callable[[], nn.Module],
    read: Reader,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A module whose every parameter is `read(prefix + name)`; nothing is drawn at random first.

    Raises: RuntimeError from torch when a shape differs.
    """
    with torch.device("meta"):
        module = make()
    names = [name for name, _ in module.named_parameters()]
    state: Mapping[str, torch.Tensor] = {name: read_float32(read, prefix + name) for name in names}
    _restore_buffers(module)
    module.load_state_dict(state, strict=True, assign=True)
    watch(module, prefix)
    return module.requires_grad_(False).eval().to(dtype)


def _restore_buffers(module: nn.Module) -> None:
    # CLIP's position_ids is the only buffer met: 0, 1, 2, ... as its constructor makes it.
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name != "position_ids":
                raise AssertionError(f"buffer '{name}' of {type(owner).__name__} is not known")
            counted = torch.arange(buffer.numel()).reshape(buffer.shape)
            owner.register_buffer(name, counted, persistent=False)


class LayerStack:
    """Equal layers, filled from a checkpoint: once if they are small, anew each time if not."""

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        read: Reader,
        prefix: str,
        count: int,
        dtype: torch.dtype,
    ) -> None:
        """`prefix` holds `{}` for the layer's number."""
        self._dtype = dtype
        self._make = make
        self._read = read
        self._prefix = prefix
        self._kept: dict[int, nn.Module] = {}
        self.count = count
        with torch.device("meta"):
            self.parameters = count * sum(p.numel() for p in make(0).parameters())
        self.resident = 4 * self.parameters <= RESIDENT_BYTES

    def layer(self, index: int) -> nn.Module:
        """The filled layer; do not keep it across calls."""
        if index in self._kept:
            return self._kept[index]
        module = self.fresh_layer(index)
        if self.resident:
            self._kept[index] = module
        else:
            forget_weight_files()
        return module

    def prefix(self, index: int) -> str:
        """What stands before the names of the layer's parameters in the checkpoint."""
        return self._prefix.format(index)

    def fresh_layer(self, index: int) -> nn.Module:
        """A layer of the caller's own, filled anew."""
        return fill(lambda: self._make(index), self._read, self.prefix(index), self._dtype)
