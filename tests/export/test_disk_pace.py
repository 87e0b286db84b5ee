"""What is in memory is told from what is not, and disks are measured without leaving anything."""

import math
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mllm_export.export import disk_pace
from mllm_export.export.disk_pace import measure_disks

SIZE = 5 * (4 << 20) + 1234


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_file_just_written_is_in_memory(source: Path, tmp_path: Path) -> None:
    found = measure_disks([source], tmp_path)
    assert (found.source_bytes, found.unread_bytes, found.read_bytes) == (SIZE, 0, math.inf)
    assert 0 < found.written_bytes < math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is in memory")
def test_what_was_put_out_of_memory_is_counted_to_the_page_and_read_again(
    source: Path, tmp_path: Path
) -> None:
    evict(source)
    absent = disk_pace._absent_pages(source)
    if not absent.any():
        pytest.skip("this file system keeps its files in memory")
    assert len(absent) == -(-SIZE // mmap.PAGESIZE)
    assert absent.mean() > 0.9
    found = measure_disks([source], tmp_path)
    assert found.unread_bytes == absent.sum() * mmap.PAGESIZE
    assert 0 < found.read_bytes < math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is in memory")
def test_what_was_read_again_is_in_memory(source: Path) -> None:
    evict(source)
    gone = disk_pace._absent_pages(source).sum()
    source.read_bytes()
    assert disk_pace._absent_pages(source).sum() <= gone / 10


def test_blocks_are_taken_from_all_over_what_is_not_in_memory(tmp_path: Path) -> None:
    step = disk_pace._BLOCK_BYTES // mmap.PAGESIZE
    pages = np.zeros(100 * step, np.bool_)
    pages[20 * step : 90 * step] = True
    blocks = disk_pace._spread({tmp_path: pages})
    places = [at // disk_pace._BLOCK_BYTES for _, at in blocks]
    assert len(places) <= disk_pace._READ_BLOCKS
    assert (places[0], 80 < places[-1] < 90) == (20, True)


def test_an_empty_file_and_a_folder_to_come_are_no_fault(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    found = measure_disks([empty], tmp_path / "not" / "there")
    assert (found.source_bytes, found.unread_bytes) == (0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_few_pages_here_and_there_are_no_disk_to_wait_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"")
    pages = np.zeros(3 * disk_pace._BLOCK_BYTES // mmap.PAGESIZE, np.bool_)
    pages[5] = True
    assert disk_pace._read_pace({path: pages}) == math.inf
