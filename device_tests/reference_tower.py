"""The protocol of device_tests/reference_towers: an original vision tower, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mllm_export.catalog import Catalog
from mllm_export.config import Config
from mllm_export.device_tests.reference import Floats, Reader
from mllm_export.errors import CheckError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from mllm_export.device_tests.originals import Original


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerSource:
    """Where the tower's weights are, and how its features are taken."""

    kind: str
    """A file in device_tests/reference_towers."""
    config: Config
    """Its own object of sizes."""
    read: Reader
    """From its published names on."""
    prefix: str
    """What stands before those names in the checkpoint."""
    select_layer: int
    feature: str
    """patch or cls_patch."""


class OriginalTower(Protocol):
    """A tower, cut where the model takes its features."""

    def modules(self) -> Mapping[str, nn.Module]:
        """What runs until the selected hidden state, without data, by published prefix."""

    def features(self, pixels: Floats) -> torch.Tensor:
        """Shapes: f32[B, 3, S, S] -> f32[B, tokens, width]."""

    def resized(self, table: Original) -> Original | None:
        """Positions at the size that the tower runs at, where they are stored at another."""


class TowerKind(Protocol):
    """One file of device_tests/reference_towers."""

    title: str
    """Whose code it is."""

    def processor(self, folder: Path | None, config: Config) -> Any:
        """The image processor: of a folder that has one, else with the published constants."""

    def width(self, config: Config) -> int:
        """Of a feature."""

    def open(self, source: TowerSource, dtype: torch.dtype) -> OriginalTower:
        """Weights are read when they are needed."""


REFERENCE_TOWERS: Catalog[TowerKind] = Catalog(
    "mllm_export.device_tests.reference_towers", "TOWER", "reference tower", CheckError
)


def kind_of(config: Config) -> str:
    """The file for a tower's own config.json, by the words its authors' loaders go by."""
    words = " ".join(
        config.text(key, "") for key in ("model_type", "architecture") if key in config
    )
    if words.startswith("vit_"):  # timm's own name for the plain ones
        return "timm_vit"
    if "vision_cfg" in config:
        words += config.section("vision_cfg").text("timm_model_name", "")
    return next((kind for kind in ("vitamin", "siglip") if kind in words), "clip")
