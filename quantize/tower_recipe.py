"""Which scheme each tensor of tower and projector gets: ordered patterns, the first match wins."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from mllm_export.errors import RecipeError
from mllm_export.quantize.tower_scheme import require_tower_scheme, tower_scheme
from mllm_export.records import record

TowerRanges = Literal["minmax", "percentile", "entropy"]

_CONV_NOTE = "convolutions hold few of the weights"
_EMBEDDING_NOTE = "added, not multiplied"
_VECTOR_NOTE = "norms and biases act on float activations"


@record
class TowerRule:
    """Tensors whose stored name matches `tensors` (shell style) get `scheme`."""

    tensors: str
    """Of names such as tower.vision_model.encoder.layers.0.mlp.fc2.weight, or projector.*."""
    scheme: str
    """A file in quantize/tower_schemes."""
    optional: bool = False
    """True: a model may have no such tensor."""
    why: str = ""
    """For a rule that was found by measuring: what it rests on; it goes into the report."""


@record
class TowerTensor:
    """A tensor as the rules see it."""

    name: str
    shape: tuple[int, ...]
    is_product: bool
    """Whether it is the weight of a matrix product."""


@record
class TowerChoice:
    """What one tensor gets."""

    scheme: str
    note: str = ""
    """Why it is not what the recipe's own word says, if it is not."""


def tower_rules(rules: Sequence[TowerRule], scheme: str, where: str) -> tuple[TowerRule, ...]:
    """The rules in order, the last of them the word for all the rest.

    Raises: RecipeError for a word that is no scheme.
    """
    require_tower_scheme(scheme, where)
    for rule in rules:
        require_tower_scheme(rule.scheme, f"{where}, tower rule '{rule.tensors}'")
    return (*rules, TowerRule(tensors="*", scheme=scheme, optional=True))


def choose_tower_schemes(
    recipe: str, rules: Sequence[TowerRule], tensors: Sequence[TowerTensor]
) -> tuple[TowerChoice, ...]:
    """The scheme of every tensor, in order; the last of `rules` takes what is left.

    Raises: RecipeError for a rule that takes no tensor though it is not marked optional.
    """
    taken = [_first(rules, tensor) for tensor in tensors]
    for number, rule in enumerate(rules):
        if not rule.optional and number not in taken:
            raise RecipeError(
                f"recipe '{recipe}': tower rule '{rule.tensors}' takes no tensor of this model"
                f"{_shadow(rules, number, tensors)}; correct it, or mark it optional = true"
            )
    return tuple(
        _choice(rules[number], tensor) for number, tensor in zip(taken, tensors, strict=True)
    )


def _first(rules: Sequence[TowerRule], tensor: TowerTensor) -> int:
    return next(at for at, rule in enumerate(rules) if fnmatchcase(tensor.name, rule.tensors))


def _shadow(rules: Sequence[TowerRule], number: int, tensors: Sequence[TowerTensor]) -> str:
    """Which earlier rule took what this one names, if that is why it takes nothing."""
    for tensor in tensors:
        if fnmatchcase(tensor.name, rules[number].tensors):
            earlier = rules[_first(rules, tensor)].tensors
            return f" (rule '{earlier}' before it takes '{tensor.name}')"
    return ""


def _choice(rule: TowerRule, tensor: TowerTensor) -> TowerChoice:
    scheme = tower_scheme(rule.scheme)
    if not scheme.takes_products_alone or tensor.is_product:
        return TowerChoice(scheme=scheme.name, note=rule.why)
    return TowerChoice(scheme="f32", note=f"f32 instead of {scheme.name}: {_why_float(tensor)}")


def _why_float(tensor: TowerTensor) -> str:
    if len(tensor.shape) == 4:
        return _CONV_NOTE
    return _EMBEDDING_NOTE if "embedding" in tensor.name else _VECTOR_NOTE
