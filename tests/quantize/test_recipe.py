"""Recipes as data, and the layouts they choose."""

import pytest

from mllm_export.errors import RecipeError
from mllm_export.quantize.recipe import (
    Recipe,
    Rule,
    Storable,
    choose_layouts,
    load_recipe,
    recipe_names,
)
from mllm_export.quantize.selectors import Facts

UNTIED = [
    Storable(shape=(512, 256), names=("token_embd.weight",)),
    Storable(shape=(256, 256), names=("blk.0.attn_q.weight",)),
    Storable(shape=(256,), names=("blk.0.attn_norm.weight",)),
    Storable(shape=(512, 256), names=("output.weight",)),
]
TIED = [Storable(shape=(512, 256), names=("token_embd.weight", "output.weight")), *UNTIED[1:3]]


def recipe(*rules, **changes):
    table = {"name": "mine", "description": "", "tower_scheme": "f32", "decoder_scheme": "Q4_0"}
    return Recipe(**{**table, "decoder": tuple(rules), **changes})


def schemes(made, tensors):
    return [choice.scheme for choice in choose_layouts(made, tensors)]


def test_the_mixtures_of_llama_quantize_are_among_the_built_in_recipes():
    names = "f16 int4 int8 iq4_nl iq4_xs q2_k q3_k_l q3_k_m q3_k_s q4_0 q4_1 q4_k_m q4_k_s"
    assert {*names.split(), "q5_0", "q5_1", "q5_k_m", "q5_k_s", "q6_k", "q8_0"} <= set(
        recipe_names()
    )


@pytest.mark.parametrize(
    ("name", "untied", "tied"),
    [
        ("f16", ["F16", "F16", "F32", "F16"], ["F16", "F16", "F32"]),
        ("int8", ["Q8_0", "Q8_0", "F32", "Q8_0"], ["Q8_0", "Q8_0", "F32"]),
        ("int4", ["Q4_0", "Q4_0", "F32", "Q6_K"], ["Q6_K", "Q4_0", "F32"]),
    ],
)
def test_built_in_recipes_choose_as_llama_quantize(name, untied, tied):
    assert schemes(load_recipe(name), UNTIED) == untied
    assert schemes(load_recipe(name), TIED) == tied


def test_the_first_match_wins():
    made = recipe(Rule(tensors="*attn*", scheme="Q8_0"), Rule(tensors="*", scheme="Q4_0"))
    assert schemes(made, UNTIED[:3]) == ["Q4_0", "Q8_0", "F32"]


def test_a_rule_that_takes_nothing_is_an_error_unless_it_is_optional():
    last = Rule(tensors="*", scheme="Q4_0")
    with pytest.raises(RecipeError, match=r"rule 'blk\.\*\.ssm_\*' takes no tensor of this model;"):
        choose_layouts(recipe(Rule(tensors="blk.*.ssm_*", scheme="F32"), last), UNTIED)
    optional = Rule(tensors="blk.*.ssm_*", scheme="F32", optional=True)
    assert len(choose_layouts(recipe(optional, last), UNTIED)) == 4


def test_a_rule_behind_a_wider_one_is_an_error_that_names_it():
    made = recipe(Rule(tensors="*", scheme="Q4_0"), Rule(tensors="output.weight", scheme="Q6_K"))
    with pytest.raises(RecipeError, match=r"\(rule '\*' before it takes 'output.weight'\)"):
        choose_layouts(made, UNTIED)


def test_a_tensor_without_a_rule_is_an_error():
    with pytest.raises(RecipeError, match=r"no rule for tensor 'token_embd.weight'"):
        choose_layouts(recipe(Rule(tensors="blk.*", scheme="Q4_0")), UNTIED)


@pytest.mark.parametrize(
    ("asked", "cols", "chosen"),
    [
        ("Q6_K", 512, "Q6_K"),
        ("Q6_K", 288, "Q8_0"),
        ("Q6_K", 100, "F16"),
        ("Q4_K", 288, "Q5_0"),
        ("Q5_K", 288, "Q5_1"),
        ("Q4_0", 288, "Q4_0"),
        ("Q4_0", 100, "F16"),
        ("F16", 1, "F16"),
    ],
)
def test_rows_that_blocks_do_not_divide_fall_back_with_a_note(asked, cols, chosen):
    (choice,) = choose_layouts(
        recipe(Rule(tensors="*", scheme=asked)), [Storable(shape=(4, cols), names=("a.weight",))]
    )
    assert choice.scheme == chosen
    assert bool(choice.note) == (asked != chosen)
    if choice.note:
        assert (
            choice.note == f"{chosen} instead of {asked}: a row of {cols} is not whole blocks of it"
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tower_scheme": "w8a16"}, "unknown tower scheme 'w8a16'; did you mean w8a8"),
        ({"decoder_scheme": "Q4_2"}, "unknown decoder scheme 'Q4_2'; did you mean Q"),
        ({"decoder_scheme": "Q9_K_M"}, "unknown decoder scheme 'Q9_K_M'"),
        (
            {"decoder": (Rule(tensors="*", scheme="F16", layers="last 2"),)},
            r"rule '\*': layers = 'last 2' is no choice of layers; write all, more_bits, first N",
        ),
        (
            {"decoder": (Rule(tensors="*", scheme="q6k"),)},
            r"rule '\*': unknown decoder scheme 'q6k'",
        ),
        ({"decoder": ()}, r"has no \[\[decoder\]\] rules"),
    ],
)
def test_unknown_schemes_are_answered_with_near_names(changes, words):
    with pytest.raises(RecipeError, match=words):
        recipe(**{"decoder": (Rule(tensors="*", scheme="F16"),), **changes})


def test_unknown_recipes_are_answered_with_near_names():
    with pytest.raises(RecipeError, match=r"unknown recipe 'int5'; did you mean int"):
        load_recipe("int5")


def test_a_recipe_of_the_users_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "x"\ntower_scheme = "f32"\ndecoder_scheme = "Q8_0"\n'
        '[[decoder]]\ntensors = "*"\nscheme = "Q8_0"\n'
    )
    assert load_recipe(path).name == "mine"
    assert load_recipe(str(path)).decoder == (Rule(tensors="*", scheme="Q8_0"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tower = ", "not valid TOML"),
        ('description = "x"\n', "key 'tower_scheme'"),
        (
            'description = "x"\ntower_scheme = "f32"\ndecoder_scheme = "F16"\nkv = 1\ndecoder = []',
            "key 'kv': Unexpected keyword",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_key(text, words, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.toml is missing"):
        load_recipe(tmp_path / "none.toml")


def layers(count):
    return [Storable(shape=(8, 256), names=(f"blk.{at}.ffn_down.weight",)) for at in range(count)]


@pytest.mark.parametrize(
    ("word", "count", "expected"),
    [
        ("all", 3, [0, 1, 2]),
        ("first 2", 4, [0, 1]),
        ("first 1/8", 24, [0, 1, 2]),
        ("first 1/8", 4, []),
        ("more_bits", 4, [2, 3]),
        ("more_bits", 24, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]),
    ],
)
def test_a_rule_may_mean_some_of_the_layers(word, count, expected):
    some = Rule(tensors="*.ffn_down.weight", layers=word, scheme="Q6_K")
    chosen = schemes(recipe(some, Rule(tensors="*", scheme="Q4_K", optional=True)), layers(count))
    assert [at for at, scheme in enumerate(chosen) if scheme == "Q6_K"] == expected


@pytest.mark.parametrize(
    ("when", "facts", "holds"),
    [
        ("imatrix", Facts(imatrix=True), True),
        ("imatrix", Facts(), False),
        ("no imatrix", Facts(), True),
        ("gqa of 4", Facts(gqa=4), True),
        ("gqa of 4", Facts(gqa=3), False),
        ("gqa under 4", Facts(gqa=3), True),
    ],
)
def test_a_rule_may_wait_for_an_importance_matrix_or_grouped_heads(when, facts, holds):
    made = recipe(
        Rule(tensors="*.ffn_down.weight", when=when, scheme="Q6_K"),
        Rule(tensors="*", scheme="Q4_K", optional=True),
    )
    (choice,) = choose_layouts(made, layers(1), facts)
    assert choice.scheme == ("Q6_K" if holds else "Q4_K")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (256,)),
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.ssm_conv1d.weight", (512, 4)),
        ("blk.0.ssm_a", (512, 16)),
        ("position_embd.weight", (64, 256)),
    ],
)
def test_what_llama_cpp_keeps_in_float32_stays_so_whatever_the_recipe_says(name, shape):
    made = recipe(Rule(tensors="*", scheme="Q4_K"))
    (choice,) = choose_layouts(made, [Storable(shape=shape, names=(name,))])
    assert (choice.scheme, choice.note) == ("F32", "")
