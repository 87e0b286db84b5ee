"""What several folders of tests need: the shipped checkpoints, built once for each recipe."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_export.bundle import Bundle, open_bundle

Build = Callable[[str], Bundle]


def builder(checkpoint: str, folder: Path) -> Build:
    """Builds a shipped checkpoint as a user would, checks and all, once for each recipe."""

    def build(recipe: str) -> Bundle:
        out = folder / recipe
        if not out.exists():
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "mllm_export", "build", checkpoint),
                    *("--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        return open_bundle(out)

    return build


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The reference checkpoint's bundles."""
    return builder("reference", tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def phi_bundle(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The bundles of the trained LLaVA-Phi."""
    return builder("reference-phi", tmp_path_factory.mktemp("reference_phi"))
