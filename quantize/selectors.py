"""Words of a recipe for some of the layers, and for what must hold for a rule to count."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from mllm_export.errors import RecipeError
from mllm_export.records import record

Selector = Callable[[int, int], bool]
"""Layer's number and count of layers to whether it is meant."""

When = Literal["always", "imatrix", "no imatrix", "gqa of 4", "gqa under 4"]
"""gqa is the number of query heads that share a key head."""

_FIRST = re.compile(r"first (?:1/)?([1-9][0-9]*)")


@record
class Facts:
    """What rules may ask about a model and its build."""

    imatrix: bool = False
    """Whether an importance matrix is there."""
    gqa: int = 1
    """Query heads that share a key head."""

    def hold(self, when: When) -> bool:
        """Whether a rule with that word counts."""
        return {
            "always": True,
            "imatrix": self.imatrix,
            "no imatrix": not self.imatrix,
            "gqa of 4": self.gqa >= 4,
            "gqa under 4": self.gqa < 4,
        }[when]


def layer_selector(word: str, where: str) -> Selector:
    """`all`, `more_bits`, `first N` or `first 1/N`.

    Raises: RecipeError for another word.
    """
    if word == "all":
        return lambda _layer, _count: True
    if word == "more_bits":
        return _more_bits
    found = _FIRST.fullmatch(word)
    if found is None:
        raise RecipeError(
            f"{where}: layers = '{word}' is no choice of layers; "
            "write all, more_bits, first N or first 1/N"
        )
    number = int(found[1])
    if "/" in word:
        return lambda layer, count: layer < count // number
    return lambda layer, _count: layer < number


def _more_bits(layer: int, count: int) -> bool:
    """The first and last eighth, and every third between.

    Source: llama.cpp, src/llama-quant.cpp, use_more_bits.
    """
    eighth = count // 8
    return layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2
