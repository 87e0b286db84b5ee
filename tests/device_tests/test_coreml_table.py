"""The table of Core ML towers holds every encoder and projector of the catalogs."""

from pathlib import Path

import numpy as np
import pytest

from mllm_export.device_tests.benchmarks import coreml
from mllm_export.device_tests.benchmarks.coreml import HEAD, cases_of, measure
from mllm_export.export.parts import ENCODERS, PROJECTORS

PAIRS = {(one.encoder, one.projector): one for one in cases_of(None, None)}


def test_every_pair_of_the_catalogs_is_there() -> None:
    assert set(PAIRS) == {(e, p) for e in ENCODERS.names() for p in PROJECTORS.names()}
    assert len(cases_of(["dinov2"], ["linear", "ldp"])) == 2


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_each_has_an_original_to_be_held_against(pair: tuple[str, str]) -> None:
    case = PAIRS[pair]
    vision = case.vision
    assert (vision.encoders[0].kind, vision.projector.kind) == pair
    assert not vision.encoders[0].position_grid or (
        vision.encoders[0].position_grid == vision.encoders[0].grid
    )
    side = vision.encoders[0].image.size_px
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    made = case.original(pixels)
    assert made.shape == (vision.projector.tokens_out, 96)
    assert float(np.abs(made).max()) > 1e-3


def test_a_row_tells_sizes_errors_and_what_was_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        coreml, "run_in_child", lambda _stage, work, *args, progress: work(*args, progress)
    )
    lines = list(measure(PAIRS["dinov2", "fused_ldpnet"], tmp_path, ["w8"]))
    plain, small, operations, peaks = lines
    columns = len(HEAD.splitlines()[0].split("|"))
    assert [len(line.split("|")) for line in (plain, small)] == [columns, columns]
    cells = [[cell.strip() for cell in line.split("|")] for line in (plain, small)]
    assert [row[1:4] for row in cells] == [
        ["dinov2", "fused_ldpnet", "f16"],
        ["dinov2", "fused_ldpnet", "w8"],
    ]
    assert float(cells[1][4]) < 0.8 * float(cells[0][4])
    # On its own weights the program is the original's, whatever they are stored in.
    assert all(float(row[7]) < 2e-5 for row in cells)
    assert all(float(row[5].split(", ")[1]) < 0.05 for row in cells)
    assert cells[0][8].startswith("0, ")
    assert int(cells[1][8].split(", ")[0]) > 10
    assert "scaled_dot_product_attention" in operations
    assert "w8" in peaks
