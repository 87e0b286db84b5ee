"""What several folders of tests need: the reference checkpoint, built once for each recipe."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from mllm_export.bundle import Bundle, open_bundle

Build = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The reference checkpoint as `mllm-export build` leaves it, checks and all."""
    folder = tmp_path_factory.mktemp("reference")

    def build(recipe: str) -> Bundle:
        out = folder / recipe
        if not out.exists():
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "mllm_export", "build", "reference"),
                    *("--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        return open_bundle(out)

    return build
