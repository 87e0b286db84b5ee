"""The protocol of export/coreml_schemes, and which of them a recipe's word comes to."""

from __future__ import annotations

from typing import Any, Protocol

from mllm_export.catalog import Catalog
from mllm_export.errors import PlanError
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.weights import Shape

FLOAT = "f16"
"""What everything is that no scheme holds."""


class CoremlScheme(Protocol):
    """One file of export/coreml_schemes."""

    opset: str
    """The oldest opset that can read it: CoreML7 or CoreML8."""

    def refuses(self, shape: Shape) -> str:
        """Why a weight of that shape, [out, in, ...], cannot be stored so; empty when it can."""

    def size_bytes(self, shape: Shape) -> int:
        """Of the stored weight with all that belongs to it."""

    def config(self) -> Any:
        """Coremltools' settings for one weight."""


COREML_SCHEMES: Catalog[CoremlScheme] = Catalog(
    "mllm_export.export.coreml_schemes", "SCHEME", "Core ML scheme", PlanError
)


def coreml_word(word: str) -> tuple[str, str]:
    """The scheme of Core ML for a recipe's tower scheme, and why it is another, if it is.

    Raises: PlanError for a word that has no like in Core ML.
    """
    if word in COREML_SCHEMES.names() or word == FLOAT:
        return word, ""
    if word == "f32":
        return FLOAT, "f16 instead of f32: the neural engine computes in float16 alone"
    if word.startswith("w8a8"):
        return "w8", f"w8 instead of {word}: activations stay in float16"
    if word.startswith("w4g"):
        return "w4g32", f"w4g32 instead of {word}: symmetric blocks of 32 for Core ML"
    known = ", ".join(("f32", FLOAT, "w8a8", *COREML_SCHEMES.names()))
    raise PlanError(
        f"tower scheme '{word}' has no like in Core ML (known there: {known}); "
        "choose another recipe or a target with an ONNX tower"
    )


def require_opset(word: str, options: CoremlOptions) -> None:
    """Raises: PlanError when the target's system is too old for a scheme."""
    if word != FLOAT and COREML_SCHEMES[word].opset > options.opset:
        raise PlanError(
            f"Core ML scheme '{word}' needs iOS 18 or macOS 15, the target is for "
            f"{options.deployment}; choose scheme w8, or raise the target's deployment"
        )
