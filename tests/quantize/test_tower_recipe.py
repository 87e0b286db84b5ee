"""Rules for tower and projector: order, rules that take nothing, and what stays float."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.errors import RecipeError
from mllm_export.quantize.recipe import load_recipe
from mllm_export.quantize.tower_recipe import (
    TowerRule,
    TowerTensor,
    choose_tower_schemes,
    tower_rules,
)
from mllm_export.quantize.tower_scheme import tower_scheme, tower_scheme_names

TENSORS = (
    TowerTensor(name="tower.embeddings.patch.weight", shape=(8, 3, 2, 2), is_product=False),
    TowerTensor(name="tower.layers.0.fc1.weight", shape=(8, 16), is_product=True),
    TowerTensor(name="tower.layers.0.fc1.bias", shape=(16,), is_product=False),
    TowerTensor(name="projector.0.weight", shape=(8, 4), is_product=True),
)


def chosen(scheme, *rules):
    found = choose_tower_schemes("mine", tower_rules(rules, scheme, "mine"), TENSORS)
    return [one.scheme for one in found]


def test_the_recipes_word_is_for_what_no_rule_takes():
    rule = TowerRule(tensors="projector.*", scheme="w4g32")
    assert chosen("w8a8", rule) == ["f32", "w8a8", "f32", "w4g32"]
    assert chosen("f16") == ["f16"] * 4


def test_the_first_match_wins():
    first = TowerRule(tensors="*.fc1.*", scheme="f16")
    second = TowerRule(tensors="*", scheme="w8a8")
    assert chosen("f32", first, second) == ["f32", "f16", "f16", "w8a8"]


def test_what_stays_float_says_why():
    found = choose_tower_schemes("mine", tower_rules((), "w8a8", "mine"), TENSORS)
    assert [one.note for one in found] == [
        "f32 instead of w8a8: convolutions hold few of the weights",
        "",
        "f32 instead of w8a8: norms and biases act on float activations",
        "",
    ]


def test_a_rule_that_takes_nothing_is_an_error_unless_it_is_optional():
    idle = TowerRule(tensors="tower.layers.9.*", scheme="f16")
    with pytest.raises(RecipeError, match=r"'tower\.layers\.9\.\*' takes no tensor of this model;"):
        chosen("w8a8", idle)
    assert chosen("w8a8", TowerRule(tensors=idle.tensors, scheme="f16", optional=True))
    late = TowerRule(tensors="projector.*", scheme="f16")
    before = TowerRule(tensors="*", scheme="w8a8")
    with pytest.raises(RecipeError, match=r"rule '\*' before it takes 'projector\.0\.weight'"):
        chosen("w8a8", before, late)


def test_a_scheme_that_is_none_is_answered_with_near_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "x"\ntower_scheme = "w8a8"\ndecoder_scheme = "Q8_0"\n'
        '[[tower]]\ntensors = "projector.*"\nscheme = "w4g64"\n'
        '[[decoder]]\ntensors = "*"\nscheme = "Q8_0"\n'
    )
    words = r"tower rule 'projector\.\*': unknown tower scheme 'w4g64'; did you mean w4g"
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


@given(st.sampled_from(tower_scheme_names()), st.integers(1, 300), st.integers(1, 40))
def test_bits_per_weight_are_those_of_the_scheme(name, rows, columns):
    scheme = tower_scheme(name)
    parts = scheme.parts((rows, columns))
    values = parts[0]
    padded = -(-rows // scheme.block) * scheme.block if scheme.block else rows
    assert 8 * values.size_bytes == scheme.bits * padded * columns
    assert len({part.ending for part in parts}) == len(parts)
