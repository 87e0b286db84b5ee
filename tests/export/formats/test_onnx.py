"""The written graph: what it computes, what it stores, and that nothing else is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mllm_export.errors import BuildError
from mllm_export.export.formats.onnx import OPSET, check_graph, tower_skeleton, write_tower
from mllm_export.export.formats.onnx_run import run_once
from mllm_export.export.onnx_stream import open_onnx
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.stored import to_published
from mllm_export.export.tower_plan import plan_tower_tensors
from mllm_export.spec import VisionSpec

CASES = {
    "ldpv2": ("ldpv2", {}),
    "ldp": ("ldp", {}),
    "mlp2x_gelu, cls_patch": ("mlp2x_gelu", {"keep_prefix": True}),
    "linear, last layer, gelu": ("linear", {"select_layer": -1, "activation": "gelu"}),
    "ldpv2 on a 10 x 10 grid, layer 1": ("ldpv2", {"patch_px": 9, "select_layer": 1}),
}


STEPS = []


def write(path, original):
    STEPS.clear()
    write_tower(
        path,
        original.spec,
        original.read_tower,
        original.read_projector,
        STEPS.append,
    )
    return path


def run(path, pixels):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["image_embeds"], {"pixel_values": pixels.numpy()})[0]


@pytest.fixture(scope="module")
def written(vision, tmp_path_factory):
    """Original and file of every case."""
    folder = tmp_path_factory.mktemp("towers")
    made = {}
    for number, (case, (kind, changes)) in enumerate(CASES.items()):
        original = vision(kind, **changes)
        made[case] = (original, write(folder / f"{number}.onnx", original))
    return made


@pytest.mark.parametrize("case", CASES)
def test_graph_computes_what_torch_computes(written, cosine, error, case):
    original, path = written[case]
    for seed in range(2):
        pixels = original.pixels(seed)
        theirs = original.embeddings(pixels)
        ours = run(path, pixels)
        assert ours.shape == (original.projector.tokens_out, original.projector.out_width)
        assert cosine(ours, theirs) >= 0.99999
        assert error(ours, theirs) < 2e-5


@pytest.mark.parametrize("case", CASES)
def test_stored_initializers_are_the_planned_ones(written, case):
    original, path = written[case]
    tower = {n: f"t.{n}" for n in ENCODERS["clip_vit"].parameters(original.encoder)}
    kind = PROJECTORS[original.projector.kind]
    projector = {n: f"p.{n}" for n in kind.parameters(original.projector)}
    plan = plan_tower_tensors(original.spec, tower, projector, "f32")
    stored = {i.name: i for i in onnx.load(path).graph.initializer}
    assert [row.name for row in plan] == list(stored)
    for row in plan:
        assert row.shape == tuple(stored[row.name].dims)
        assert row.size_bytes == len(stored[row.name].raw_data)
        assert row.scheme == "f32"
        assert stored[row.name].data_type == TensorProto.FLOAT
        assert row.sources[0][2:] == row.name.split(".", 1)[1]
        assert row.note == ""


@pytest.mark.parametrize("case", ["ldp", "ldpv2"])
def test_stored_values_are_the_published_ones_once_turned_back(written, case):
    original, path = written[case]
    parts = {
        "tower.": (ENCODERS["clip_vit"].parameters(original.encoder), original.read_tower),
        "projector.": (
            PROJECTORS[case].parameters(original.projector),
            original.read_projector,
        ),
    }
    for entry in onnx.load(path).graph.initializer:
        prefix, name = entry.name.split(".", 1)
        shapes, read = parts[f"{prefix}."]
        values = to_published(name, shapes[name], onnx.numpy_helper.to_array(entry))
        np.testing.assert_array_equal(values, read(name))


def test_the_file_is_valid_onnx_with_one_fixed_input_and_output(written):
    for original, path in written.values():
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        assert [(d.domain, d.version) for d in model.opset_import] == [("", OPSET)]
        size = original.encoder.image.size_px
        (pixels,), (rows,) = model.graph.input, model.graph.output
        assert (pixels.name, sides(pixels)) == ("pixel_values", [1, 3, size, size])
        spec = original.projector
        assert (rows.name, sides(rows)) == ("image_embeds", [spec.tokens_out, spec.out_width])


def sides(value):
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def test_layers_past_the_selected_one_are_not_in_the_graph(written):
    _, path = written["ldpv2 on a 10 x 10 grid, layer 1"]
    names = [i.name for i in onnx.load(path).graph.initializer]
    assert any(".layers.0." in name for name in names)
    assert not any(".layers.1." in name or "post_layernorm" in name for name in names)


def test_no_path_of_this_machine_and_no_side_note_is_in_the_file(written):
    for _, path in written.values():
        data = path.read_bytes()
        for word in (os.getcwd(), os.path.expanduser("~"), sys.prefix, "site-packages", ".py"):
            assert word.encode() not in data, word
        model = onnx.load(path)
        graph = model.graph
        for message in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
            assert not message.doc_string
            assert not message.metadata_props


def test_another_process_writes_the_same_bytes(written, tmp_path):
    """Traced names must not depend on hash seeds or on what was traced before."""
    original, path = written["ldpv2"]
    assert tower_skeleton(original.spec) == tower_skeleton(original.spec)
    script = (
        "import sys; from pathlib import Path\n"
        "from mllm_export.export.formats.onnx import tower_skeleton\n"
        "from mllm_export.export.parts import ENCODERS, PROJECTORS\n"
        "e = ENCODERS['clip_vit'].tiny()\n"
        "p = PROJECTORS['ldpv2'].spec(e.width, 96, e.tokens_out)\n"
        "from mllm_export.spec import VisionSpec\n"
        "v = VisionSpec(encoders=(e,), projector=p)\n"
        "data = tower_skeleton(v).SerializeToString(deterministic=True)\n"
        "Path(sys.argv[1]).write_bytes(data)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, cwd=tmp_path)
    model = onnx.load(path)
    model.graph.ClearField("initializer")
    assert model.SerializeToString(deterministic=True) == (tmp_path / "other").read_bytes()


def test_progress_counts_the_bytes_of_every_tensor(written):
    _, path = list(written.values())[-1]
    counted = [step for step in STEPS if step.total]
    stored = onnx.load(path).graph.initializer
    assert [step.item for step in counted] == [entry.name for entry in stored]
    sizes = np.array([len(entry.raw_data) for entry in stored])
    np.testing.assert_array_equal([s.done for s in counted], np.cumsum(sizes) - sizes)
    assert {s.total for s in counted} == {sizes.sum()}


def test_weights_that_are_no_numbers_are_refused(vision, tmp_path):
    original = vision("linear")

    def read(name):
        return original.read_projector(name) * np.float32(np.nan)

    with pytest.raises(BuildError, match=r"needed: finite .*NaN or infinity"):
        write_tower(tmp_path / "t.onnx", original.spec, original.read_tower, read)


def test_another_output_shape_is_refused(written):
    _, path = written["ldpv2"]
    with pytest.raises(BuildError, match=r"gives \w+ \[144, 96\], needed: finite \w+ \[145, 96\]"):
        run_once(path, {"image_embeds": (145, 96)})


def test_a_graph_whose_shapes_contradict_is_refused(written):
    _, path = written["ldpv2"]
    opened = open_onnx(path)
    shapes = {n: (TensorProto.FLOAT, t.shape) for n, t in opened.tensors.items()}
    check_graph(opened.skeleton, shapes)
    name = "projector.mlp.mlp.2.weight"
    with pytest.raises(BuildError, match="not valid ONNX"):
        check_graph(opened.skeleton, {**shapes, name: (TensorProto.FLOAT, (3, 5))})


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path):
    (tmp_path / "t.onnx").write_bytes(b"not a graph")
    with pytest.raises(BuildError, match=r"t\.onnx: ONNX Runtime refuses the graph"):
        run_once(tmp_path / "t.onnx", {"image_embeds": (1, 1)})


def test_an_operator_onnx_runtime_lacks_is_refused(tmp_path):
    node = helper.make_node("NoSuchOperator", ["pixel_values"], ["image_embeds"], domain="x")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("pixel_values", TensorProto.FLOAT, [1])],
        [value("image_embeds", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("x", 1)],
        ir_version=10,
    )
    (tmp_path / "t.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=r"ONNX Runtime refuses the graph .*NoSuchOperator"):
        run_once(tmp_path / "t.onnx", {"image_embeds": (1,)})


@pytest.mark.parametrize("fault", ["gelu", "eps"])
def test_a_graph_of_another_spec_would_be_seen(vision, error, tmp_path, fault):
    """The limits of the first test are far inside what a wrong export is off by."""
    original = vision("linear")
    changes = {
        "gelu": {"activation": "gelu"},
        "eps": {"norm_eps": 1e-3},
    }[fault]
    encoder = replace(original.encoder, **changes)
    projector = PROJECTORS["linear"].spec(encoder.width, 96, encoder.tokens_out)
    path = tmp_path / "t.onnx"
    vision = VisionSpec(encoders=(encoder,), projector=projector)
    write_tower(path, vision, original.read_tower, original.read_projector)
    pixels = original.pixels()
    ours, theirs = run(path, pixels), original.embeddings(pixels)
    assert error(ours, theirs) > 2e-4
