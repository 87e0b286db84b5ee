"""Recipes: which scheme each tensor gets, as ordered patterns; the first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

from mllm_export.catalog import unknown
from mllm_export.errors import RecipeError
from mllm_export.kv_cache import KvType
from mllm_export.quantize.kept import is_kept
from mllm_export.quantize.method import METHODS
from mllm_export.quantize.scheme import (
    Choice,
    fit_layout,
    require_file_word,
    require_layout,
)
from mllm_export.quantize.selectors import Facts, When, layer_selector
from mllm_export.quantize.tower_recipe import TowerRanges, TowerRule, tower_rules
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.quantize.recipes"


@record
class Rule:
    """Tensors whose stored name matches `tensors` (shell style) get `scheme`."""

    tensors: str
    scheme: str
    layers: str = "all"
    """Which of the tensors that match, counted in order: see `selectors.layer_selector`."""
    when: When = "always"
    optional: bool = False
    """True: a model may have no such tensor."""


@record
class Recipe:
    """One file of quantize/recipes, or a TOML file of the user's."""

    name: str
    description: str
    tower_scheme: str
    """The word for tower and projector: what no rule of `tower` takes."""
    decoder_scheme: str
    """The word for the whole LLM file: a layout, or a mixture of llama.cpp's such as Q4_K_M."""
    decoder: tuple[Rule, ...]
    """Patterns of GGUF names."""
    tower: tuple[TowerRule, ...] = ()
    """Patterns of names in the tower's graph."""
    tower_ranges: TowerRanges = "minmax"
    """How calibration pictures give the range of static 8-bit activations."""
    tower_smoothing: bool = False
    """Whether outlying activations of 8-bit products are moved into the weights behind a norm."""
    tower_floor: float = 0.0
    """Least cosine of the worst image token, quantized tower against float graph, on calibration
    pictures: layers that cost most stay float32 until it is kept. 0: nothing is measured."""
    decoder_methods: tuple[str, ...] = ()
    """Files in quantize/methods that choose values, in order, before a layout stores them."""
    decoder_importance: bool = False
    """Whether errors are weighed by an importance matrix, gathered on calibration sequences."""
    kv_cache: KvType = "f16"
    """How the device stores keys and values."""

    def __post_init__(self) -> None:
        """Refuse schemes and methods that do not exist, and a recipe without rules."""
        tower_rules(self.tower, self.tower_scheme, f"recipe '{self.name}'")
        require_file_word(self.decoder_scheme, f"recipe '{self.name}'")
        if not 0 <= self.tower_floor < 1:
            raise RecipeError(
                f"recipe '{self.name}': tower_floor is {self.tower_floor:g}, a cosine from 0 to "
                "below 1 is needed, such as 0.995"
            )
        if not self.decoder:
            raise RecipeError(f"recipe '{self.name}' has no [[decoder]] rules; end it with '*'")
        for rule in self.decoder:
            where = f"recipe '{self.name}', rule '{rule.tensors}'"
            require_layout(rule.scheme, where)
            layer_selector(rule.layers, where)
        for method in self.decoder_methods:
            if method not in METHODS.names():
                text = unknown("quantization method", method, METHODS.names())
                raise RecipeError(f"recipe '{self.name}', decoder_methods: {text}")

    @property
    def needs_inputs(self) -> bool:
        """Whether a method works on what calibration sees of every layer."""
        return any(METHODS[method].needs_inputs for method in self.decoder_methods)

    @property
    def weighs(self) -> bool:
        """Whether an importance matrix is at hand when the decoder is stored."""
        return self.decoder_importance or self.needs_inputs


@record
class Storable:
    """A tensor as a recipe sees it."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    """Its stored name, then others it answers to: a tied embedding is the output head too."""
    least: str = ""
    """A layout with fewer bits is not taken for it; empty: any is."""


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


def choose_layouts(
    recipe: Recipe, tensors: Sequence[Storable], facts: Facts | None = None
) -> tuple[Choice, ...]:
    """The layout of every decoder tensor, in order; `Facts()` where none are given.

    Raises: RecipeError for a tensor that no rule takes, and for a rule that takes no tensor
    though it is not marked optional.
    """
    taken = _taken(recipe, tensors, facts or Facts())
    for number, rule in enumerate(recipe.decoder):
        idle = number not in taken and not rule.optional
        if idle and not _waits(recipe, number, tensors, facts or Facts()):
            raise RecipeError(
                f"recipe '{recipe.name}': rule '{rule.tensors}' takes no tensor of this model"
                f"{_shadow(recipe, number, tensors, taken)}; correct it, or mark it "
                "optional = true"
            )
    return tuple(
        Choice(scheme="F32")
        if is_kept(tensor.names[0], tensor.shape)
        else fit_layout(recipe.decoder[number].scheme, tensor.shape, tensor.least)
        for number, tensor in zip(taken, tensors, strict=True)
    )


def _recipe(name: str, table: Mapping[str, object], where: str) -> Recipe:
    return from_plain(Recipe, {"name": name, **table}, where, RecipeError)


def _taken(recipe: Recipe, tensors: Sequence[Storable], facts: Facts) -> list[int]:
    """The number of each tensor's rule."""
    matches = [_Matches.of(rule, tensors, facts) for rule in recipe.decoder]
    return [_first(recipe, matches, at, tensor) for at, tensor in enumerate(tensors)]


@record
class _Matches:
    """Places of the tensors that a rule names, and of those in the layers it means."""

    named: tuple[int, ...]
    meant: frozenset[int]

    @classmethod
    def of(cls, rule: Rule, tensors: Sequence[Storable], facts: Facts) -> _Matches:
        named = tuple(at for at, tensor in enumerate(tensors) if _matches(rule, tensor))
        selects = layer_selector(rule.layers, rule.tensors)
        meant = (at for layer, at in enumerate(named) if selects(layer, len(named)))
        return cls(named=named, meant=frozenset(meant if facts.hold(rule.when) else ()))


def _first(recipe: Recipe, matches: Sequence[_Matches], at: int, tensor: Storable) -> int:
    for number, match in enumerate(matches):
        if at in match.meant:
            return number
    raise RecipeError(
        f"recipe '{recipe.name}' has no rule for tensor '{tensor.names[0]}'; end it with '*'"
    )


def _matches(rule: Rule, tensor: Storable) -> bool:
    return any(fnmatchcase(name, rule.tensors) for name in tensor.names)


def _waits(recipe: Recipe, number: int, tensors: Sequence[Storable], facts: Facts) -> bool:
    """Whether the rule names tensors, but none in this build: too few layers, or not its time."""
    match = _Matches.of(recipe.decoder[number], tensors, facts)
    return bool(match.named) and not match.meant


def _shadow(recipe: Recipe, number: int, tensors: Sequence[Storable], taken: Sequence[int]) -> str:
    """Which earlier rule took what this one names, if that is why it takes nothing."""
    for tensor, by in zip(tensors, taken, strict=True):
        if _matches(recipe.decoder[number], tensor):
            earlier = recipe.decoder[by]
            return f" (rule '{earlier.tensors}' before it takes '{tensor.names[0]}')"
    return ""
