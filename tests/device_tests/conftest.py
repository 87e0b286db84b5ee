"""A tiny original, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.references.mobilevlm import MobileVlmReference


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    from tests.device_tests.original import write_original

    folder = tmp_path_factory.mktemp("original") / "checkpoint"
    return folder, write_original(folder)


@pytest.fixture(scope="session")
def reference(original: tuple[Path, dict]) -> MobileVlmReference:
    return MobileVlmReference(Checkpoint(original[0]))
