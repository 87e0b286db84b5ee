"""A remembered hash stands for one file as it was, and for nothing else."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mllm_export import verified
from mllm_export.caches import write_own
from mllm_export.errors import BundleError
from mllm_export.hashing import has_sha256

BYTES = b"weights" * 1000
CHANGED = b"weighed" * 1000
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "decoder.gguf"
    path.write_bytes(BYTES)
    if verified._sight(path, SHA256) is None:
        pytest.skip("what holds temporary files here keeps no times that prove anything")
    return path


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder's record; a change made before the test is old enough."""
    monkeypatch.setenv("MLLM_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED_S", -1)
    return tmp_path / "cache" / "verified"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed."""
    found: list[Path] = []

    def watched(path: Path, sha256: str) -> bool:
        found.append(path)
        return has_sha256(path, sha256)

    monkeypatch.setattr(verified, "has_sha256", watched)
    return found


def test_a_file_that_was_compared_is_not_read_again(
    file: Path, record: Path, hashed: list[Path]
) -> None:
    assert verified.holds(file, SHA256)
    assert verified.holds(file, SHA256)
    assert hashed == [file]
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700


def test_files_compared_side_by_side_are_all_remembered(
    file: Path, record: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one load's tower and decoder are, each on its own thread."""
    files = [file, *(Path(shutil.copy(file, file.with_name(f"{n}.onnx"))) for n in range(3))]

    def write_slowly(path: Path, data: bytes) -> None:
        time.sleep(0.05)  # long enough for every other thread to have read the record
        write_own(path, data)

    monkeypatch.setattr(verified, "write_own", write_slowly)
    for _ in range(2):
        with ThreadPoolExecutor(len(files)) as pool:
            assert all(pool.map(lambda path: verified.holds(path, SHA256), files))
    assert sorted(hashed) == sorted(files)
    assert len(record.read_text(encoding="ascii").splitlines()) == len(files)


def in_place(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(CHANGED)


def through_a_mapping(path: Path) -> None:
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[:] = CHANGED


def another_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CHANGED)
    os.replace(other, path)


@pytest.mark.parametrize("change", [in_place, through_a_mapping, another_in_its_place])
@pytest.mark.usefixtures("record")
def test_other_bytes_of_the_same_size_and_time_are_refused(
    file: Path, change: Callable[[Path], None]
) -> None:
    """As cp -p, rsync -t and touch -r leave them."""
    assert verified.holds(file, SHA256)
    before = file.stat()
    time.sleep(0.05)  # a kernel's clock may tick every 10 ms
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = file.stat()
    assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not verified.holds(file, SHA256)
    assert not verified.holds(file, SHA256), "what did not hold was remembered"


@pytest.mark.usefixtures("record")
def test_another_hash_is_not_what_was_remembered(file: Path) -> None:
    assert verified.holds(file, SHA256)
    assert not verified.holds(file, hashlib.sha256(CHANGED).hexdigest())


def test_a_change_of_this_minute_is_not_remembered(
    file: Path, record: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_SETTLED_S", 60)
    assert verified.holds(file, SHA256)
    assert not record.exists()
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]


@pytest.mark.usefixtures("record")
def test_what_changes_while_it_is_hashed_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(path: Path, sha256: str) -> bool:
        held = has_sha256(path, sha256)
        time.sleep(0.05)
        in_place(path)
        return held

    monkeypatch.setattr(verified, "has_sha256", slowly)
    assert verified.holds(file, SHA256)
    monkeypatch.setattr(verified, "has_sha256", has_sha256)
    assert not verified.holds(file, SHA256)


def writable_by_others(record: Path) -> None:
    record.chmod(0o620)


def linked(record: Path) -> None:
    record.rename(record.with_name("elsewhere"))
    record.symlink_to(record.with_name("elsewhere"))


def of_another_boot(record: Path) -> None:
    line = record.read_text(encoding="ascii")
    record.write_text("0" * 36 + line[36:], encoding="ascii")


def broken(record: Path) -> None:
    record.write_bytes(b"\xff\x00" + record.read_bytes())


@pytest.mark.parametrize("change", [writable_by_others, linked, of_another_boot, broken])
def test_a_record_that_proves_nothing_is_not_believed(
    file: Path, record: Path, hashed: list[Path], change: Callable[[Path], None]
) -> None:
    assert verified.holds(file, SHA256)
    change(record)
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]


@pytest.mark.usefixtures("record")
def test_where_the_times_prove_nothing_the_file_is_hashed(
    file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_KEEP_TIMES", frozenset({0x4D44}))  # FAT alone
    assert verified.holds(file, SHA256)
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]


def test_memory_file_systems_are_not_believed() -> None:
    """A write through a mapping moves no time there."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no /dev/shm here")
    path = shared / f"mllm-export-{os.getpid()}"
    path.write_bytes(BYTES)
    try:
        assert verified._sight(path, SHA256) is None
    finally:
        path.unlink()


def test_a_cache_that_cannot_be_written_costs_a_hash(
    file: Path, record: Path, hashed: list[Path]
) -> None:
    record.parent.write_text("no folder", encoding="ascii")
    assert verified.holds(file, SHA256)
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]


def test_the_variable_has_every_file_hashed(
    file: Path, record: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verified.holds(file, SHA256)
    monkeypatch.setenv("MLLM_VERIFY", "always")
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]
    assert len(record.read_text(encoding="ascii").splitlines()) == 1
    monkeypatch.setenv("MLLM_VERIFY", "never")
    with pytest.raises(BundleError, match="MLLM_VERIFY is 'never', known: always"):
        verified.holds(file, SHA256)


def test_the_record_does_not_grow_without_end(file: Path, record: Path) -> None:
    for _ in range(70):
        os.utime(file, ns=(0, 0))
        time.sleep(0.011)
        assert verified.holds(file, SHA256)
    assert len(record.read_text(encoding="ascii").splitlines()) == 64
    assert verified._sight(file, SHA256) in verified._lines()


def test_a_user_without_a_home_has_every_file_hashed(
    file: Path, record: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(verified, "cache_folder", nowhere)
    assert verified.holds(file, SHA256)
    assert verified.holds(file, SHA256)
    assert hashed == [file, file]
