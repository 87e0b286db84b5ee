"""What `compare` finds between two reports of the same model and target."""

from __future__ import annotations

from mllm_export.records import record


@record
class Change:
    """One figure on both sides."""

    kind: str
    """quality, size or speed."""
    what: str
    before: float
    after: float
    unit: str
    worse: bool
    better: bool
    bound: str
    """What had to be exceeded to count, with its figures."""


@record
class Comparison:
    """What `compare` found."""

    schema: int = 1
    before: str
    after: str
    """Where the two came from."""
    model: str
    target: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What got worse beyond its bound."""
        return tuple(one for one in self.changes if one.worse)

    @property
    def sentence(self) -> str:
        """The verdict in a line."""
        bad = self.regressions
        if not bad:
            better = sum(one.better for one in self.changes)
            gained = f"; {better} figures are better" if better else ""
            return f"No regression in {len(self.changes)} figures{gained}."
        told = "; ".join(f"{one.what} {_moved(one)}" for one in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        return f"{len(bad)} of {len(self.changes)} figures got worse: {told}{more}."


def _moved(one: Change) -> str:
    unit = f" {one.unit}" if one.unit else ""
    return f"{one.before:.4g} to {one.after:.4g}{unit}"
