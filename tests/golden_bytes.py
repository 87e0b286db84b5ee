"""Print or check the hashes of the reference's artifacts, by recipe.

    python tests/golden_bytes.py > tests/golden_bytes.json

after a change that is meant to change what is written.

Held is every recipe whose values come from the checkpoint alone; the bytes then depend on the
versions of the tools and, where ggml searches for steps, on the compiler and architecture it was
built with. A recipe that calibrates is left out: it rests on what a model computes, and kernels
chosen by a CPU's features order sums otherwise.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mllm_export.export.tower_job import observes
from mllm_export.quantize.recipe import Recipe, load_recipe, recipe_names

ARTIFACTS = ("tower.onnx", "decoder.gguf")


def calibrates(recipe: Recipe) -> bool:
    """Whether bytes depend on what a model computes, and not on the checkpoint alone."""
    schemes = (recipe.tower_scheme, *(rule.scheme for rule in recipe.tower))
    measured = recipe.tower_floor > 0 or observes(schemes, recipe.tower_smoothing)
    return measured or recipe.weighs


def held_recipes() -> list[str]:
    """The built-in recipes whose bytes are recorded."""
    return [name for name in recipe_names() if not calibrates(load_recipe(name))]


def hashes(bundle: Path) -> dict[str, str]:
    """SHA-256 of each artifact."""
    return {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in ARTIFACTS}


def build(recipe: str, out: Path) -> Path:
    """The reference's bundle, unchecked, as a user would build it."""
    asked = [sys.executable, "-m", "mllm_export", "build", "reference", "--no-check"]
    asked += ["--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)]
    subprocess.run(asked, check=True, capture_output=True)
    return out


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = {name: hashes(build(name, Path(folder) / name)) for name in held_recipes()}
    sys.stdout.write(json.dumps(made, indent=2) + "\n")
