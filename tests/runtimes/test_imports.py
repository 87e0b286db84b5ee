"""The runtime ships to devices: what it imports is part of its contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HEAVY = {"torch", "torchvision", "transformers", "gguf", "onnx", "safetensors", "sentencepiece"}

ANSWER = """
from mllm_export.runtimes import load
with load({bundle!r}, threads=1) as session:
    steps = list(session.generate("what is this?", {image!r}, max_tokens=3))
assert steps
"""


def imported_by(code: str) -> set[str]:
    """Top-level names of every module that Python imports to run `code`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_naming_load_imports_no_engine() -> None:
    names = imported_by("from mllm_export.runtimes import load")
    assert not names & (HEAVY | {"numpy", "PIL", "onnxruntime", "llama_cpp", "pydantic"})


def test_loading_and_answering_imports_no_torch_and_no_transformers(
    bundle: Path, tmp_path: Path, picture: Image.Image
) -> None:
    picture.save(tmp_path / "picture.png")
    code = ANSWER.format(bundle=str(bundle), image=str(tmp_path / "picture.png"))
    names = imported_by(code)
    assert {"onnxruntime", "llama_cpp", "numpy"} <= names
    assert not names & HEAVY


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_check_sees_a_heavy_import(name: str) -> None:
    assert name in imported_by(f"import {name}")
