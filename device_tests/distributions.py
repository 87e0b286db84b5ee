"""Distances between answer distributions, in float64 from logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


def log_softmax(logits: Array) -> Doubles:
    """Shapes: [rows, V] -> f64[rows, V], natural logarithms."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)), np.float64)


def kl_divergence(reference: Doubles, export: Doubles) -> Doubles:
    """KL(reference || export) per row, in nats, from log-probabilities.

    Shapes: f64[rows, V] twice -> f64[rows].
    """
    per_row = (np.exp(reference) * (reference - export)).sum(axis=-1)
    return np.asarray(np.maximum(per_row, 0.0), np.float64)


def jensen_shannon(one: Doubles, other: Doubles) -> Doubles:
    """Jensen-Shannon divergence per row, in nats, from log-probabilities; at most log 2.

    Shapes: f64[rows, V] twice -> f64[rows].
    """
    middle = np.logaddexp(one, other) - np.log(2.0)
    return np.asarray((kl_divergence(one, middle) + kl_divergence(other, middle)) / 2, np.float64)


def top1_agreement(reference: Array, export: Array) -> npt.NDArray[np.bool_]:
    """Whether the likeliest token is the same. Shapes: [rows, V] twice -> bool[rows]."""
    return np.asarray(reference.argmax(axis=-1) == export.argmax(axis=-1))


def next_token_nll(logs: Doubles, next_ids: Array) -> Doubles:
    """Negative log-likelihood of the tokens that follow, in nats.

    Shapes: f64[rows, V], i64[rows] -> f64[rows].
    """
    return np.asarray(-logs[np.arange(len(next_ids)), next_ids], np.float64)


def cosines(one: Array, other: Array) -> Doubles:
    """Cosine of each row with its counterpart. Shapes: [rows, D] twice -> f64[rows]."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny))


def relative_error(reference: Array, export: Array) -> float:
    """Norm of the difference over the norm of the reference."""
    a, b = reference.astype(np.float64), export.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.finfo(np.float64).tiny))
