"""Features side by side: as many tokens as each encoder gives, channels one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mllm_export.errors import SpecError
from mllm_export.spec import EncoderSpec, FusionSpec

if TYPE_CHECKING:
    from torch import Tensor


class Channels:
    """Token t of the result is token t of every encoder, in the encoders' order."""

    def spec(self, encoders: Sequence[EncoderSpec]) -> FusionSpec:
        """Raises: SpecError where the encoders give unlike numbers of tokens."""
        tokens = {encoder.name: encoder.tokens_out for encoder in encoders}
        if len(set(tokens.values())) != 1:
            raise SpecError(
                f"features can be joined by channels only token by token, these encoders give "
                f"{', '.join(f'{count} ({name})' for name, count in tokens.items())} tokens"
            )
        return FusionSpec(
            kind="channels",
            tokens_out=encoders[0].tokens_out,
            out_width=sum(encoder.width for encoder in encoders),
        )

    def apply(self, features: Sequence[Tensor]) -> Tensor:
        """Features f32[1, T, width of each] to f32[1, T, out_width]."""
        import torch

        return torch.cat(list(features), dim=2)


FUSION = Channels()
