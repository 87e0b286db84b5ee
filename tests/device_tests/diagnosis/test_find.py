"""Planted faults are blamed on their part, and the walk stops at the layer they are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from planted import redrawn, respecified, rewritten_key, swapped_tensors

from mllm_export.bundle import Bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.diagnosis.find import diagnose
from mllm_export.diagnosis import PARTS, Diagnosis
from mllm_export.errors import CheckError

Plant = Callable[[Bundle], Bundle]


def other_tower(bundle: Bundle) -> Bundle:
    redrawn(bundle.path("tower"), "tower.")
    return bundle


def tower_layer(bundle: Bundle) -> Bundle:
    redrawn(bundle.path("tower"), "tower.vision_model.encoder.layers.1.mlp.fc1.weight")
    return bundle


def other_projector(bundle: Bundle) -> Bundle:
    redrawn(bundle.path("tower"), "projector.")
    return bundle


def decoder_layer(bundle: Bundle) -> Bundle:
    swapped_tensors(bundle.path("decoder"), "blk.2.ffn_gate.weight", "blk.2.ffn_up.weight")
    return bundle


def other_head(bundle: Bundle) -> Bundle:
    swapped_tensors(bundle.path("decoder"), "output.weight", "token_embd.weight")
    return bundle


def other_mean(bundle: Bundle) -> Bundle:
    def change(spec):
        (encoder,) = spec.encoders
        image = replace(encoder.image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return replace(spec, encoders=(replace(encoder, image=image),))

    return respecified(bundle, change)


def no_system_prompt(bundle: Bundle) -> Bundle:
    return respecified(
        bundle, lambda spec: replace(spec, prompt=replace(spec.prompt, before="USER: "))
    )


def rope_base(bundle: Bundle) -> Bundle:
    rewritten_key(bundle.path("decoder"), "llama.rope.freq_base", 500000.0)
    return bundle


FAULTS: list[tuple[Plant, str, str, str]] = [
    (other_tower, "tower", "embeddings", "tower.vision_model"),
    (tower_layer, "tower", "vision_model.encoder.layers.1", "layers.1.mlp.fc1.weight"),
    (other_projector, "projector", "model.mm_projector.mlp.mlp.0.weight", "projector."),
    (decoder_layer, "decoder", "model.layers.2", "blk.2.ffn_gate.weight"),
    (other_mean, "preprocessing", "", "another mean and std"),
    (no_system_prompt, "prompt", "", "A chat between"),
    (rope_base, "engine", "", "llama.rope.freq_base is 500000"),
]


@pytest.mark.parametrize(
    ("plant", "part", "layer", "text"), FAULTS, ids=[plant.__name__ for plant, *_ in FAULTS]
)
def test_a_planted_fault_is_blamed_on_its_part(
    plant: Plant, part: str, layer: str, text: str, broken: Bundle, checkpoint: Checkpoint
) -> None:
    found = diagnose(plant(broken), checkpoint)
    assert found.blamed == part, found.sentence
    assert text in found.sentence
    first = found.walk.first if found.walk else None
    assert (first.name if first else "") == layer
    worst = max(found.parts, key=lambda one: one.share)
    assert worst.name == part
    assert worst.mended_kl > 0.5 * found.kl


def test_two_faults_are_both_outside_and_the_costlier_is_blamed(
    broken: Bundle, checkpoint: Checkpoint
) -> None:
    found = diagnose(no_system_prompt(decoder_layer(broken)), checkpoint)
    outside = {one.name for one in found.parts if one.outside}
    assert outside == {"prompt", "decoder"}
    assert found.blamed in outside
    assert "Outside its limit too: " in found.sentence


def test_an_honest_export_blames_nothing(honest: Diagnosis) -> None:
    assert honest.blamed == ""
    assert honest.sentence.startswith("No part leaves its limit.")
    assert [one.name for one in honest.parts] == list(PARTS)
    assert honest.kl < 1e-4


def test_parts_that_are_equal_to_the_bit_cost_nothing(honest: Diagnosis) -> None:
    shares = {one.name: one for one in honest.parts}
    for name in ("preprocessing", "prompt"):
        assert (shares[name].alone_kl, shares[name].mended_kl, shares[name].share) == (0, 0, 0)


def test_shares_and_interaction_make_up_the_whole(honest: Diagnosis) -> None:
    assert sum(one.share for one in honest.parts) + honest.interaction == pytest.approx(1)


@pytest.mark.parametrize(("kv", "blamed"), [("q8_0", ""), ("q4_0", "kv")])
def test_a_narrow_kv_cache_is_blamed_and_a_wide_one_is_not(
    kv: str, blamed: str, trained: Bundle, checkpoint: Checkpoint
) -> None:
    found = diagnose(trained, checkpoint, kv=kv)
    assert found.blamed == blamed, found.sentence
    assert any(kv in note for note in found.notes)


def test_an_unknown_kv_type_is_answered_with_those_there_are(
    trained: Bundle, checkpoint: Checkpoint
) -> None:
    with pytest.raises(CheckError, match=r"unknown KV cache type 'q3'.*known: f32, f16"):
        diagnose(trained, checkpoint, kv="q3")
