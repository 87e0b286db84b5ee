"""Scores of a bundle on an evaluation file, and of the original beside it."""

from __future__ import annotations

from mllm_export.records import record


@record
class Answered:
    """Both answers to one question."""

    export: str
    original: str | None = None


@record
class Evaluation:
    """Scores are shares of 1; intervals are 95 % by bootstrap over questions."""

    schema: int = 1
    source: str
    metric: str
    questions: int
    export: float
    export_interval: tuple[float, float]
    original: float | None = None
    difference_interval: tuple[float, float] | None = None
    """Of export minus original on the same questions."""
    only_original: int = 0
    """Questions on which the original scores more."""
    only_export: int = 0
    """Questions on which the export scores more."""
    p_value: float | None = None
    """McNemar's exact test: how likely so uneven a split is by chance."""
    same_answers: float | None = None
    """Share of answers that are equal to the letter."""

    @property
    def sentence(self) -> str:
        """The result in a line or two."""
        low, high = self.export_interval
        text = (
            f"{100 * self.export:.1f} % ({100 * low:.1f} to {100 * high:.1f}) {self.metric} on "
            f"{self.questions} questions"
        )
        if self.original is None or self.difference_interval is None or self.p_value is None:
            return f"{text}."
        low, high = self.difference_interval
        return (
            f"{text}; the original {100 * self.original:.1f} %, difference "
            f"{100 * (self.export - self.original):+.1f} points ({100 * low:+.1f} to "
            f"{100 * high:+.1f}). Questions lost: {self.only_original}, gained: "
            f"{self.only_export}; McNemar p = {self.p_value:.3g}; "
            f"{100 * (self.same_answers or 0):.1f} % of answers are the same."
        )
