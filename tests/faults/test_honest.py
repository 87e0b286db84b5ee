"""No false alarm: builds in which nothing is wrong pass the default profile."""

from __future__ import annotations

from pathlib import Path

import pytest
from honest import LEAST, Honest, build_and_check, honest_builds

BUILDS = list(honest_builds())


def test_there_are_enough_builds_of_every_recipe_and_family() -> None:
    assert len(set(BUILDS)) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_an_honest_build_passes(build: Honest, tmp_path: Path) -> None:
    report = build_and_check(build, tmp_path)
    assert report.passed, report.first_failure
