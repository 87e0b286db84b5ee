"""Tables of positions at the size that a tower runs at, where a file keeps nothing else."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.originals import standing
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.export.family import FAMILIES, cover, read_spec
from mllm_export.export.make_plan import make_plan
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.export.positions import resized_table, settled, settled_reader
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.export.target import load_target
from mllm_export.quantize.recipe import load_recipe

TABLE = np.random.default_rng(0).standard_normal((1, 49, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("cobra") / "model", FAMILIES["cobra"].tiny()
    )


@pytest.mark.parametrize("wanted", [5, 6, 11])
def test_a_table_is_resized_as_timm_does_to_the_bit(wanted: int) -> None:
    theirs = resample_abs_pos_embed(
        torch.from_numpy(TABLE), [wanted, wanted], num_prefix_tokens=0
    ).numpy()
    np.testing.assert_array_equal(resized_table(TABLE, 7, wanted), theirs)
    other = resample_abs_pos_embed(
        torch.from_numpy(TABLE), [wanted, wanted], num_prefix_tokens=0, antialias=False
    ).numpy()
    assert not (other == theirs).all()


@pytest.mark.parametrize("kind", ["dinov2", "siglip_timm", "vitamin"])
def test_a_settled_tower_computes_the_same(kind: str) -> None:
    spec = replace(ENCODERS[kind].tiny(), position_grid=9)
    vision = _vision(spec)
    draw = np.random.default_rng(1)
    weights = {
        name: draw.standard_normal(shape).astype(np.float32) / max(1, np.prod(shape[1:])) ** 0.5
        for name, shape in ENCODERS[kind].parameters(spec).items()
    }
    (at,) = settled(vision).encoders
    assert at.position_grid == at.grid == 6
    side = spec.image.size_px
    pixels = torch.from_numpy(draw.standard_normal((1, 3, side, side)).astype(np.float32))
    with torch.no_grad():
        plain = encoder_module(ENCODERS[kind], spec, weights.__getitem__)(pixels)
        read = settled_reader(vision, weights.__getitem__)
        made = encoder_module(ENCODERS[kind], at, read)(pixels)
    assert (made - plain).abs().max() < 1e-5 * plain.abs().max()


def _vision(spec):
    from mllm_export.export.parts import PROJECTORS
    from mllm_export.spec import VisionSpec

    projector = PROJECTORS["linear"].spec(spec.width, 8, spec.tokens_out)
    return VisionSpec(encoders=(spec,), projector=projector)


def test_core_ml_plans_the_table_at_the_size_that_runs(model: Path) -> None:
    checkpoint = Checkpoint(model)
    reading = read_spec(checkpoint)
    target = load_target("ios-arm64")
    plan = make_plan(
        reading, target, load_recipe(target.default_recipe), dropped=cover(checkpoint, reading)
    )
    tower = plan.artifact("tower")
    assert tower is not None
    shapes = {row.name: row.shape for row in tower.tensors}
    assert shapes["tower.dino.pos_embed"] == (1, 36, 64)
    assert shapes["tower.siglip.pos_embed"] == (1, 36, 48)


def test_the_original_says_what_may_stand_in_the_tables_place(model: Path) -> None:
    originals = REFERENCES["cobra"](Checkpoint(model)).tower_originals()
    name = "tower.dino.pos_embed"
    assert standing(originals, {name: (1, 49, 64)})[name] is originals[name]
    other = standing(originals, {name: (1, 36, 64)})[name]
    stored = resized_table(originals[name].read(), 7, 6)
    np.testing.assert_array_equal(other.values(0, 1), stored)
    assert originals["tower.siglip.pos_embed"].instead is None


@pytest.mark.slow
def test_cobra_goes_the_whole_way_to_core_ml(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mllm_export", "build", str(model), "--target", "ios-arm64"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "ios")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "ios" / "report.json").read_text())
    verdicts = {rung["name"]: rung["status"] for rung in report["rungs"]}
    assert {verdicts[one] for one in ("pixels", "tower", "weights", "logits", "text")} == {"passed"}
