from __future__ import annotations

import numpy as np
import pytest

from mllm_export.errors import EngineError
from mllm_export.runtimes.sampling import Sampler, Sampling, distribution

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def test_greedy_takes_the_largest() -> None:
    assert Sampler(Sampling())(LOGITS) == 1
    assert Sampler(Sampling(top_k=3, top_p=0.1, seed=9))(LOGITS) == 1


def test_a_temperature_of_one_leaves_the_softmax() -> None:
    found = distribution(LOGITS, Sampling(temperature=1.0))
    np.testing.assert_allclose(found, [0.1, 0.4, 0.05, 0.3, 0.15], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {1, 3}),
        (Sampling(temperature=1.0, top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1.0, top_p=0.6), {1, 3}),
        (Sampling(temperature=1.0, top_p=0.71), {1, 3, 4}),
        (Sampling(temperature=1.0, top_p=0.01), {1}),
        (Sampling(temperature=1.0, top_k=4, top_p=0.7), {1, 3}),
        (Sampling(temperature=0.01), {1}),
    ],
    ids=["top 2", "top 99", "p 0.6", "p 0.71", "p tiny", "k then p", "cold"],
)
def test_filters_keep_the_likeliest(settings: Sampling, kept: set[int]) -> None:
    found = distribution(LOGITS, settings)
    assert {int(token) for token in np.flatnonzero(found > 1e-9)} == kept
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.5, top_k=20),
        Sampling(temperature=0.9, top_p=0.8),
        Sampling(temperature=1.3, top_k=50, top_p=0.95),
    ],
)
def test_the_distribution_equals_transformers(settings: Sampling) -> None:
    import torch
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = np.random.default_rng(0).standard_normal(300).astype(np.float32) * 3
    scores = torch.from_numpy(logits)[None]
    scores = TemperatureLogitsWarper(settings.temperature)(None, scores)
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    wanted = torch.softmax(scores, -1)[0].numpy()
    np.testing.assert_allclose(distribution(logits, settings), wanted, atol=1e-6)


def test_draws_follow_the_distribution_and_the_seed() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    drawn = [sampler(LOGITS) for _ in range(4000)]
    # Five standard deviations of a share of 0.4 in 4000 draws are 0.039.
    np.testing.assert_allclose(np.bincount(drawn) / 4000, np.exp(LOGITS), atol=0.04)
    again = Sampler(Sampling(temperature=1.0, seed=3))
    assert [again(LOGITS) for _ in range(50)] == drawn[:50]
    other = Sampler(Sampling(temperature=1.0, seed=4))
    assert [other(LOGITS) for _ in range(50)] != drawn[:50]


def test_extreme_logits_do_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 0], np.float32)
    assert Sampler(Sampling(temperature=1e-3))(logits) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed -1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Sampling(**changes)
