"""A catalog part (encoder or projector) with its weights, as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mllm_export.export.parts import Encoder, Projector, Reader
from mllm_export.export.stored import to_stored
from mllm_export.spec import EncoderSpec, ProjectorSpec
from mllm_export.weights import Shape


class PartModule(nn.Module):
    """Applies one part; weights are kept as the ONNX file stores them."""

    def __init__(
        self, apply: Callable[[Mapping[str, Tensor], Tensor], Tensor], weights: dict[str, Tensor]
    ) -> None:
        """`weights` by published name; `apply` takes them and the input."""
        super().__init__()
        self._apply_part = apply
        self._weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """The part's output for one input; see the part's `apply`."""
        return self._apply_part(self._weights, x)


def encoder_module(encoder: Encoder, spec: EncoderSpec, read: Reader) -> PartModule:
    """Module of pixels f32[1, 3, S, S] to features f32[1, tokens_out, width]."""
    weights = _weights(encoder.parameters(spec), read)
    return PartModule(lambda weights, x: encoder.apply(spec, weights, x), weights)


def projector_module(projector: Projector, spec: ProjectorSpec, read: Reader) -> PartModule:
    """Module of features f32[1, tokens_in, in_width] to f32[1, tokens_out, out_width]."""
    weights = _weights(projector.parameters(spec), read)
    return PartModule(lambda weights, x: projector.apply(spec, weights, x), weights)


def _weights(parameters: Mapping[str, Shape], read: Reader) -> dict[str, Tensor]:
    # A copy each: stored values may be views of a file that is mapped read-only.
    return {name: torch.tensor(to_stored(name, read(name))) for name in parameters}
