"""Encoders alone: every layout through plan, build, ladder and runtime, and faults planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_embedders as tiny
from PIL import Image

import mllm_export.export.build_embedder as job
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.embedder import check_embedder, read_labelled
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.references._embedders import load_original
from mllm_export.embedder import is_embedder, open_embedder
from mllm_export.errors import BundleError, CheckError, CheckpointError, EngineError, PlanError
from mllm_export.export.embedder_parts import EMBEDDERS, embedder_for
from mllm_export.export.target import load_target
from mllm_export.quantize.recipe import load_recipe
from mllm_export.runtimes.embedder import open_embedder_session

LAYOUTS = {
    "clip": tiny.clip,
    "siglip": tiny.siglip,
    "vitamin, timm": tiny.vitamin_timm,
    "vitamin, timm, positions resized": lambda folder: tiny.vitamin_timm(folder, 4),
    "vitamin, open_clip": tiny.vitamin_open_clip,
}
TARGET = load_target("linux-x86_64")


def read(folder: Path):
    checkpoint = Checkpoint(folder)
    entry = embedder_for(checkpoint.config)
    assert entry is not None
    return checkpoint, entry.read(checkpoint)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Checkpoint, reading, bundle of a layout; written once, in this process."""
    made = {}

    def build(name: str):
        if name not in made:
            root = tmp_path_factory.mktemp("embedder")
            folder = LAYOUTS[name](root / "checkpoint")
            checkpoint, reading = read(folder)
            dropped = reading.weights.resolve(checkpoint.shapes(False))
            plan = job.plan_embedder(reading, TARGET, load_recipe("f16"), dropped)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(job, "run_in_child", lambda _, f, *a, progress: f(*a, progress))
                job.build_embedder(
                    plan, reading, checkpoint, root / "bundle", lambda *_: "unchecked"
                )
            made[name] = checkpoint, reading, root / "bundle"
        return made[name]

    return build


def status(report):
    return {rung.name: rung.status for rung in report.rungs}


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "run_in_child", lambda _, f, *a, progress: f(*a, progress))
        job.build_embedder(plan, wrong, checkpoint, bundle, lambda *_: "unchecked")
    report = check_embedder(bundle, open_embedder(bundle), checkpoint, reading)
    assert status(report)[rung] == "failed", status(report)


def test_a_changed_weight_fails_the_weights_rung(built, tmp_path):
    import shutil

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


def test_a_recipe_that_quantizes_towers_is_refused_with_the_one_to_give(built):
    _, reading, _ = built("clip")
    with pytest.raises(PlanError, match=r"stores towers as w8a8.*--recipe f16"):
        job.plan_embedder(reading, TARGET, load_recipe("int4"))


def test_a_text_tower_without_a_tokenizer_is_refused(tmp_path):
    folder = tiny.vitamin_open_clip(tmp_path / "checkpoint")
    (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*tokenizer\.json"):
        read(folder)


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
