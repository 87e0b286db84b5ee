"""What a rung of the ladder needs and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from mllm_export.bundle import Bundle
from mllm_export.catalog import Catalog
from mllm_export.device_tests.cases import Oracle
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.subject import Subject
from mllm_export.device_tests.tower_file import Embed
from mllm_export.errors import CheckError
from mllm_export.plan import Plan
from mllm_export.progress import Progress, silent
from mllm_export.report import Rung


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredFiles:
    """What the bundle's two files hold; tensors are mapped."""

    tower: dict[str, Stored]
    decoder: dict[str, Stored]
    keys: dict[str, object]
    """Metadata of the decoder's file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """Everything a check may look at."""

    bundle: Bundle
    subject: Subject
    oracle: Oracle
    limits: Limits
    stored: StoredFiles
    plan: Plan | None = None
    float_tower: Path | None = None
    """The float graph beside a quantized one, where it is still there."""
    other_runs: Mapping[str, Callable[[], Embed]] = field(default_factory=dict)
    """Further ways to run the tower's file, by name; each opened only when it is measured."""
    takes_pictures: bool = False
    """Whether the tower's file is fed pictures of 8 bits, and normalises them itself."""
    progress: Progress = field(default=silent)

    @property
    def calibrated(self) -> bool:
        """Whether the decoder's columns were weighed when it was stored."""
        return self.bundle.manifest.decoder_importance != "none"

    @cached_property
    def live(self) -> LiveOracle | None:
        """The original itself; None when only golden files are at hand."""
        return self.oracle if isinstance(self.oracle, LiveOracle) else None


NEEDS_ORIGINAL = "needs the original checkpoint; give it with --against"


class Check(Protocol):
    """A file in device_tests/checks."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measurements that a profile may limit."""

    def run(self, context: Context) -> Rung:
        """Measure.

        Raises: EngineError or ImageError when the export cannot do what it is asked, which
        counts as a failed rung.
        """


CHECKS: Catalog[Check] = Catalog("mllm_export.device_tests.checks", "CHECK", "check", CheckError)
