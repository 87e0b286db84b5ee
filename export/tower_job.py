"""What is asked of a quantized tower; no engine is loaded for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mllm_export.quantize.tower_recipe import TowerRanges
from mllm_export.quantize.tower_scheme import tower_scheme
from mllm_export.records import record


@record
class TowerJob:
    """What is asked of the quantized tower."""

    schemes: dict[str, str]
    """Stored name of each tensor to a file in quantize/tower_schemes."""
    preset: str
    """Which of optimum's instruction-set presets 8-bit products follow."""
    ranges: TowerRanges = "minmax"
    smoothing: bool = False
    pixels: Path | None = None
    """Calibration pictures as a .npy file f32[N, 3, S, S]; needed by ranges and smoothing."""

    @property
    def observes(self) -> bool:
        """Whether the float graph has to run on the calibration pictures."""
        return observes(self.schemes.values(), self.smoothing)

    def uses(self, kind: str) -> bool:
        """Whether any tensor has a scheme of that kind."""
        return any(tower_scheme(name).kind == kind for name in set(self.schemes.values()))


def observes(schemes: Iterable[str], smoothing: bool) -> bool:
    """Whether a tower of these schemes is quantized with calibration pictures."""
    used = [tower_scheme(name) for name in set(schemes)]
    int8 = any(scheme.kind == "int8" for scheme in used)
    return any(scheme.static for scheme in used) or (smoothing and int8)
