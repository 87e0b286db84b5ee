"""Where an export came from: one of the files, and its hash."""

from __future__ import annotations

from mllm_export.records import record


@record
class SourceFile:
    """A file the export was made from; `path` is relative to the checkpoint's parent."""

    path: str
    size_bytes: int
    sha256: str
