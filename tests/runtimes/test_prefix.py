"""A prompt's beginning kept in the bundle: the same bits, or it is not used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_export.bundle import describe_file, open_bundle, read_manifest, write_manifest
from mllm_export.device_tests.prefix import prefix_stage
from mllm_export.errors import EngineError
from mllm_export.prefix import PREFIX, Prefix, prefix_bytes, read_prefix
from mllm_export.progress import silent
from mllm_export.runtimes import load
from mllm_export.runtimes.beginning import bundled
from mllm_export.runtimes.decoder.llama_cpp import ENGINE, LlamaCppDecoder
from mllm_export.spec import IMAGE_ID, ModelSpec
from tests.runtimes.asking import QUESTION, asked


def with_prefix(folder: Path) -> Path:
    """As a build leaves it."""
    bundle = open_bundle(folder)
    assert prefix_stage(bundle, silent)
    named(folder)
    return folder


def named(folder: Path) -> None:
    """Have the manifest name the state's file as it is now."""
    manifest = read_manifest(folder)
    others = tuple(file for file in manifest.files if file.role != "prefix")
    found = describe_file(folder, PREFIX, "prefix")
    write_manifest(folder, replace(manifest, files=(*others, found)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_the_state_is_used_and_gives_the_bits_of_computing_it(
    bundle_copy: Path, picture: Image.Image, kv: str, threads: int
) -> None:
    manifest = replace(open_bundle(bundle_copy).manifest, kv_type=kv)
    write_manifest(bundle_copy, manifest)
    with load(bundle_copy, threads=threads) as session:
        head = session.encode(QUESTION).index(IMAGE_ID)
        ids, reused, logits = asked(session, picture)
        assert reused == 0
        every = session.logits(QUESTION, picture)
    with load(with_prefix(bundle_copy), threads=threads) as session:
        for _ in range(2):  # the second time after a `forget`
            session.forget()
            begun, found, rows = asked(session, picture)
            assert found == head > 10
            assert begun == ids
            np.testing.assert_array_equal(rows, logits)
        np.testing.assert_array_equal(session.logits(QUESTION, picture), every)


def test_the_next_question_goes_on_from_the_picture(
    bundle_copy: Path, picture: Image.Image
) -> None:
    with load(with_prefix(bundle_copy), threads=1) as session:
        head = session.encode(QUESTION).index(IMAGE_ID)
        list(session.generate(QUESTION, picture, max_tokens=3))
        second = next(session.generate("left", picture, max_tokens=1))
        assert second.reused_positions == head + 16
        assert next(session.generate("left", max_tokens=1)).reused_positions == 0


def test_the_same_bytes_each_time(bundle_copy: Path) -> None:
    found = set()
    for _ in range(3):
        assert prefix_stage(open_bundle(bundle_copy), silent)
        found.add((bundle_copy / PREFIX).read_bytes())
    assert len(found) == 1


def test_any_number_of_threads_leaves_the_same_state(bundle: Path, spec: ModelSpec) -> None:
    states = []
    for threads in (1, 2, 3):
        decoder = ENGINE.open(bundle / "decoder.gguf", spec, 256, threads)
        states.append(decoder.state_behind([5, 6, 7] * 15))
        decoder.close()
    assert states[0] == states[1] == states[2] != b""


Change = Callable[[Prefix, bytes], tuple[Prefix, bytes]]
MISMATCHES: dict[str, Change] = {
    "another decoder": lambda p, s: (replace(p, decoder_sha256="0" * 64), s),
    "another CPU": lambda p, s: (replace(p, arithmetic=f"{p.arithmetic} | SVE = 1"), s),
    "another version": lambda p, s: (replace(p, arithmetic=p.arithmetic.replace("0.3", "0.2")), s),
    "another KV type": lambda p, s: (replace(p, kv_type="f32"), s),
    "a changed byte": lambda p, s: (p, s[:-5] + bytes([s[-5] ^ 1]) + s[-4:]),
    "a cut file": lambda p, s: (p, s[:-100]),
}


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_state_that_does_not_fit_is_not_used(
    bundle_copy: Path, picture: Image.Image, change: Change
) -> None:
    with load(bundle_copy, threads=1) as session:
        ids, _, logits = asked(session, picture)
    path = with_prefix(bundle_copy) / PREFIX
    path.write_bytes(prefix_bytes(*change(*read_prefix(path.read_bytes(), path))))
    named(bundle_copy)
    with load(bundle_copy, threads=1) as session:
        begun, reused, rows = asked(session, picture)
    assert (begun, reused) == (ids, 0)
    np.testing.assert_array_equal(rows, logits)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\nstate", b'{"schema": 1}\n', b"\xff\n\xff"])
def test_a_file_of_another_form_is_not_used(bundle_copy: Path, data: bytes) -> None:
    (with_prefix(bundle_copy) / PREFIX).write_bytes(data)
    named(bundle_copy)
    assert bundled(open_bundle(bundle_copy)) is None
    with load(bundle_copy, threads=1) as session:
        assert next(session.generate([1, 5])).reused_positions == 0


def test_another_kv_type_asked_for_is_not_begun_with(
    bundle_copy: Path, picture: Image.Image
) -> None:
    with load(bundle_copy, threads=1, kv_type="f32") as session:
        plain = asked(session, picture)
    with load(with_prefix(bundle_copy), threads=1, kv_type="f32") as session:
        found = asked(session, picture)
    assert found[:2] == (plain[0], 0)
    np.testing.assert_array_equal(found[2], plain[2])


HEAD, TAIL = [5, 6, 7] * 9, [8, 9, 10]


def evaluated(decoder: LlamaCppDecoder, head: Sequence[int]) -> np.ndarray:
    decoder.forget()
    return decoder.evaluate([list(head), TAIL], all_logits=False)


def test_other_tokens_do_not_begin_with_it(decoder: LlamaCppDecoder) -> None:
    other = [*HEAD[:-1], 11]
    wanted = evaluated(decoder, other)
    decoder.begin_with(HEAD, decoder.state_behind(HEAD))
    np.testing.assert_array_equal(evaluated(decoder, other), wanted)
    assert decoder.reused_positions == 0


def test_a_state_of_other_tokens_would_be_seen(decoder: LlamaCppDecoder) -> None:
    """The planted fault that the ids, the decoder's hash and the state's digest keep out."""
    wanted = evaluated(decoder, HEAD)
    decoder.begin_with(HEAD, decoder.state_behind([*HEAD[:-1], 11]))
    wrong = evaluated(decoder, HEAD)
    assert decoder.reused_positions == len(HEAD)
    assert np.abs(wrong - wanted).max() > 0.1


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_a_state_that_the_engine_refuses_is_computed(decoder: LlamaCppDecoder, kept: int) -> None:
    wanted = evaluated(decoder, HEAD)
    decoder.begin_with(HEAD, decoder.state_behind(HEAD)[:kept])
    for _ in range(2):
        np.testing.assert_array_equal(evaluated(decoder, HEAD), wanted)
        assert (decoder.reused_positions, decoder.positions) == (0, len(HEAD) + len(TAIL))


def test_it_is_not_written_unless_it_gives_the_same_bits(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LlamaCppDecoder.begin_with

    def other(self: LlamaCppDecoder, ids: list[int], state: bytes) -> None:
        plain(self, ids, self.state_behind([*ids[:-1], 11]))

    with monkeypatch.context() as patch:
        patch.setattr(LlamaCppDecoder, "begin_with", other)
        assert not prefix_stage(open_bundle(bundle_copy), silent)
    assert not (bundle_copy / PREFIX).exists()
    assert prefix_stage(open_bundle(bundle_copy), silent)
    path = bundle_copy / PREFIX
    prefix, state = read_prefix(path.read_bytes(), path)
    assert hashlib.sha256(state).hexdigest() == prefix.state_sha256


def test_a_decoder_of_no_numbers_is_left_to_the_checks(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that ended here would leave no report that says what is wrong."""

    def refusing(*_: object, **__: object) -> None:
        raise EngineError("the decoder gave NaN or Inf")

    monkeypatch.setattr(LlamaCppDecoder, "evaluate", refusing)
    assert not prefix_stage(open_bundle(bundle_copy), silent)
    assert not (bundle_copy / PREFIX).exists()
