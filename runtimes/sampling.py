"""The choice of the next token from its logits: greedy, or drawn with a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mllm_export.errors import EngineError
from mllm_export.records import record


@record
class Sampling:
    """How tokens are drawn; temperature 0 is greedy and ignores the rest.

    Filters apply in the order temperature, top_k, top_p, as in transformers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    """Keep the likeliest tokens until their probabilities reach this sum."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no distribution could be drawn with."""
        if not 0 <= self.temperature < float("inf"):
            raise EngineError(f"temperature is {self.temperature}, needed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p is {self.top_p}, needed: over 0, at most 1")
        if self.top_k < 0 or self.seed < 0:
            raise EngineError(f"top_k is {self.top_k} and seed {self.seed}, needed: 0 or more")


class Sampler:
    """Draws one token id after another; the same seed and logits give the same ids."""

    def __init__(self, settings: Sampling) -> None:
        """The generator belongs to this sampler alone."""
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token's id, from logits f32[V]."""
        if self.settings.temperature == 0:
            return int(np.argmax(logits))
        probabilities = distribution(logits, self.settings)
        bounds = np.cumsum(probabilities)
        # Scaled to the last bound, for a sum of floats need not be exactly 1.
        place = np.searchsorted(bounds, self._random.random() * bounds[-1], side="right")
        return int(place)


def distribution(logits: npt.NDArray[np.float32], settings: Sampling) -> npt.NDArray[np.float64]:
    """Probabilities f64[V] after the filters, for a temperature over 0."""
    scaled = logits.astype(np.float64) / settings.temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: settings.top_k or None]
    weights = np.exp(scaled[kept] - scaled[kept[0]])
    weights /= weights.sum()
    # A token stays while the likelier ones before it have not reached top_p; the first always.
    before = np.cumsum(weights) - weights
    weights[(before >= settings.top_p) & (np.arange(len(kept)) > 0)] = 0
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights / weights.sum()
    return probabilities
