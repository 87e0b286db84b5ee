"""What is in memory is told from what is not, to the page."""

import mmap
import os
import sys
from pathlib import Path

import pytest

from mllm_export.export.page_cache import unread_bytes

SIZE = 5 * (4 << 20) + 1234
WHOLE = -(-SIZE // mmap.PAGESIZE) * mmap.PAGESIZE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def evict(path: Path) -> None:
    """Have the file leave memory; skip where it stays."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not unread_bytes([path]):
        pytest.skip("this file system keeps its files in memory")


def test_a_file_just_written_is_in_memory(source: Path) -> None:
    assert unread_bytes([source]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is in memory")
def test_what_left_memory_is_counted_and_what_was_read_again_is_not(source: Path) -> None:
    evict(source)
    assert 0.9 * WHOLE < unread_bytes([source]) <= WHOLE
    with source.open("rb") as file:
        file.read(SIZE // 2)
    assert unread_bytes([source]) < 0.9 * WHOLE
    source.read_bytes()
    assert unread_bytes([source]) < 0.1 * WHOLE


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is in memory")
def test_files_are_counted_together(source: Path, tmp_path: Path) -> None:
    evict(source)
    other = tmp_path / "other"
    other.write_bytes(b"in memory")
    assert unread_bytes([source, other]) == unread_bytes([source])


def test_an_empty_file_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert unread_bytes([tmp_path / "empty"]) == 0
