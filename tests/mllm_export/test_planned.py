"""What a bundle remembers of its plan is all of it, and short."""

from __future__ import annotations

import pytest

from mllm_export.commands.opening import plan_job
from mllm_export.export.planned_storage import planned_storage, remembered
from mllm_export.planned import PlannedScheme, recall, remember
from mllm_export.quantize.recipe import recipe_names


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_scheme_of_every_planned_tensor_is_remembered(recipe: str) -> None:
    plan = plan_job("reference", "linux-x86_64-vnni", recipe, None, False).plan
    schemes = {name: scheme for name, (scheme, _) in planned_storage(plan).items()}
    assert {"tower", "decoder"} <= {artifact.role for artifact in plan.artifacts}
    assert recall(remembered(plan), schemes) == schemes


def test_layers_that_are_alike_are_one_word_and_others_have_their_own_names() -> None:
    names = [f"blk.{layer}.{part}.weight" for layer in range(32) for part in ("up", "down")]
    schemes = dict.fromkeys(names, "Q4_0") | {"blk.3.down.weight": "Q4_1", "output.weight": "Q6_K"}
    found = remember(schemes)
    words = {one.scheme: one.tensors for one in found}
    assert words["Q4_1"] == ("blk.3.down.weight",)
    assert words["Q4_0"][0] == "blk.*.up.weight"
    assert len(words["Q4_0"]) == 1 + 31
    assert recall(found, schemes) == schemes


def test_a_digit_in_a_word_is_no_layers_number() -> None:
    found = remember({"layer1.weight": "f32", "layer2.weight": "w8a8", "0.bias": "f32"})
    assert found == (
        PlannedScheme(scheme="f32", tensors=("layer1.weight", "*.bias")),
        PlannedScheme(scheme="w8a8", tensors=("layer2.weight",)),
    )


def test_a_tensor_that_was_not_planned_has_no_scheme() -> None:
    found = remember({"blk.0.up.weight": "Q4_0"})
    assert recall(found, ["blk.7.up.weight", "blk.0.down.weight"]) == {"blk.7.up.weight": "Q4_0"}
