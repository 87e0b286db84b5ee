"""Peers are asked the same, and what they take is set side by side."""

from pathlib import Path

import pytest

from mllm_export.device_tests.benchmarks import answering
from mllm_export.device_tests.peer import PEERS, Errand, Files, Outcome, Spent
from mllm_export.errors import CheckError


def errand(peer: str, files: Files) -> Errand:
    return Errand(peer=peer, files=files, threads=1, tokens=2, context_tokens=256, asks=())


def test_every_peer_can_be_named() -> None:
    assert {"llama_cpp", "openvino", "ours", "torch_bfloat16", "torch_float32"} <= set(
        PEERS.names()
    )


@pytest.mark.parametrize(
    ("peer", "named"), [("llama_cpp", "mmproj"), ("torch_float32", "checkpoint")]
)
def test_a_file_that_a_peer_needs_and_was_not_given_is_named(peer: str, named: str) -> None:
    with (
        pytest.raises(CheckError, match=named),
        PEERS[peer](errand(peer, Files(bundle=Path("none")))),
    ):
        pass


def outcome(tower_ms: float, prefill_ms: float | None) -> Outcome:
    spent = Spent(preprocess_ms=1.0, tower_ms=tower_ms, prefill_ms=prefill_ms)
    return Outcome(load_ms=100.0, spent=(spent, spent), peak_mib=50)


def test_ratios_are_taken_within_a_round() -> None:
    # Ours is always half of the peer, while the machine slows down tenfold between the rounds.
    rounds = [[outcome(10 * slow, 1.0), outcome(20 * slow, None)] for slow in (1, 10, 10)]
    lines = answering._table(["ours", "peer"], rounds, 1)
    (tower,) = (line for line in lines if line.startswith("| tower"))
    assert tower == "| tower | 100.0 | 200.0 (0.50) |"
    (first,) = (line for line in lines if line.startswith("| first token"))
    assert first == "| first token | 102.0 |  |", "a peer without a decoder has no first token"
