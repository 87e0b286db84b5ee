"""Encoders alone: every layout through plan, build, ladder and runtime, and faults planted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_embedders as tiny
from embedder_builds import LAYOUTS, MAC, TARGET, planned, read, status, write
from PIL import Image

import mllm_export.export.build_embedder as job
from mllm_export.device_tests.embedder import check_embedder
from mllm_export.device_tests.labelled import read_labelled
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.references._embedders import load_original
from mllm_export.embedder import is_embedder, open_embedder
from mllm_export.errors import (
    BundleError,
    CheckError,
    CheckpointError,
    EngineError,
    PlanError,
    RecipeError,
)
from mllm_export.export.embedder_parts import EMBEDDERS
from mllm_export.quantize.recipe import load_recipe
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.runtimes.embedder import open_embedder_session


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_random_checkpoint_is_the_same_in_every_run(tmp_path, name):
    # In processes of their own: what differs is the order in which a hash table is walked.
    lines = (
        "from pathlib import Path; import sys, tiny_embedders as tiny; "
        f"tiny.{name}(Path(sys.argv[1]))"
    )
    for folder in ("one", "two"):
        command = [sys.executable, "-c", lines, str(tmp_path / folder)]
        subprocess.run(command, check=True, cwd=Path(tiny.__file__).parent)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_equals_its_original(built, name):
    checkpoint, reading, bundle = built(name)
    report = check_embedder(bundle, open_embedder(bundle), checkpoint, reading)
    assert report.passed, [rung.reason for rung in report.rungs]
    found = status(report)
    assert {found[rung] for rung in ("pixels", "tower", "weights")} == {"passed"}
    has_text = reading.spec.text is not None
    assert found["prompt"] == found["controls"] == ("passed" if has_text else "not_run")


def test_every_catalog_entry_is_tried():
    assert {name.split(",")[0] for name in LAYOUTS} == set(EMBEDDERS.names())


def test_text_at_the_top_of_a_release_is_the_same_model(built, tmp_path):
    """S, B and L2 keep the text tower at the top, the others below `text.`."""
    checkpoint, reading = read(tiny.vitamin_open_clip(tmp_path / "checkpoint", below=""))
    reading.weights.resolve(checkpoint.shapes(False))
    original = load_original(checkpoint)
    assert original.embed_text(original.ids("a photo of a red circle.")).shape == (24,)


@pytest.mark.parametrize("name", ["clip", "siglip", "vitamin, open_clip"])
def test_labels_get_the_probabilities_of_the_original(built, name):
    checkpoint, _, bundle = built(name)
    original, session = load_original(checkpoint), open_embedder_session(bundle)
    picture = next(iter(scenes(1)))
    labels = ("a red circle", "a blue square", "fox")
    texts = [session.spec.template.replace("{}", label) for label in labels]
    with picture.open() as image:
        ours = session.classify(image, labels)
        pixels = original.pixels(image)
    found = original.embed_image(pixels)
    rows = np.stack([original.embed_text(original.ids(text)) for text in texts])
    cosine = rows @ found / np.linalg.norm(rows, axis=1) / np.linalg.norm(found)
    scores = original.scale * cosine + original.bias
    powers = np.exp(scores)
    theirs = powers / (1 + powers) if name == "siglip" else powers / powers.sum()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _replaced(reading, **text):
    return replace(reading, spec=replace(reading.spec, text=replace(reading.spec.text, **text)))


def _encoder(reading, **changes):
    encoder = replace(reading.spec.encoder, **changes)
    return replace(reading, spec=replace(reading.spec, encoder=encoder))


FAULTS = {
    "clip: gelu for quick_gelu": (
        "clip", lambda r: _encoder(r, activation="gelu"), "tower",
    ),
    "clip: gelu for quick_gelu in the text tower": (
        "clip", lambda r: _replaced(r, activation="gelu"), "tower",
    ),
    "clip: the end id of the config, not the tokenizer's": (
        "clip", lambda r: _replaced(r, eos_id=2), "prompt",
    ),
    "siglip: erf for tanh in the text tower": (
        "siglip", lambda r: _replaced(r, activation="gelu"), "tower",
    ),
    "siglip: another padding": ("siglip", lambda r: _replaced(r, pad_id=0), "prompt"),
    "siglip: cropped, not stretched": (
        "siglip",
        lambda r: _encoder(r, image=replace(r.spec.encoder.image, fit="crop")),
        "pixels",
    ),
    "vitamin: positions resized wrongly": (
        "vitamin, timm, positions resized", lambda r: _encoder(r, position_grid=0), "tower",
    ),
    "open_clip: quick_gelu in the text tower": (
        "vitamin, open_clip", lambda r: _replaced(r, activation="quick_gelu"), "tower",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_rung_that_is_for_it(built, fault, tmp_path):
    name, plant, rung = FAULTS[fault]
    checkpoint, reading, _ = built(name)
    wrong = plant(reading)
    bundle = tmp_path / "bundle"
    # The weight map stays the original's, as a wrong spec with right names would leave it.
    plan = job.plan_embedder(wrong, TARGET, load_recipe("f16"))
    write(plan, wrong, checkpoint, bundle)
    report = check_embedder(bundle, open_embedder(bundle), checkpoint, reading)
    assert status(report)[rung] == "failed", status(report)


def test_a_changed_weight_fails_the_weights_rung(built, tmp_path):
    checkpoint, reading, bundle = built("clip")
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "image.onnx").read_bytes())
    stored = np.ascontiguousarray(
        np.asarray(checkpoint.read("visual_projection.weight"), np.float32).T
    ).tobytes()
    at = bytes(data).index(stored)
    data[at : at + 4] = np.float32(9.0).tobytes()
    (copy / "image.onnx").write_bytes(bytes(data))
    manifest = open_embedder(copy, verify=False)
    assert status(check_embedder(copy, manifest, checkpoint, reading))["weights"] == "failed"
    with pytest.raises(BundleError, match=r"image\.onnx' was changed"):
        open_embedder(copy)


def test_the_task_rung_counts_right_labels_of_both(built, tmp_path):
    checkpoint, reading, bundle = built("clip")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    line = {"image": "red.png", "labels": ["a red circle", "fox", "7"], "answer": "fox"}
    file = tmp_path / "labels.jsonl"
    file.write_text((json.dumps(line) + "\n") * 3)
    report = check_embedder(bundle, open_embedder(bundle), checkpoint, reading, file)
    task = next(rung for rung in report.rungs if rung.name == "task")
    values = {m.name: m.value for m in task.measurements}
    assert (task.status, values["accuracy lost"]) == ("passed", 0)
    assert values["accuracy of the original"] in {0.0, 100.0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"image": "a.png", "labels": "x", "answer": "x"}', "key 'labels' is 'x'"),
        ('{"image": "a.png", "labels": ["x"], "answer": "y"}', "answer 'y' is none of the labels"),
        ('{"image": "a.png", "labels": ["x"], "answer": "x"}', "picture 'a.png' is not there"),
    ],
)
def test_a_wrong_line_of_an_evaluation_file_is_named(tmp_path, line, words):
    (tmp_path / "labels.jsonl").write_text(line)
    with pytest.raises(CheckError, match=words):
        read_labelled(tmp_path / "labels.jsonl")


IN_COREML = [name for name in LAYOUTS if "resized" not in name]


@pytest.mark.parametrize("name", IN_COREML)
def test_every_layout_equals_its_original_in_core_ml(built, name):
    checkpoint, reading, bundle = built(name, MAC)
    manifest = open_embedder(bundle)
    assert manifest.path(bundle, "tower").name == "image.mlpackage"
    report = check_embedder(bundle, manifest, checkpoint, reading)
    assert report.passed, [rung.reason for rung in report.rungs]
    tower = next(rung for rung in report.rungs if rung.name == "tower")
    assert "program in float32: worst-token cosine" in {m.name for m in tower.measurements}


def test_a_resized_table_of_positions_is_refused_in_core_ml(tmp_path):
    _, reading = read(LAYOUTS["vitamin, timm, positions resized"](tmp_path / "checkpoint"))
    with pytest.raises(PlanError, match=r"stored for another image size.*a target with ONNX"):
        job.plan_embedder(reading, MAC, load_recipe("f16"))


@pytest.mark.parametrize(
    ("name", "target", "scheme"),
    [
        ("clip", TARGET, "w8a8"),
        ("vitamin, open_clip", TARGET, "w8a8"),
        ("siglip", MAC, "w8"),
    ],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_recipe_of_8_bits_stores_both_towers_in_8_bits(built, name, target, scheme):
    checkpoint, reading, bundle = built(name, target, "int8")
    manifest = open_embedder(bundle)
    report = check_embedder(bundle, manifest, checkpoint, reading)
    assert report.passed, [rung.reason for rung in report.rungs]
    weights = next(rung for rung in report.rungs if rung.name == "weights")
    for part in ("tower.", "text."):
        rows = [row for row in weights.tensors if row.name.startswith(part)]
        assert {row.scheme for row in rows} >= {scheme}
    plain = sum(f.size_bytes for f in open_embedder(built(name, target)[2]).files)
    assert sum(f.size_bytes for f in manifest.files) < plain
    assert not list(bundle.glob("tower.float*"))


def test_a_recipe_that_calibrates_is_refused_with_the_one_to_give(built):
    _, reading, _ = built("clip")
    with pytest.raises(PlanError, match=r"calibrates 8-bit activations.*--recipe int8"):
        job.plan_embedder(reading, TARGET, load_recipe("int8-static"))


def test_a_rule_for_one_tower_need_not_take_anything_of_the_other(built):
    _, reading, _ = built("clip")
    rule = TowerRule(tensors="text.*", scheme="w8a8")
    plan = job.plan_embedder(reading, TARGET, replace(load_recipe("f16"), tower=(rule,)))
    image, text = ({row.scheme for row in artifact.tensors} for artifact in plan.artifacts)
    assert image == {"f32"}
    assert "w8a8" in text
    nothing = TowerRule(tensors="nowhere.*", scheme="w8a8")
    with pytest.raises(RecipeError, match=r"'nowhere\.\*' takes no tensor"):
        job.plan_embedder(reading, TARGET, replace(load_recipe("f16"), tower=(nothing,)))


@pytest.fixture(scope="module")
def golden(built, tmp_path_factory):
    """Bundles with golden files, as a checked build leaves them."""
    made = {}

    def get(name, target=TARGET):
        if (name, target.name) not in made:
            checkpoint, reading, _ = built(name, target)
            out = tmp_path_factory.mktemp("golden") / "bundle"

            def finish(folder, draft):
                check_embedder(folder, draft, checkpoint, reading, golden=True)
                return "passed"

            plan = job.plan_embedder(reading, target, load_recipe("f16"))
            write(plan, reading, checkpoint, out, finish)
            made[name, target.name] = out
        return made[name, target.name]

    return get


@pytest.mark.parametrize(
    ("name", "target"),
    [("clip", TARGET), ("siglip", MAC), ("vitamin, timm", TARGET)],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_bundle_is_checked_by_its_golden_files_alone(golden, name, target):
    bundle = golden(name, target)
    manifest = open_embedder(bundle)
    assert {f.role for f in manifest.files} >= {"tower", "golden"}
    report = check_embedder(bundle, manifest)
    assert report.passed, [rung.reason for rung in report.rungs]
    found = status(report)
    assert found["pixels"] == found["tower"] == "passed"
    assert found["weights"] == found["task"] == "not_run"
    has_text = manifest.model.text is not None
    assert found["prompt"] == found["controls"] == ("passed" if has_text else "not_run")


GOLDEN_FAULTS = {
    "another image's constants": (
        lambda m: replace(m, model=replace(m.model, encoder=replace(
            m.model.encoder, image=replace(m.model.encoder.image, mean=(0.5, 0.5, 0.5))))),
        "pixels",
    ),
    "another end of a text": (
        lambda m: replace(m, model=replace(m.model, text=replace(m.model.text, pad_id=3))),
        "prompt",
    ),
    "another scale of scores": (lambda m: replace(m, logit_scale=m.logit_scale / 3), "controls"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GOLDEN_FAULTS)
def test_a_wrong_manifest_is_found_by_the_golden_files(golden, fault):
    plant, rung = GOLDEN_FAULTS[fault]
    bundle = golden("clip")
    report = check_embedder(bundle, plant(open_embedder(bundle)))
    assert status(report)[rung] == "failed", status(report)


@pytest.mark.parametrize("file", ["image.onnx", "text.onnx"])
def test_a_changed_weight_is_found_by_the_golden_files(built, golden, tmp_path, file):
    copy = shutil.copytree(golden("clip"), tmp_path / "bundle")
    data = (copy / file).read_bytes()
    source = {"image": "visual_projection.weight", "text": "text_projection.weight"}[file[:-5]]
    checkpoint, _, _ = built("clip")
    stored = np.ascontiguousarray(np.asarray(checkpoint.read(source), np.float32).T)
    assert data.count(stored.tobytes()) == 1
    (copy / file).write_bytes(data.replace(stored.tobytes(), np.roll(stored, 1, 0).tobytes()))
    report = check_embedder(copy, open_embedder(copy, verify=False))
    assert status(report)["tower"] == "failed"


def test_a_bundle_without_golden_files_asks_for_the_original(built):
    _, _, bundle = built("clip")
    with pytest.raises(BundleError, match=r"holds no golden files.*--against"):
        check_embedder(bundle, open_embedder(bundle))


def test_a_text_tower_without_a_tokenizer_is_refused(tmp_path):
    folder = tiny.vitamin_open_clip(tmp_path / "checkpoint")
    (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*tokenizer\.json"):
        read(folder)


def test_towers_of_an_interrupted_build_are_taken_up(built, tmp_path):
    checkpoint, reading, undisturbed = built("clip")
    plan, out = planned(checkpoint, reading), tmp_path / "bundle"

    def interrupt(folder, draft):
        assert {file.role for file in draft.files} >= {"tower", "text_tower", "tokenizer"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan, reading, checkpoint, out, interrupt)
    (left,) = tmp_path.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in left.glob("*.onnx")}
    assert set(before) == {"image.onnx", "text.onnx"}
    write(plan, reading, checkpoint, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.onnx")} == before
    for path in undisturbed.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(undisturbed)).read_bytes() == path.read_bytes(), path
    assert {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()}


def test_a_tensor_nobody_knows_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny.clip(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    checkpoint, reading = read(folder)
    with pytest.raises(CheckpointError, match=r"'extra\.weight' \[3\] has no place"):
        reading.weights.resolve(checkpoint.shapes(False))


def test_a_bundle_of_images_alone_says_so_when_asked_for_texts(built):
    _, _, bundle = built("vitamin, timm")
    session = open_embedder_session(bundle)
    assert is_embedder(bundle)
    with pytest.raises(EngineError, match="no text tower"):
        session.embed_text("a dog")
