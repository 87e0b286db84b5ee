"""Peers are asked the same, and what they take is set side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import reference_folder
from mllm_export.device_tests.bandwidth import Rates, token_bytes
from mllm_export.device_tests.peer import (
    OURS,
    PEERS,
    Ask,
    Errand,
    Files,
    Outcome,
    Peer,
    Spent,
    named_peers,
    require_able,
)
from mllm_export.device_tests.peer_files import gathered
from mllm_export.device_tests.peer_process import run_errand
from mllm_export.device_tests.peers import ours
from mllm_export.device_tests.peers.openvino import OpenVino
from mllm_export.device_tests.side_by_side import fold, side_by_side
from mllm_export.errors import CheckError
from mllm_export.export.artifact import part_reader
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.formats.mmproj import write_mmproj
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.progress import Step, silent
from mllm_export.reports.side_by_side import run_text
from mllm_export.runtimes import load
from mllm_export.side_by_side import DECODE
from tests.conftest import Build

RATES = [Rates(copy=8e9, read=4e9)]
WITHOUT_PICTURE = ("prefill", DECODE, "cold start: load", "cold start: prefill", "peak memory")


def errand(peer: str, files: Files) -> Errand:
    return Errand(peer=peer, files=files, threads=1, tokens=2, context_tokens=256, asks=())


def test_every_peer_can_be_named() -> None:
    assert {"llama_bench", "llama_cpp", "openvino", "ours", "torch_bfloat16", "torch_float32"} <= (
        set(PEERS.names())
    )
    for name in PEERS.names():
        assert PEERS[name].title


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("llama.cpp", ["llama_cpp"]),
        ("llama-bench, openvino", ["llama_bench", "openvino"]),
        ("torch", ["torch_bfloat16", "torch_float32"]),
        ("torch_float32,torch,ours", ["torch_float32", "torch_bfloat16"]),
    ],
)
def test_names_may_be_spelled_as_the_engines_are(words: str, names: Sequence[str]) -> None:
    assert named_peers(words) == names


@pytest.mark.parametrize("words", ["lama_cpp", "torch_float16", "", "ours", ","])
def test_a_name_that_is_none_is_answered_with_those_there_are(words: str) -> None:
    with pytest.raises(CheckError, match=r"known: llama_bench, llama_cpp, openvino"):
        named_peers(words)


@pytest.mark.parametrize(
    ("peer", "named"),
    [
        ("llama_cpp", "--mmproj.* a checked build leaves out one .* and --no-check keeps it"),
        ("torch_float32", "--checkpoint"),
        ("torch_bfloat16", "original"),
    ],
)
def test_a_file_that_a_peer_needs_and_was_not_given_is_named(peer: str, named: str) -> None:
    nothing = Files(bundle=Path("none"))
    with pytest.raises(CheckError, match=f"'{peer}' needs .*{named}"):
        require_able(peer, nothing)
    with pytest.raises(CheckError, match=named), PEERS[peer].open(errand(peer, nothing)):
        pass


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = Files(bundle=tmp_path, mmproj=tmp_path / "other.gguf")
    with pytest.raises(CheckError, match=r"'llama_cpp' needs .*other.gguf does not exist"):
        require_able("llama_cpp", files)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Peer(title="", open=PEERS[OURS].open, package="no_such_engine")
    monkeypatch.setattr("mllm_export.device_tests.peer.PEERS", {"engine": lacking})
    with pytest.raises(CheckError, match="'engine' needs the package no_such_engine; pip install"):
        require_able("engine", Files(bundle=Path("none")))


def outcome(tower_ms: float, prefill_ms: float | None, decode_ms: float | None = 2.0) -> Outcome:
    spent = Spent(preprocess_ms=1.0, tower_ms=tower_ms, prefill_ms=prefill_ms, decode_ms=decode_ms)
    slow = Spent(preprocess_ms=1000.0, tower_ms=1000.0, prefill_ms=1000.0, decode_ms=1000.0)
    return Outcome(load_ms=100.0, spent=(slow, spent, spent), peak_bytes=50 << 20)


def test_ratios_are_taken_within_a_round() -> None:
    # Ours is always half of the peer, while the machine slows down tenfold between the rounds.
    rounds = [[outcome(10 * slow, 1.0), outcome(20 * slow, None)] for slow in (1, 10, 10)]
    run = fold(1, rounds, RATES, 8_000_000)
    ours_cell, peer = run.stage("tower").cells
    assert ours_cell is not None
    assert peer is not None
    assert (ours_cell.median, ours_cell.ratio) == (100.0, None)
    assert (peer.median, peer.low, peer.high, peer.ratio) == (200.0, 110.0, 200.0, 0.5)
    first, other = run.stage("first token").cells
    assert first is not None
    assert first.median == 102.0, "the first picture warms up"
    assert other is None, "a peer without a decoder has no first token"


def test_the_stages_of_a_cold_start_add_up_to_it() -> None:
    spent = Spent(preprocess_ms=1.0, tower_ms=4.0, prefill_ms=5.0, decode_ms=1.0)
    cold = Spent(preprocess_ms=20.0, tower_ms=300.0, prefill_ms=4000.0, decode_ms=1.0)
    once = Outcome(load_ms=50_000.0, spent=(cold, spent, spent), peak_bytes=1)
    run = fold(1, [[once]], RATES, 8)
    found = {s.name: s.cells[0].median for s in run.stages if s.cells[0] is not None}
    split = [found[f"cold start: {name}"] for name in ("load", "preprocess", "tower", "prefill")]
    assert split == [50_000.0, 20.0, 300.0, 4000.0]
    assert sum(split) == found["cold start to first token"]


def test_the_second_question_is_set_beside_the_first() -> None:
    spent = Spent(preprocess_ms=1.0, tower_ms=4.0, prefill_ms=5.0, decode_ms=1.0, second_ms=2.5)
    once = Outcome(load_ms=1.0, spent=(spent, spent), peak_bytes=1)
    run = fold(1, [[once]], RATES, 8)
    assert run.second_over_first == 0.25
    assert "The second question takes 0.250 of the first's time." in run_text(run)
    assert fold(1, [[outcome(1.0, 1.0)]], RATES, 8).second_over_first is None


def test_the_share_of_memory_is_bytes_over_time_over_rate() -> None:
    found = fold(1, [[outcome(1.0, 1.0, decode_ms=2.0)]], RATES, 8_000_000).bandwidth
    assert found.decode_gb_s == pytest.approx(4.0)
    assert (found.of_copy, found.of_read) == (pytest.approx(0.5), pytest.approx(1.0))


@pytest.fixture
def asked(reference_bundle: Build, tmp_path: Path) -> tuple[Path, Ask]:
    from mllm_export.device_tests.pictures import scenes

    folder = reference_bundle("int4").folder
    picture = tmp_path / "picture.png"
    with next(iter(scenes(1))).open() as opened:
        opened.convert("RGB").save(picture)
    with load(folder, threads=1, verify=False) as session:
        ids = [tuple(session.encode(text)) for text in ("What is it?", "Which colour is it?")]
    return folder, Ask(picture=picture, ids=ids[0], second_ids=ids[1])


def test_ours_remembers_nothing_of_an_earlier_ask_and_never_stops(
    asked: tuple[Path, Ask],
) -> None:
    folder, ask = asked
    with load(folder, threads=1, verify=False) as session:
        peer, reused, steps = ours.Ours(session), [], []
        generate = session.generate

        def watched(*given: object, **options: object) -> object:
            found = list(generate(*given, **options))  # type: ignore[arg-type]
            reused.append(found[0].reused_positions)
            steps.append(len(found))
            return iter(found)

        session.generate = watched  # type: ignore[assignment,method-assign]
        for _ in range(2):
            peer.answer(ask, tokens=20)
    first, second, again, again_second = reused
    assert first == again == 0
    assert second == again_second > 100, "the second question finds the picture's positions"
    assert steps == [21, 1, 21, 1]


def test_a_process_that_dies_is_a_sentence_with_the_peers_name(
    asked: tuple[Path, Ask], tmp_path: Path
) -> None:
    folder, ask = asked
    broken = tmp_path / "none.gguf"
    broken.write_bytes(b"GGUF nothing")
    sent = Errand(
        peer="llama_cpp",
        files=Files(bundle=folder, mmproj=broken),
        threads=1,
        tokens=2,
        context_tokens=256,
        asks=(ask,),
    )
    with pytest.raises(CheckError, match=r"peer 'llama_cpp' could not answer: .*none.gguf"):
        run_errand(sent, tmp_path)


def reference_mmproj(path: Path) -> Path:
    """The file that llama.cpp's multimodal library reads; its times count here, not its values."""
    checkpoint = Checkpoint(reference_folder())
    reading = read_spec(checkpoint)
    tower, projector = (
        part_reader(checkpoint, reading.weights.part(part)) for part in ("tower", "projector")
    )
    write_mmproj(path, reading.spec, tower, projector)
    return path


def test_all_that_run_here_are_set_beside_ours(reference_bundle: Build, tmp_path: Path) -> None:
    bundle = reference_bundle("int4")
    names, told = named_peers("llama_bench,llama_cpp,torch"), list[Step]()
    mmproj = reference_mmproj(tmp_path / "mmproj.gguf")
    with gathered(bundle, names, reference_folder(), None, mmproj) as files:
        found = side_by_side(
            bundle, names, files, threads=[1], rounds=1, tokens=4, progress=told.append
        )
    assert [one.name for one in found.engines] == [OURS, *names]
    (run,) = found.runs
    for stage in run.stages:
        has = [cell is not None for cell in stage.cells]
        without_picture = stage.name in WITHOUT_PICTURE
        assert has == [True, without_picture, True, True, True], stage.name
        assert all(cell.median > 0 for cell in stage.cells if cell)
    assert 0 < run.bandwidth.of_copy < 20
    assert run.bandwidth.token_bytes == token_bytes(bundle, found.prompt_positions + 2)
    assert found.prompt_positions > 144
    assert (told[-1].done, told[-1].total) == (5, 5)
    assert not Path(str(files.language_model)).exists(), "the copy of the decoder is gone"


def test_more_tokens_than_the_context_holds_are_refused(reference_bundle: Build) -> None:
    bundle = reference_bundle("int4")
    with pytest.raises(CheckError, match=r"context of \d+; ask for at most \d+ with --max-tokens"):
        side_by_side(
            bundle,
            ["llama_bench"],
            Files(bundle=bundle.folder),
            threads=[1],
            rounds=1,
            tokens=1_000_000,
            progress=silent,
        )


def test_a_tower_of_two_encoders_is_fed_both(tmp_path: Path) -> None:
    """OpenVINO itself need not be there: what it compiles is called with inputs by name."""
    made = write_random_checkpoint(tmp_path / "model", FAMILIES["cobra"].tiny())
    vision = read_spec(Checkpoint(made)).spec.vision
    picture = tmp_path / "p.png"
    Image.new("RGB", (50, 40), "red").save(picture)
    fed: list[dict[str, np.ndarray]] = []
    OpenVino(fed.append, vision).answer(Ask(picture=picture, ids=(), second_ids=()), 0)
    (tile,) = fed
    assert {name: pixels.shape for name, pixels in tile.items()} == vision.input_shapes
    dino, siglip = tile.values()
    assert not np.allclose(dino, siglip)
