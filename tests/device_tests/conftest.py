"""A tiny original, written once, and a context in which everything is as it should be."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.kept_embeds import KeptEmbeds
from mllm_export.device_tests.reference import Floats, Reference
from mllm_export.device_tests.references.mobilevlm import mobilevlm_reference

sys.path.insert(0, str(Path(__file__).parent))

from parity_fakes import FakeSession, context_of, manifest_of
from tiny_original import write_original


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("original") / "checkpoint"
    return folder, write_original(folder)


@pytest.fixture(scope="session")
def reference(original: tuple[Path, dict]) -> Reference:
    return mobilevlm_reference(Checkpoint(original[0]))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many embeddings of both sides were in memory each time that one more was kept."""
    held: list[weakref.ref] = []
    counts: list[int] = []
    put = KeptEmbeds.put

    def counted(kept: KeptEmbeds, name: str, values: Floats) -> None:
        put(kept, name, values)
        held.append(weakref.ref(kept[name]))
        counts.append(sum(one() is not None for one in held))

    monkeypatch.setattr(KeptEmbeds, "put", counted)
    return counts


@pytest.fixture(scope="session")
def make_context(original: tuple[Path, dict], reference: Reference) -> Callable[..., Context]:
    """A context of the fake session, or of one with a fault in it."""

    def make(session: FakeSession | None = None, **parts: object) -> Context:
        used = session or FakeSession(reference)
        return context_of(reference, used, manifest_of(original[0]), **parts)

    return make
