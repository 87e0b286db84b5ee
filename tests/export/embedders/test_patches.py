"""Patches of an encoder alone: what the original calls its last hidden state, and nothing else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_embedders as tiny
import torch
from embedder_builds import MAC, TARGET, planned, status, write
from onnx import TensorProto, helper
from torch.nn import functional
from typer.testing import CliRunner

from mllm_export.cli import app
from mllm_export.device_tests.embedder import check_embedder
from mllm_export.device_tests.embedder_golden import FOLDER
from mllm_export.device_tests.golden import VALUES, load_values, save_values
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.references._embedders import load_original
from mllm_export.embedder import open_embedder
from mllm_export.errors import BuildError, BundleError, EngineError
from mllm_export.export import tower_quantize
from mllm_export.export.embedder_parts import HEADS
from mllm_export.export.onnx_stream import open_onnx
from mllm_export.export.tower_pieces import split
from mllm_export.export.tower_steps import FUSED, StepMeter
from mllm_export.runtimes.embedder import open_embedder_session

KINDS = ("clip", "siglip", "vitamin, timm")


def picture():
    with next(iter(scenes(1))).open() as image:
        return image.convert("RGB")


def hidden_clip(folder, pixels):
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(folder, local_files_only=True).eval()
    rows = model(pixel_values=pixels, output_hidden_states=True)
    assert torch.equal(rows.last_hidden_state, rows.hidden_states[-1])  # no norm behind the layers
    return rows.last_hidden_state[0, 1:]


def hidden_siglip(folder, pixels):
    from transformers import SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(folder, local_files_only=True).eval()
    return model(pixel_values=pixels).last_hidden_state[0]


def hidden_vitamin(folder, pixels):
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(
        "vitamin_small_224", num_classes=24, **tiny.NAMED["model_args"]
    ).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    assert isinstance(model.norm, torch.nn.Identity)
    assert model.num_prefix_tokens == 0
    return model.forward_features(pixels)[0]


HIDDEN = {"clip": hidden_clip, "siglip": hidden_siglip, "vitamin, timm": hidden_vitamin}


@pytest.mark.parametrize("name", KINDS)
def test_patches_are_what_the_library_loads_and_gives_by_itself(built, name):
    checkpoint, _, bundle = built(name)
    session = open_embedder_session(bundle)
    pixels = session.preprocess(picture())
    with torch.inference_mode():
        expected = HIDDEN[name](checkpoint.path, torch.from_numpy(pixels)).numpy()
    ours = session.embed_patches(picture())
    assert ours.shape == expected.shape == session.spec.patch_shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    # What the checks hold a bundle against is the same.
    np.testing.assert_array_equal(load_original(checkpoint).embed_patches(pixels), expected)


@pytest.mark.parametrize("name", KINDS)
def test_one_run_gives_both(built, name):
    session = open_embedder_session(built(name)[2])
    both = session.features(session.preprocess(picture()))
    np.testing.assert_array_equal(both.embedding, session.embed_image(picture()))
    np.testing.assert_array_equal(both.patches, session.embed_patches(picture()))


def figures(report):
    tower = next(rung for rung in report.rungs if rung.name == "tower")
    return {m.name: m for m in tower.measurements}


@pytest.mark.parametrize("recipe", ["f16", "int8"])
@pytest.mark.parametrize("target", [TARGET, MAC], ids=["onnx", "coreml"])
@pytest.mark.parametrize("name", KINDS)
def test_the_report_has_figures_of_their_own_with_a_towers_limits(built, name, target, recipe):
    checkpoint, reading, bundle = built(name, target, recipe)
    found = figures(check_embedder(bundle, open_embedder(bundle), checkpoint, reading))
    ways = [""]
    if target is MAC:
        ways += ["program in float32: ", "program in float32, on its own weights: "]
    for way in ways:
        for what in ("worst-token cosine", "mean-token cosine", "relative error"):
            one, whole = found[f"{way}patches: {what}"], found[way + what]
            assert one.passed is not False, one
            assert (one.sense, one.limit, one.limit_from) == (
                whole.sense, whole.limit, whole.limit_from,
            )  # fmt: skip
        assert found[f"{way}patches: worst-token cosine"].limit is not None
        assert found[f"{way}patches: relative error"].limit is not None


def _normed(weights, name, rows, spec):
    shape = (spec.width,)
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.layer_norm(rows, shape, scale, shift, spec.norm_eps)


FAULTS = {
    "clip: shifted by one": (
        "clip", "class_token", lambda _s, _w, _r, patches: patches.roll(1, 1),
    ),
    "clip: the class token kept, the last patch lost": (
        "clip", "class_token", lambda _s, _w, rows, _p: rows[:, :-1],
    ),
    "clip: the pooled token's norm over all": (
        "clip", "class_token",
        lambda s, w, _r, patches: _normed(w, "vision_model.post_layernorm", patches, s),
    ),
    "clip: turned over": (
        "clip", "class_token",
        lambda s, _w, _r, p: p.reshape(1, s.grid, s.grid, s.width).transpose(1, 2).reshape(p.shape),
    ),
    "siglip: without the last norm": (
        "siglip", "attention_pool", lambda _s, _w, rows, _p: rows + 0,
    ),
    "siglip: shifted by one": (
        "siglip", "attention_pool", lambda _s, _w, _r, patches: patches.roll(1, 1),
    ),
    "vitamin: the pooled row's norm over all": (
        "vitamin, timm", "mean_norm", lambda s, w, rows, _p: _normed(w, "fc_norm", rows, s),
    ),
    "vitamin: one patch is another's": (
        "vitamin, timm", "mean_norm",
        lambda _s, _w, rows, _p: torch.cat([rows[:, :-1], rows[:, :1]], 1),
    ),
}  # fmt: skip


@pytest.fixture
def plant(monkeypatch):
    """Put other patches in place of a head's own; the embedding stays."""

    def put(head, change):
        kind = type(HEADS[head])
        own = kind.apply

        def apply(self, spec, weights, rows):
            pooled, patches = own(self, spec, weights, rows)
            return pooled, change(spec, weights, rows, patches)

        monkeypatch.setattr(kind, "apply", apply)

    return put


def broken(report):
    return [name for name, one in figures(report).items() if one.passed is False]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_patches_alone_is_named(built, plant, fault, tmp_path):
    name, head, change = FAULTS[fault]
    checkpoint, reading, _ = built(name)
    plant(head, change)
    write(planned(checkpoint, reading), reading, checkpoint, tmp_path / "bundle")
    report = check_embedder(
        tmp_path / "bundle", open_embedder(tmp_path / "bundle"), checkpoint, reading
    )
    assert status(report)["tower"] == "failed"
    found = broken(report)
    assert found
    assert all(one.startswith("patches: ") for one in found), found


def test_a_fault_in_core_ml_is_told_by_the_graph_too(built, plant, tmp_path):
    checkpoint, reading, _ = built("siglip")
    plant("attention_pool", lambda _s, _w, rows, _p: rows + 0)
    bundle = tmp_path / "bundle"
    write(planned(checkpoint, reading, MAC, "int8"), reading, checkpoint, bundle)
    found = broken(check_embedder(bundle, open_embedder(bundle), checkpoint, reading))
    assert "patches: relative error" in found
    assert "program in float32, on its own weights: patches: relative error" in found
    assert all("patches: " in one for one in found), found


def test_a_class_token_that_is_kept_is_refused_by_the_build(built, plant, tmp_path):
    checkpoint, reading, _ = built("clip")
    plant("class_token", lambda _s, _w, rows, _p: rows + 0)
    with pytest.raises(BuildError, match=r"patches \[1, 17, 48\].*needed.*patches \[1, 16, 48\]"):
        write(planned(checkpoint, reading), reading, checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("change", ["no patches", "more patches", "not a number"])
def test_a_file_that_gives_other_outputs_is_refused_on_the_device(built, change):
    session = open_embedder_session(built("clip")[2])
    run = session._image

    def other(values):
        made = run(values)
        if change == "no patches":
            del made["patches"]
        elif change == "more patches":
            made["patches"] = np.concatenate([made["patches"], made["patches"][:, :1]], 1)
        else:
            made["patches"][0, 3, 2] = np.nan
        return made

    session._image = other
    says = {
        "no patches": r"gives image_embeds \[24\], the spec needs .*patches \[16, 48\]",
        "more patches": r"patches \[17, 48\], the spec needs .*patches \[16, 48\]",
        "not a number": "NaN or Inf",
    }
    with pytest.raises(EngineError, match=says[change]):
        session.embed_image(picture())


def test_a_bundle_without_patches_asks_to_be_built_again(built, tmp_path):
    copy = shutil.copytree(built("clip")[2], tmp_path / "bundle")
    data = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**data, "schema": 1}))
    with pytest.raises(BundleError, match=r"schema 1, this runtime reads 2; build the bundle agai"):
        open_embedder(copy)


def test_golden_files_hold_patches_to_compare_with(built, tmp_path):
    checkpoint, reading, _ = built("siglip")

    def finish(folder, draft):
        check_embedder(folder, draft, checkpoint, reading, golden=True)
        return "passed"

    bundle = tmp_path / "bundle"
    write(planned(checkpoint, reading), reading, checkpoint, bundle, finish)
    manifest = open_embedder(bundle)
    assert check_embedder(bundle, manifest).passed
    values = load_values(bundle / FOLDER / VALUES)
    other = {n: np.roll(v, 1, 0) if n.startswith("patches-") else v for n, v in values.items()}
    (bundle / FOLDER / VALUES).unlink()
    save_values(bundle / FOLDER / VALUES, other)
    report = check_embedder(bundle, manifest)
    assert status(report)["tower"] == "failed"
    assert all(one.startswith("patches: ") for one in broken(report))


@pytest.mark.parametrize("name", KINDS)
def test_both_outputs_survive_the_cut_into_pieces(built, name, tmp_path, monkeypatch):
    checkpoint, reading, bundle = built(name)
    pieces = split(open_onnx(bundle / "image.onnx"), 1)
    assert len(pieces) > 3
    assert pieces[-1].output == "image_embeds"
    assert [n for p in pieces for n in (p.output, *p.also)].count("patches") == 1
    monkeypatch.setattr(tower_quantize, "PIECE_BYTES", 1)
    small = tmp_path / "bundle"
    write(planned(checkpoint, reading, TARGET, "int8"), reading, checkpoint, small)
    whole = open_embedder_session(built(name, TARGET, "int8")[2])
    pixels = whole.preprocess(picture())
    expected, made = (one.features(pixels) for one in (whole, open_embedder_session(small)))
    np.testing.assert_array_equal(made.patches, expected.patches)
    np.testing.assert_array_equal(made.embedding, expected.embedding)


def two_outputs(factor):
    """x -> first = x + 1, second = x * factor."""
    value = helper.make_tensor_value_info
    one, times = (helper.make_tensor(n, 1, [1], [v]) for n, v in (("one", 1), ("f", factor)))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["first"]),
         helper.make_node("Mul", ["x", "f"], ["second"])],
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        [value("first", TensorProto.FLOAT, [4]), value("second", TensorProto.FLOAT, [4])],
        [one, times],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_step_that_changes_a_later_output_alone_is_stopped():
    meter = StepMeter()
    meter.begin(two_outputs(1.0), {"x": np.arange(4, dtype=np.float32)})
    meter.after(FUSED, two_outputs(1.0))
    with pytest.raises(BuildError, match=r"once it is fused: relative error 0\.01 at 'second'"):
        meter.after(FUSED, two_outputs(1.01))


def test_the_file_names_both_outputs_and_holds_no_more_weights(built):
    _, reading, bundle = built("clip")
    model = onnx.load(bundle / "image.onnx")
    assert [port.name for port in model.graph.output] == ["image_embeds", "patches"]
    takes = [take for take in reading.weights.takes if take.part != "text"]
    assert len(model.graph.initializer) == len(takes)
    session = onnxruntime.InferenceSession(str(bundle / "image.onnx"))
    assert [port.shape for port in session.get_outputs()] == [[1, 24], [1, 16, 48]]


def test_inspect_says_how_many_patches_there_are(tmp_path):
    shown = CliRunner().invoke(app, ["inspect", str(tiny.vitamin_timm(tmp_path / "m"))])
    assert "patches: 36 of 384 values" in shown.output
