"""Print or check the hashes of the reference's artifacts, by recipe.

    python tests/golden_bytes.py > tests/golden_bytes.json

after a change that is meant to change what is written.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ("f16", "int8", "int4", "q4_k_m")
ARTIFACTS = ("tower.onnx", "decoder.gguf")


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
        made = {name: hashes(build(name, Path(folder) / name)) for name in RECIPES}
    sys.stdout.write(json.dumps(made, indent=2) + "\n")
