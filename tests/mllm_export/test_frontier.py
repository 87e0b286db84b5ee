"""Assignments are told in few words, and none of their groups is lost."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mllm_export.frontier import FrontierPoint, schemes_text

GROUPS = ("tower.layers.0", "tower.layers.1", "projector", "blk.0", "blk.1", "blk.2", "output")


def told(schemes):
    pairs = tuple(schemes)
    point = FrontierPoint(size_bytes=1, predicted_kl=0.0, measured_kl=0.0, schemes=pairs)
    return schemes_text(point)


def test_layers_that_follow_each_other_are_one_word():
    text = told([*((g, "Q4_K") for g in GROUPS[:2]), *((g, "Q6_K") for g in GROUPS[2:])])
    assert text == "Q4_K: tower.layers.0-1; Q6_K: projector blk.0-2 output"
    assert told([("blk.8", "a"), ("blk.9", "a"), ("blk.10", "a")]) == "a: blk.8-10"
    assert told([("blk.0", "a"), ("blk.2", "a")]) == "a: blk.0 blk.2"


@given(st.lists(st.sampled_from("abc"), min_size=12, max_size=12))
def test_every_group_can_be_read_back(schemes):
    groups = [f"blk.{at}" for at in range(12)]
    found = {}
    for part in told(zip(groups, schemes, strict=True)).split("; "):
        scheme, _, words = part.partition(": ")
        for first, last in re.findall(r"blk\.(\d+)(?:-(\d+))?", words):
            for at in range(int(first), int(last or first) + 1):
                found[f"blk.{at}"] = scheme
    assert found == dict(zip(groups, schemes, strict=True))
