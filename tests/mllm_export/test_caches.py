"""Cached files are whole, this user's alone, and no other user's are believed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllm_export.caches import read_own, write_own


@pytest.fixture
def careless() -> Iterator[None]:
    """A user whose files anybody may write."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_this_users_alone_with_every_folder_made_for_it(
    tmp_path: Path, careless: None
) -> None:
    path = tmp_path / "cache" / "kind" / "file"
    write_own(path, b"first")
    write_own(path, b"second")
    assert read_own(path) == b"second"
    assert [mode(one) for one in (path, path.parent, path.parent.parent)] == [0o600, 0o700, 0o700]
    assert list(path.parent.iterdir()) == [path]


def test_a_longest_length_is_kept_to(tmp_path: Path) -> None:
    write_own(tmp_path / "file", b"0123456789")
    assert read_own(tmp_path / "file", 4) == b"0123"


@pytest.mark.parametrize("bits", [0o620, 0o602, 0o666])
def test_what_others_may_write_is_not_believed(tmp_path: Path, bits: int) -> None:
    write_own(tmp_path / "file", b"data")
    (tmp_path / "file").chmod(bits)
    assert read_own(tmp_path / "file") == b""


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert read_own(tmp_path / "pipe") == b""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write_own(tmp_path / "file", b"data")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic"):
        read_own(tmp_path / "link")


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_write_that_is_broken_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def replace(*_: object) -> None:
        raise failure

    write_own(tmp_path / "file", b"before")
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(failure):
        write_own(tmp_path / "file", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read_own(tmp_path / "file") == b"before"
