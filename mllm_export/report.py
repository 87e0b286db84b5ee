"""Measurements with unit, sample count, reference, limit and verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mllm_export.errors import CheckError
from mllm_export.frontier import FrontierPoint
from mllm_export.records import from_plain, record

Sense = Literal["at_least", "at_most", "equals", "info"]
Status = Literal["passed", "failed", "not_run"]

SCHEMA = 3

RUNGS = ("pixels", "prompt", "tower", "weights", "logits", "text", "task", "device", "controls")
"""The ladder, in order. Source: the design's section on parity."""


@record
class Measurement:
    """One figure; `passed` is None where it is only information."""

    name: str
    value: float
    unit: str
    sense: Sense = "info"
    limit: float | None = None
    limit_from: str = ""
    """Where the limit comes from: the profile's key and its reason."""

    @property
    def passed(self) -> bool | None:
        """Whether the limit holds; NaN never passes."""
        if self.limit is None or self.sense == "info":
            return None
        if self.sense == "at_least":
            return self.value >= self.limit
        if self.sense == "at_most":
            return self.value <= self.limit
        return self.value == self.limit


@record
class Example:
    """One sample worth showing: the worst ones, with both sides."""

    name: str
    reference: str
    export: str
    note: str = ""
    image: str = ""
    """A picture as a data URL, for the HTML page; empty where there is none."""


@record
class TensorRow:
    """One stored tensor in the weights rung."""

    name: str
    scheme: str
    sqnr_db: float | None
    """Signal to quantization noise; None where the values are equal."""
    note: str = ""


@record
class PairedValues:
    """What each sample says of one measurement, so that two checks can be compared in pairs."""

    measurement: str
    samples_sha256: str
    """Of the samples' names in order: pairs are of the same samples or none."""
    values: tuple[float, ...]
    """Loss of each sample: larger is worse."""


def paired_values(
    measurement: str, samples: Iterable[str], values: Iterable[float]
) -> PairedValues:
    """Losses of named samples, to six digits: they are compared, not computed with."""
    names = "\n".join(samples)
    return PairedValues(
        measurement=measurement,
        samples_sha256=hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest(),
        values=tuple(float(f"{value:.6g}") for value in values),
    )


@record
class LayerDrift:
    """How far the state behind one layer is from the original's."""

    part: str
    """tower or decoder."""
    name: str
    """Published prefix of the layer, or what comes before the first."""
    mean_cosine: float
    worst_cosine: float
    """Of any position."""
    relative_error: float
    """Norm of the difference over the norm of the original's state."""


@record
class Rung:
    """One step of the ladder."""

    name: str
    status: Status
    reference: str = ""
    samples: int = 0
    measurements: tuple[Measurement, ...] = ()
    reason: str = ""
    """Why it failed or was not run, in a sentence."""
    examples: tuple[Example, ...] = ()
    tensors: tuple[TensorRow, ...] = ()
    paired: tuple[PairedValues, ...] = ()
    seconds: float = 0.0


def rung_of(
    name: str,
    *,
    reference: str,
    samples: int,
    measurements: tuple[Measurement, ...],
    examples: tuple[Example, ...] = (),
    tensors: tuple[TensorRow, ...] = (),
    paired: tuple[PairedValues, ...] = (),
) -> Rung:
    """A rung whose verdict follows from its measurements; a rung without limits fails.

    A rung that measured nothing against a limit has checked nothing, so it may not pass.
    """
    judged = [m for m in measurements if m.passed is not None]
    broken = [m for m in judged if not m.passed]
    if not judged:
        broken_text = "nothing was held against a limit"
    else:
        broken_text = "; ".join(describe(m) for m in broken)
    return Rung(
        name=name,
        status="failed" if broken_text else "passed",
        reference=reference,
        samples=samples,
        measurements=measurements,
        reason=broken_text,
        examples=examples,
        tensors=tensors,
        paired=paired,
    )


def not_run(name: str, reason: str) -> Rung:
    """A rung that could not be measured here; never counted as passed."""
    return Rung(name=name, status="not_run", reason=reason)


def describe(m: Measurement) -> str:
    """A measurement as a clause: `worst-token cosine 0.97 (at least 0.995)`."""
    words = {"at_least": "at least", "at_most": "at most", "equals": "exactly"}
    limit = f" ({words[m.sense]} {m.limit:g})" if m.sense != "info" and m.limit is not None else ""
    return f"{m.name} {m.value:.6g}{' ' + m.unit if m.unit else ''}{limit}"


@record
class ArtifactSize:
    """Size of one file of the bundle."""

    path: str
    size_bytes: int


YARDSTICK = "yardstick"
"""The stage that is no stage: a fixed calculation, timed beside the others."""


@record
class Latency:
    """How long one stage of an answer took on the machine that checked."""

    stage: str
    median_ms: float
    low_ms: float
    """First quartile of the repeats."""
    high_ms: float
    """Third quartile of the repeats."""
    repeats: int
    threads: int


@record
class Report:
    """What `check` found."""

    schema: int = SCHEMA
    """2 added `drift`, `latency` and paired values, 3 `frontier`; older reports are read too."""
    model: str
    family: str
    target: str
    recipe: str
    profile: str
    rungs: tuple[Rung, ...]
    sizes: tuple[ArtifactSize, ...] = ()
    drift: tuple[LayerDrift, ...] = ()
    """Layer by layer, tower before decoder; empty where the original was not at hand."""
    latency: tuple[Latency, ...] = ()
    """Information, never a verdict."""
    device: str = ""
    """What `latency` was measured on."""
    frontier: tuple[FrontierPoint, ...] = ()
    """Of a build within a memory budget: what that budget and others buy."""
    tools: tuple[tuple[str, str], ...] = ()
    """Name and version of what was used."""
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No rung failed, and at least one was run."""
        statuses = [rung.status for rung in self.rungs]
        return "failed" not in statuses and "passed" in statuses

    @property
    def first_failure(self) -> Rung | None:
        """The first failed rung, which names the stage to look at."""
        return next((rung for rung in self.rungs if rung.status == "failed"), None)


def read_report(file: Path) -> Report:
    """A report.json of this schema or an older one.

    Raises: CheckError for a file that is missing, broken, or of a later schema.
    """
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as failure:
        raise CheckError(f"{file}: no report can be read from it ({failure})") from failure
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in range(1, SCHEMA + 1):
        raise CheckError(
            f"{file}: report schema {schema!r}, this version reads 1 to {SCHEMA}; "
            "install the version of mllm-export that wrote it"
        )
    return from_plain(Report, data, str(file), CheckError)
