from __future__ import annotations

import numpy as np
import pytest

from mllm_export.device_tests.bootstrap import paired_interval
from mllm_export.device_tests.distributions import (
    cosines,
    jensen_shannon,
    kl_divergence,
    log_softmax,
    next_token_nll,
    relative_error,
    top1_agreement,
)

LOGITS = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32) * 3
OTHER = np.random.default_rng(1).standard_normal((5, 11)).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_kl_is_the_sum_by_its_definition() -> None:
    p, q = probabilities(LOGITS), probabilities(OTHER)
    expected = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(log_softmax(LOGITS), log_softmax(OTHER)), expected)


def test_kl_of_large_logits_stays_finite() -> None:
    one, other = np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])
    assert kl_divergence(log_softmax(one), log_softmax(other))[0] == pytest.approx(1e4)


def test_jensen_shannon_is_symmetric_and_at_most_log_2() -> None:
    one, other = log_softmax(LOGITS), log_softmax(OTHER)
    np.testing.assert_allclose(jensen_shannon(one, other), jensen_shannon(other, one))
    apart = log_softmax(np.array([[500.0, 0.0]])), log_softmax(np.array([[0.0, 500.0]]))
    assert jensen_shannon(*apart)[0] == pytest.approx(np.log(2))


def test_next_token_nll_picks_the_token_that_follows() -> None:
    found = next_token_nll(log_softmax(LOGITS), np.array([3, 0, 1, 10, 2]))
    expected = -np.log(probabilities(LOGITS)[np.arange(5), [3, 0, 1, 10, 2]])
    np.testing.assert_allclose(found, expected)


def test_agreement_and_cosine_see_what_changed() -> None:
    changed = LOGITS.copy()
    changed[2, changed[2].argmin()] = 99
    assert top1_agreement(LOGITS, changed).tolist() == [True, True, False, True, True]
    assert cosines(LOGITS, 7 * LOGITS) == pytest.approx(np.ones(5))
    assert relative_error(LOGITS, 1.5 * LOGITS) == pytest.approx(0.5)


def test_the_paired_interval_covers_the_mean_and_narrows_with_samples() -> None:
    few = np.array([0, 0, 0, -1, 0, 0, 1, 0, 0, -1] * 5)
    low, high = paired_interval(few)
    assert low < few.mean() < high
    narrow = paired_interval(np.tile(few, 16))
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 4, rel=0.1)
    assert paired_interval(few) == (low, high)


def test_the_interval_of_no_difference_is_a_point() -> None:
    assert paired_interval(np.zeros(50)) == (0.0, 0.0)


def test_the_interval_agrees_with_the_normal_one_on_many_samples() -> None:
    values = np.random.default_rng(2).choice([-1, 0, 1], 4000, p=[0.1, 0.85, 0.05])
    low, high = paired_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)
