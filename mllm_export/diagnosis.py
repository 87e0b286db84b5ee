"""Which part of an export is to blame, and the first of its layers that is wrong."""

from __future__ import annotations

from mllm_export.records import record

PARTS = ("preprocessing", "prompt", "tower", "projector", "decoder", "head", "kv", "engine")
"""In the order data passes them; `engine` is the arithmetic of the runtime itself."""

SHARES = (
    "A part's share is the mean of two experiments over the export's whole loss: the original "
    "with this one part exported (what the part costs by itself), and the export with this one "
    "part original again (what mending it would give back). Where parts do not act on each "
    "other both agree; what the shares leave of 100 % is named as interaction."
)


@record
class PartShare:
    """One part, swapped both ways between the original and the export."""

    name: str
    alone_kl: float
    """Original with this part exported: mean KL divergence from the original, in nats."""
    mended_kl: float
    """KL divergence that the export loses when this part is the original's again, in nats."""
    share: float
    """Of the export's KL divergence; see `SHARES`."""
    alone_points: float
    """Original with this part exported: points of accuracy (or of equal answers) lost."""
    mended_points: float
    """Points that the export gains when this part is the original's again."""
    outside: str = ""
    """The figure that leaves its limit, as a clause; empty when the part keeps all of them."""
    clue: str = ""
    """What the difference looks like, where that can be told."""


@record
class LayerStep:
    """The part's state behind one of its layers."""

    name: str
    """Published prefix of the layer, or what comes before the first."""
    value: float
    outside: bool
    note: str = ""


@record
class LayerWalk:
    """The layers of one part, in order."""

    part: str
    measure: str
    """What `value` of a step is, with its unit."""
    limit: float | None
    steps: tuple[LayerStep, ...]

    @property
    def first(self) -> LayerStep | None:
        """The first layer that leaves the limit."""
        return next((step for step in self.steps if step.outside), None)


@record
class Diagnosis:
    """What `diagnose` found."""

    schema: int = 1
    model: str
    target: str
    recipe: str
    reference: str
    questions: int
    rows: int
    """Positions whose distributions were compared."""
    trained: bool
    """Whether the questions have known answers; else points count answers like the original's."""
    kl: float
    """Mean KL divergence of the export, in nats."""
    points: float
    """Points of accuracy (or of equal answers) that the export loses."""
    parts: tuple[PartShare, ...]
    interaction: float
    """Of the KL divergence: 1 less all shares."""
    blamed: str
    """The part to look at; empty when every part keeps its limits."""
    walk: LayerWalk | None = None
    sentence: str
    notes: tuple[str, ...] = ()
