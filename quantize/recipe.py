"""Recipes: which scheme each tensor gets, as ordered patterns; the first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

from mllm_export.catalog import unknown
from mllm_export.errors import RecipeError
from mllm_export.quantize.scheme import (
    Choice,
    fit_layout,
    require_layout,
    require_tower_scheme,
)
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.quantize.recipes"


@record
class Rule:
    """Tensors whose stored name matches `tensors` (shell style) get `scheme`."""

    tensors: str
    scheme: str
    optional: bool = False
    """True: a model may have no such tensor."""


@record
class Recipe:
    """One file of quantize/recipes, or a TOML file of the user's."""

    name: str
    description: str
    tower_scheme: str
    """For tower and projector together."""
    decoder_scheme: str
    """The word for the whole LLM file: what most of its weights get."""
    decoder: tuple[Rule, ...]
    """Patterns of GGUF names."""

    def __post_init__(self) -> None:
        """Refuse schemes that do not exist, and a recipe without rules."""
        require_tower_scheme(self.tower_scheme, f"recipe '{self.name}'")
        require_layout(self.decoder_scheme, f"recipe '{self.name}'")
        if not self.decoder:
            raise RecipeError(f"recipe '{self.name}' has no [[decoder]] rules; end it with '*'")
        for rule in self.decoder:
            require_layout(rule.scheme, f"recipe '{self.name}', rule '{rule.tensors}'")


@record
class Storable:
    """A tensor as a recipe sees it."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    """Its stored name, then others it answers to: a tied embedding is the output head too."""


def recipe_names() -> list[str]:
    """The built-in recipes."""
    entries = files(_PACKAGE).iterdir()
    return sorted(e.name[:-5] for e in entries if e.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Recipe:
    """A built-in recipe by name, or a file whose name ends in .toml.

    Raises: RecipeError for an unknown name (with the near ones), key or scheme.
    """
    if str(name).endswith(".toml"):
        path = Path(name)
        return _recipe(path.stem, read_toml(path, RecipeError), str(name))
    known = recipe_names()
    if name not in known:
        raise RecipeError(unknown("recipe", str(name), known) + "; or give a .toml file")
    return _recipe(
        str(name), read_toml(files(_PACKAGE) / f"{name}.toml", RecipeError), f"{name}.toml"
    )


def choose_layouts(recipe: Recipe, tensors: Sequence[Storable]) -> tuple[Choice, ...]:
    """The layout of every decoder tensor, in order.

    Raises: RecipeError for a tensor that no rule takes, and for a rule that takes no tensor
    though it is not marked optional.
    """
    taken = [_first_match(recipe, tensor) for tensor in tensors]
    for number, rule in enumerate(recipe.decoder):
        if not rule.optional and number not in taken:
            raise RecipeError(
                f"recipe '{recipe.name}': rule '{rule.tensors}' takes no tensor of this model"
                f"{_shadow(recipe, number, tensors)}; correct it, or mark it optional = true"
            )
    return tuple(
        fit_layout(recipe.decoder[number].scheme, tensor.shape)
        for number, tensor in zip(taken, tensors, strict=True)
    )


def _recipe(name: str, table: Mapping[str, object], where: str) -> Recipe:
    return from_plain(Recipe, {"name": name, **table}, where, RecipeError)


def _first_match(recipe: Recipe, tensor: Storable) -> int:
    for number, rule in enumerate(recipe.decoder):
        if _matches(rule, tensor):
            return number
    raise RecipeError(
        f"recipe '{recipe.name}' has no rule for tensor '{tensor.names[0]}'; end it with '*'"
    )


def _matches(rule: Rule, tensor: Storable) -> bool:
    return any(fnmatchcase(name, rule.tensors) for name in tensor.names)


def _shadow(recipe: Recipe, number: int, tensors: Sequence[Storable]) -> str:
    """Which earlier rule took what this one names, if that is why it takes nothing."""
    for tensor in tensors:
        if _matches(recipe.decoder[number], tensor):
            earlier = recipe.decoder[_first_match(recipe, tensor)]
            return f" (rule '{earlier.tensors}' before it takes '{tensor.names[0]}')"
    return ""
