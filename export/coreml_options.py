"""How a Core ML package is made: what of the target it depends on."""

from __future__ import annotations

from typing import Literal

from mllm_export.records import record

Deployment = Literal["iOS17", "iOS18", "macOS14", "macOS15"]

OPSETS: dict[str, str] = {
    "iOS17": "CoreML7",
    "macOS14": "CoreML7",
    "iOS18": "CoreML8",
    "macOS15": "CoreML8",
}
"""Which operations a system knows. Source: coremltools/converters/mil/mil/builder and _target."""


@record
class CoremlOptions:
    """Choices of a target that shape the program."""

    deployment: Deployment
    """The oldest system that runs it, as coremltools.target names it."""
    image_input: bool = False
    """True: takes a picture, RGB of 0 to 255, and normalises it itself."""

    @property
    def opset(self) -> str:
        """CoreML7 or CoreML8."""
        return OPSETS[self.deployment]

    @property
    def has_attention(self) -> bool:
        """Whether `scaled_dot_product_attention` exists there."""
        return self.opset == "CoreML8"
