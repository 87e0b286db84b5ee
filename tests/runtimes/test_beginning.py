"""A device that a bundle has no state for computes it once, and later loads begin with the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_export.errors import EngineError
from mllm_export.prefix import prefix_bytes, read_prefix
from mllm_export.runtimes import beginning, load, opening
from mllm_export.runtimes.decoder import _library
from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder
from mllm_export.spec import IMAGE_ID
from tests.runtimes.asking import QUESTION, asked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and every decoder large enough."""
    monkeypatch.setenv("MLLM_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "SMALL_BYTES", 0)
    return tmp_path / "cache" / beginning.FOLDER


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each computed state has."""
    plain, found = LlamaCppDecoder.state_behind, list[int]()

    def state_behind(self: LlamaCppDecoder, ids: list[int]) -> bytes:
        found.append(len(ids))
        return plain(self, ids)

    monkeypatch.setattr(LlamaCppDecoder, "state_behind", state_behind)
    return found


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) if cache.exists() else []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_every_load_gives_the_bits_of_computing_it_and_only_the_first_does(
    cache: Path, computed: list[int], bundle: Path, picture: Image.Image, kv: str, threads: int
) -> None:
    with load(bundle, threads=threads, kv_type=kv, verify=False) as session:
        head = session.encode(QUESTION).index(IMAGE_ID)
        ids, reused, logits = asked(session, picture)
    assert (reused, files(cache), computed) == (0, [], [])
    for count in (3 - threads, threads, threads):
        with load(bundle, threads=count, kv_type=kv) as session:
            again, found, rows = asked(session, picture)
        assert (again, found) == (ids, head)
        np.testing.assert_array_equal(rows, logits)
    assert computed == [head]
    assert len(files(cache)) == 1


def test_another_kv_type_and_another_arithmetic_have_their_own(
    cache: Path, computed: list[int], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(bundle, threads=1).close()
    load(bundle, threads=1, kv_type="f32").close()
    monkeypatch.setattr(_library, "arithmetic", lambda: "another")
    load(bundle, threads=1).close()
    assert len(computed) == len(files(cache)) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("spoil", [cut, change, empty, open_to_all, link])
def test_a_kept_state_that_is_not_whole_or_not_ours_alone_is_computed_again(
    cache: Path,
    computed: list[int],
    bundle: Path,
    picture: Image.Image,
    spoil: Callable[[Path], None],
) -> None:
    with load(bundle, threads=1) as session:
        ids, reused, logits = asked(session, picture)
    (path,) = files(cache)
    data = path.read_bytes()
    spoil(path)
    with load(bundle, threads=1) as session:
        again, found, rows = asked(session, picture)
    assert (again, found, len(computed)) == (ids, reused, 2)
    np.testing.assert_array_equal(rows, logits)
    assert path.read_bytes() == data
    assert not path.is_symlink()


def test_the_least_lately_used_make_room(
    cache: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "_MOST_FILES", 2)
    names = {}
    for turn, arithmetic in enumerate(["a", "b", "a", "c"]):
        monkeypatch.setattr(_library, "arithmetic", lambda found=arithmetic: found)
        before = set(files(cache))
        load(bundle, threads=1).close()
        for path in set(files(cache)) - before:
            names[arithmetic] = path
            os.utime(path, (turn, turn))
    assert set(files(cache)) == {names["a"], names["c"]}


def test_a_clock_that_was_set_back_does_not_make_room_of_what_was_just_kept(
    cache: Path, computed: list[int], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "_MOST_FILES", 2)
    cache.mkdir(parents=True)
    for name in ("a.state", "b.state"):
        (cache / name).touch()
        os.utime(cache / name, (4e9, 4e9))
    load(bundle, threads=1).close()
    load(bundle, threads=1).close()
    assert len(computed) == 1
    assert len(files(cache)) == 2


def test_another_beginnings_state_under_its_name_is_not_used(
    cache: Path, computed: list[int], bundle: Path, picture: Image.Image
) -> None:
    with load(bundle, threads=1) as session:
        ids, reused, logits = asked(session, picture)
    (path,) = files(cache)
    prefix, state = read_prefix(path.read_bytes(), path)
    path.write_bytes(prefix_bytes(replace(prefix, ids=prefix.ids[:-1]), state))
    with load(bundle, threads=1) as session:
        again, found, rows = asked(session, picture)
    assert (again, found, len(computed)) == (ids, reused, 2)
    np.testing.assert_array_equal(rows, logits)


def test_a_cache_that_can_only_be_read_is_used(
    cache: Path,
    computed: list[int],
    bundle: Path,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(bundle, threads=1).close()

    def utime(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", utime)
    with load(bundle, threads=1) as session:
        assert asked(session, picture)[1] > 10
    assert len(computed) == 1


def test_a_cache_that_cannot_be_written_keeps_nothing_and_spares_the_question(
    cache: Path, computed: list[int], bundle: Path, picture: Image.Image
) -> None:
    cache.parent.write_text("a file in its place", encoding="utf-8")
    for _ in range(2):
        with load(bundle, threads=1) as session:
            assert asked(session, picture)[1] > 10
    assert len(computed) == 2


def test_a_state_that_cannot_be_computed_is_left_to_the_question(
    cache: Path, bundle: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state_behind(self: LlamaCppDecoder, ids: list[int]) -> bytes:
        raise EngineError("the decoder gave NaN or Inf")

    monkeypatch.setattr(LlamaCppDecoder, "state_behind", state_behind)
    with load(bundle, threads=1) as session:
        assert asked(session, picture)[1] == 0
    assert not files(cache)


def test_a_context_without_room_behind_it_begins_with_none(
    cache: Path, computed: list[int], bundle: Path
) -> None:
    load(bundle, threads=1, context_tokens=40).close()
    assert not files(cache) + computed


def test_a_small_decoder_computes_it_sooner_than_it_reads_a_file(
    cache: Path, computed: list[int], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", 1 << 30)
    load(bundle, threads=1).close()
    assert not files(cache) + computed
