"""Files to a device: what differs is sent, what was cut goes on, what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_export.device_tests import transfer
from mllm_export.device_tests.device import Completed, Settings
from mllm_export.device_tests.devices.local import LocalLink
from mllm_export.device_tests.transfer import Wanted, push
from mllm_export.errors import DeviceError
from mllm_export.hashing import file_sha256
from mllm_export.progress import silent


class Cut(LocalLink):
    """A device that is lost while data goes to it: half of the piece arrives."""

    def __init__(self, home: Path, after_pieces: int) -> None:
        super().__init__(Settings(home=str(home)))
        self.left = after_pieces

    def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
        if data:
            self.left -= 1
            if self.left < 0:
                super().shell(command, timeout_s, data[: len(data) // 2])
                raise DeviceError(f"{self.title}: connection lost")
        return super().shell(command, timeout_s, data)


def files_in(folder: Path, sizes: dict[str, int]) -> dict[str, Wanted]:
    found = {}
    for name, size in sizes.items():
        path = folder / name.replace("/", "-")
        path.write_bytes(bytes(i * 7 % 251 for i in range(size)))
        found[name] = Wanted(path=path, sha256=file_sha256(path), size_bytes=size)
    return found


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PIECE_BYTES", 1000)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there it is"


def sent(link: LocalLink, files: dict[str, Wanted]) -> transfer.Sent:
    return push(link, link.home, files, 30.0, silent)


def test_only_files_whose_hash_differs_are_sent(tmp_path: Path, there: Path) -> None:
    files = files_in(tmp_path, {"a.bin": 3000, "deep/er/b.bin": 10, "empty": 0})
    link = LocalLink(Settings(home=str(there)))
    assert sent(link, files).files == 3
    assert {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()} == set(files)
    (there / "a.bin").write_bytes(b"changed on the device")
    again = sent(link, files)
    assert (again.files, again.kept, again.sent_bytes) == (1, 2, 3000)
    assert file_sha256(there / "a.bin") == files["a.bin"].sha256


def test_a_cut_transfer_says_what_arrived_and_goes_on_from_there(
    tmp_path: Path, there: Path, small_pieces: None
) -> None:
    files = files_in(tmp_path, {"a.bin": 10_000})
    with pytest.raises(DeviceError, match=r"connection lost \(.* MiB had arrived and stay there"):
        sent(Cut(there, after_pieces=4), files)
    assert not (there / "a.bin").exists()
    again = sent(LocalLink(Settings(home=str(there))), files)
    assert (again.resumed_bytes, again.sent_bytes) == (4500, 5500)
    assert file_sha256(there / "a.bin") == files["a.bin"].sha256
    assert [p.name for p in there.iterdir()] == ["a.bin"]


def test_a_part_of_another_version_is_not_continued(
    tmp_path: Path, there: Path, small_pieces: None
) -> None:
    files = files_in(tmp_path, {"a.bin": 10_000})
    with pytest.raises(DeviceError):
        sent(Cut(there, after_pieces=4), files)
    path = files["a.bin"].path
    path.write_bytes(b"x" * 9000)
    newer = {"a.bin": Wanted(path=path, sha256=file_sha256(path), size_bytes=9000)}
    assert sent(LocalLink(Settings(home=str(there))), newer).resumed_bytes == 0
    assert file_sha256(there / "a.bin") == file_sha256(path)


def test_what_arrives_changed_is_removed_and_named(tmp_path: Path, there: Path) -> None:
    class Flips(LocalLink):
        def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
            return super().shell(command, timeout_s, data[:-1] + b"?" if data else data)

    files = files_in(tmp_path, {"a.bin": 100})
    with pytest.raises(DeviceError, match=r"a\.bin arrived changed .* run the same command again"):
        sent(Flips(Settings(home=str(there))), files)
    assert list(there.iterdir()) == []


def test_a_full_device_is_told_before_anything_is_sent(tmp_path: Path, there: Path) -> None:
    file = tmp_path / "large"
    file.touch()
    wanted = Wanted(path=file, sha256="0" * 64, size_bytes=1 << 60)
    with pytest.raises(DeviceError, match=r"MiB free, 1099511627776\.0 MiB more are needed"):
        sent(LocalLink(Settings(home=str(there))), {"large": wanted})
    assert list(there.iterdir()) == []


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    link = LocalLink(Settings(home=str(tmp_path / "file" / "home")))
    with pytest.raises(DeviceError, match=r"cannot be made .* --device-home"):
        sent(link, files_in(tmp_path, {"a": 1}))
