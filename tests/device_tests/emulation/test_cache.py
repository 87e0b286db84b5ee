"""What is slow to make is made once, whole, and by one process at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mllm_export.caches import cache_folder
from mllm_export.device_tests.emulation.cache import alone, entry
from mllm_export.errors import DeviceError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLM_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder: Path) -> None:
    (folder / "file").write_text("made", encoding="ascii")


def test_an_entry_is_made_once_for_what_it_is_made_of(folder: Path) -> None:
    assert cache_folder() == folder
    first = entry("kind", {"numpy": "1", "b": "2"}, fill)

    def never(_: Path) -> None:
        pytest.fail("it was there")

    assert entry("kind", {"b": "2", "numpy": "1"}, never) == first
    assert entry("kind", {"b": "2", "numpy": "2"}, fill) != first
    assert (first / "made-of.txt").read_text() == "b=2\nnumpy=1\n"


def test_an_entry_that_could_not_be_made_is_not_there(folder: Path) -> None:
    def half(made: Path) -> None:
        fill(made)
        raise DeviceError("no network")

    with pytest.raises(DeviceError, match="no network"):
        entry("kind", {}, half)
    assert not list(folder.glob("kind-*"))
    whole = entry("kind", {}, lambda made: (made / "other").touch())
    assert sorted(p.name for p in whole.iterdir()) == ["made-of.txt", "other"]


def test_two_that_make_the_same_entry_make_it_once() -> None:
    made, started, done = [], threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        made.append(folder)
        started.set()
        done.wait(10)
        fill(folder)

    threads = [threading.Thread(target=entry, args=("kind", {}, slowly)) for _ in range(2)]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive(), "it waits for the first"
    done.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1


def test_a_lock_is_for_one_thing() -> None:
    entered = threading.Event()

    def enter() -> None:
        with alone("one"):
            entered.set()

    with alone("one"):
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
        with alone("another"):
            pass
    assert entered.wait(10)
    waiting.join(10)
