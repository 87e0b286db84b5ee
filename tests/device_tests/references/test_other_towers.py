"""Models whose tower is ViTamin or SigLIP go the whole way: build, check, run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from other_towers import MODELS, llava_vitamin, llava_vitamin_resized

sys.path.insert(0, str(Path(__file__).parents[2] / "export" / "decoders"))

from phi_originals import in_layout

from mllm_export.bundle import open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.originals import standing
from mllm_export.device_tests.parity import check
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.artifact import part_reader
from mllm_export.export.encoders import _vitamin_stem
from mllm_export.export.families.llava_phi import FAMILY as LLAVA_PHI
from mllm_export.export.family import cover, read_spec
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.export.positions import resized_table
from mllm_export.export.random_checkpoint import random_tensor, write_random_checkpoint

PASSED = ("pixels", "prompt", "tower", "weights", "logits", "text", "controls")


@pytest.mark.parametrize("name", MODELS)
def test_the_bundle_computes_the_original_and_answers(name, tmp_path):
    model = MODELS[name](tmp_path / "model")
    report = build_and_ask(model, tmp_path / "bundle")
    kind = {"Mipha": "SiglipVisionModel"}.get(name, "timm's ViTamin")
    assert kind in report["notes"][0]


def build_and_ask(model, out):
    """The report of a checked build whose bundle answers."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mllm_export", "build", str(model)),
            *("--target", "linux-x86_64", "--recipe", "f16", "-o", str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    found = {rung["name"]: rung["status"] for rung in report["rungs"]}
    assert {rung: found[rung] for rung in PASSED} == dict.fromkeys(PASSED, "passed")
    from mllm_export.runtimes import load

    with load(out) as session:
        assert list(session.generate("What is it?", max_tokens=2))
    return report


def test_positions_resized_otherwise_are_seen(tmp_path, monkeypatch):
    """Bicubic without antialiasing; the honest build of this model passes above."""
    import torch

    model = llava_vitamin_resized(tmp_path / "model")
    reading = read_spec(Checkpoint(model))
    assert reading.spec.encoders[0].position_grid == 6
    assert "stored for a grid of 6, the image gives 4" in reading.notes[0]
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32))
    read = part_reader(Checkpoint(model), reading.weights.part("tower"))
    theirs = REFERENCES["llava"](Checkpoint(model))._tower.features(pixels.numpy())

    def off() -> float:
        tower = encoder_module(ENCODERS["vitamin"], reading.spec.encoders[0], read)
        with torch.no_grad():
            return float((tower(pixels) - theirs).norm() / theirs.norm())

    assert off() < 1e-5

    def coarse(side: int, wanted: int) -> list[list[float]]:
        eye = torch.eye(side)[None, None]
        made = torch.nn.functional.interpolate(eye, (wanted, side), mode="bicubic")
        return made[0, 0].tolist()

    monkeypatch.setattr(_vitamin_stem, "_bicubic", coarse)
    assert off() > 1e-2


def test_core_ml_keeps_the_table_at_the_size_that_runs(tmp_path):
    model = llava_vitamin_resized(tmp_path / "model")
    originals = REFERENCES["llava"](Checkpoint(model)).tower_originals()
    name = "tower.pos_embed"
    assert originals[name].shape == (1, 36, 384)
    other = standing(originals, {name: (1, 16, 384)})[name]
    stored = np.asarray(Checkpoint(model).read("model.vision_tower.vision_tower.pos_embed"))
    np.testing.assert_array_equal(other.values(0, 1), resized_table(stored, 6, 4))


@pytest.mark.parametrize("layout", ["phi-interleaved", "phi-msft"])
def test_llava_phi_with_an_older_decoder_goes_the_whole_way(layout, tmp_path):
    model = in_layout(write_random_checkpoint(tmp_path / "model", LLAVA_PHI.tiny()), layout)
    build_and_ask(model, tmp_path / "bundle")


def test_another_cut_of_vitamin_is_seen(tmp_path):
    """The config says -2; a bundle of -1 is another model's."""
    model = llava_vitamin(tmp_path / "model")
    reading = read_spec(Checkpoint(model))
    assert (reading.spec.encoders[0].kind, reading.spec.encoders[0].run_layers) == ("vitamin", 2)
    file = model / "config.json"
    config = json.loads(file.read_text())
    out = tmp_path / "bundle"
    subprocess.run(
        [
            *(sys.executable, "-m", "mllm_export", "build", str(model), "--no-check"),
            *("--target", "linux-x86_64", "--recipe", "f16", "-o", str(out)),
        ],
        capture_output=True,
        check=True,
    )
    file.write_text(json.dumps({**config, "mm_vision_select_layer": -3}))
    report = check(open_bundle(out), Checkpoint(model), rungs=["tower", "weights"])
    broken = {r.name: {m.name for m in r.measurements if m.passed is False} for r in report.rungs}
    assert "worst-token cosine" in broken["tower"]
    assert "tensors that should not be there" in broken["weights"]


def test_a_projector_of_another_width_than_vitamins_is_refused(tmp_path):
    model = llava_vitamin(tmp_path / "model")
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mm_hidden_size": 1024}))
    with pytest.raises(CheckpointError, match=r"mm_hidden_size is 1024.*384 wide"):
        read_spec(Checkpoint(model))


def test_a_vitamin_of_no_published_size_is_refused(tmp_path):
    model = llava_vitamin(tmp_path / "model")
    file = model.parent / "vitamin-tiny" / "config.json"
    file.write_text(json.dumps({"architecture": "vitamin_huge_224"}))
    with pytest.raises(UnsupportedModelError, match="'vitamin_huge_224'"):
        read_spec(Checkpoint(model))


def test_a_tensor_of_the_tower_that_vitamin_has_not_is_named(tmp_path):
    import torch

    model = llava_vitamin(tmp_path / "model")
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    name = "model.vision_tower.vision_tower.blocks.0.ls1.gamma"
    state[name] = torch.from_numpy(random_tensor(name, (384,), 0))
    torch.save(state, model / "pytorch_model.bin")
    checkpoint = Checkpoint(model)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ls1\.gamma' \[384\] has no place"):
        cover(checkpoint, read_spec(checkpoint))


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_keeps_every_patch(name, tmp_path):
    model = MODELS[name](tmp_path / "model")
    spec = read_spec(Checkpoint(model)).spec
    reference = REFERENCES[spec.family](Checkpoint(model))
    side = spec.encoders[0].image.size_px
    made = reference.embed(np.zeros((1, 3, side, side), np.float32))
    assert made.shape == (1, spec.image_tokens, spec.decoder.width)
