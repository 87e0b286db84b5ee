"""A trained bundle in float16, and faults planted into copies of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.build import build
from mllm_export.commands.opening import open_checkpoint
from mllm_export.device_tests.diagnosis import find
from mllm_export.diagnosis import Diagnosis

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def few_questions() -> None:
    torch.set_num_threads(1)
    find.QUESTIONS = 8


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint("reference", None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The reference checkpoint in float16, unchecked; do not change it."""
    out = tmp_path_factory.mktemp("diagnosis") / "f16"
    build("reference", "linux-x86_64", out, recipe="f16", no_check=True)
    return open_bundle(out)


@pytest.fixture(scope="session")
def honest(trained: Bundle, checkpoint: Checkpoint) -> Diagnosis:
    return find.diagnose(trained, checkpoint)


@pytest.fixture
def broken(trained: Bundle, tmp_path: Path) -> Bundle:
    """A copy to plant a fault in; its hashes are not looked at."""
    shutil.copytree(trained.folder, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle", trained.manifest)
