"""The files that peers read: what was named, what the bundle holds, what can be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mllm_export.bundle import Bundle
from mllm_export.device_tests.language_model import copy_language_model
from mllm_export.device_tests.peer import PEERS, Files, require_able
from mllm_export.export.child import run_in_child
from mllm_export.progress import Progress, Step


@contextmanager
def gathered(
    bundle: Bundle,
    peers: Sequence[str],
    checkpoint: Path | None,
    language_model: Path | None,
    mmproj: Path | None,
) -> Iterator[Files]:
    """The bundle's own mmproj where none was named; the decoder's folder out of the checkpoint.

    That folder is as large as the decoder's weights in the checkpoint, and is gone at the end.

    Raises: CheckError for a peer that cannot run, before anything is written.
    """
    wanted = any("language_model" in PEERS[name].needs for name in peers)
    with tempfile.TemporaryDirectory(prefix="language-model.") as made:
        copies = wanted and language_model is None and checkpoint is not None
        files = Files(
            bundle=bundle.folder,
            checkpoint=checkpoint,
            language_model=Path(made) if copies else language_model,
            mmproj=mmproj or bundle.find("mmproj"),
        )
        for name in peers:
            require_able(name, files)
        if copies:
            run_in_child("the decoder's folder", _copy, checkpoint, Path(made))
        yield files


def _copy(checkpoint: Path, folder: Path, progress: Progress) -> None:
    """In a process of its own: it loads torch."""
    progress(Step(stage="peers' files", item="decoder", done=0, total=1, unit="folders"))
    copy_language_model(checkpoint, folder)
