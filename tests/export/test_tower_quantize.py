"""Towers in every scheme: stored as planned, and computing what is stored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from mllm_export.device_tests.stored_tower import read_onnx, tower_kind
from mllm_export.errors import BuildError
from mllm_export.export import tower_quantize
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.onnx_stream import open_onnx
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.tower_integer_products import fuse_integer_products
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_pieces import piece_model, split
from mllm_export.export.tower_plan import plan_tower_tensors, planned_schemes
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.export.tower_ranges import observe
from mllm_export.export.tower_smoothing import smooth, unsmoothed
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.quantize.tower_scheme import tower_scheme_names

# Least worst-token cosine of two pictures: measured, then half of what was lost allowed on top.
WORST = {
    "f32": 0.9999999,
    "f16": 0.99999,
    "w8a8": 0.997,
    "w8a8-static": 0.997,
    "w4g32": 0.93,
    "w4g32-asym": 0.95,
    "w4g128": 0.93,
    "w4g128-asym": 0.94,
}


@pytest.fixture(scope="module")
def original(vision):
    return vision("ldpv2")


@pytest.fixture(scope="module")
def float_path(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("tower") / "tower.onnx"
    readers = (original.read_tower, original.read_projector)
    write_tower(path, original.spec, *readers)
    return path


@pytest.fixture(scope="module")
def pixels(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(path, np.concatenate([original.pixels(seed).numpy() for seed in (5, 6, 7)]))
    return path


def planned(original, scheme, *rules):
    names = {n: n for n in ENCODERS["clip_vit"].parameters(original.encoder)}
    heads = {n: n for n in PROJECTORS["ldpv2"].parameters(original.projector)}
    return plan_tower_tensors(original.spec, names, heads, scheme, rules, "mine")


def run(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixels})[0]


def test_the_table_of_limits_covers_the_catalog():
    assert set(WORST) == set(tower_scheme_names())


@pytest.mark.parametrize("scheme", sorted(WORST))
def test_each_scheme_stores_what_is_planned_and_stays_near(
    original, float_path, pixels, cosine, tmp_path, scheme
):
    rows = planned(original, scheme)
    schemes = planned_schemes(rows)
    path = tmp_path / "tower.onnx"
    quantize_tower(float_path, path, TowerJob(schemes=schemes, preset="avx2", pixels=pixels))
    stored = {i.name: i for i in onnx.load(path).graph.initializer}
    assert {row.name: (row.shape, row.size_bytes) for row in rows} == {
        name: (tuple(entry.dims), len(entry.raw_data)) for name, entry in stored.items()
    }
    held = read_onnx(path)
    assert {name: one.scheme for name, one in held.items()} == schemes
    worst = min(
        cosine(run(path, original.pixels(s).numpy()), original.embeddings(original.pixels(s)))
        for s in range(2)
    )
    assert worst > WORST[scheme]


def test_stored_blocks_read_back_are_what_onnx_runtime_multiplies_by(float_path, tmp_path):
    """The weights check's reading of MatMulNBits against the engine itself, row by row."""
    for scheme in ("w4g32", "w4g32-asym", "w4g128-asym"):
        name = "tower.vision_model.encoder.layers.0.mlp.fc2.weight"
        path = tmp_path / f"{scheme}.onnx"
        quantize_tower(float_path, path, TowerJob(schemes={name: scheme}, preset=""))
        model = onnx.load(path)
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        rows = read_onnx(path)[name].shape[0]
        weights = {e.name: e for e in model.graph.initializer if e.name in node.input}
        alone = onnx.helper.make_model(
            onnx.helper.make_graph(
                [node],
                "one",
                [onnx.helper.make_tensor_value_info(node.input[0], 1, [rows, rows])],
                [onnx.helper.make_tensor_value_info(node.output[0], 1, None)],
                initializer=list(weights.values()),
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        session = onnxruntime.InferenceSession(alone.SerializeToString())
        made = session.run(None, {node.input[0]: np.eye(rows, dtype=np.float32)})[0]
        np.testing.assert_allclose(read_onnx(path)[name].values(0, rows), made, atol=1e-6)
        assert tower_kind(read_onnx(path)) == "int4"


def test_rules_mix_schemes_in_one_graph(original, float_path, pixels, cosine, tmp_path):
    rules = (
        TowerRule(tensors="projector.*", scheme="f16"),
        TowerRule(tensors="*.mlp.fc1.weight", scheme="w4g32"),
        TowerRule(tensors="*.mlp.fc2.weight", scheme="w8a8"),
    )
    schemes = planned_schemes(planned(original, "w8a8-static", *rules))
    path = tmp_path / "mixed.onnx"
    job = TowerJob(schemes=schemes, preset="avx512_vnni", pixels=pixels, smoothing=True)
    quantize_tower(float_path, path, job)
    assert {name: one.scheme for name, one in read_onnx(path).items()} == schemes
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    layers = original.encoder.run_layers
    assert (kinds["MatMulNBits"], kinds["MatMulInteger"]) == (layers, layers)
    assert kinds["MatMulIntegerToFloat"] == 4 * layers
    made = run(path, original.pixels(0).numpy())
    assert cosine(made, original.embeddings(original.pixels(0))) > WORST["w4g32"]


def test_static_products_leave_no_pair_to_be_computed_in_float(
    original, float_path, pixels, tmp_path
):
    schemes = planned_schemes(planned(original, "w8a8-static"))
    path = tmp_path / "static.onnx"
    quantize_tower(float_path, path, TowerJob(schemes=schemes, preset="avx512_vnni", pixels=pixels))
    model = onnx.load(path)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["DequantizeLinear"], kinds["DynamicQuantizeLinear"]) == (0, 0)
    assert kinds["MatMulIntegerToFloat"] == 6 * original.encoder.run_layers + 2
    biased = [n for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert all(len(node.input) == 7 for node in biased), "the bias is added by the kernel"


def test_a_pair_that_no_product_takes_is_an_error():
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "left"),
    ]
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy")
    scale = numpy_helper.from_array(np.float32(1), "s")
    zero = numpy_helper.from_array(np.uint8(0), "z")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y], initializer=[scale, zero])
    )
    with pytest.raises(BuildError, match="left: no integer product takes this pair"):
        fuse_integer_products(model)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy"])
def test_ranges_of_all_methods_hold_most_of_what_is_there(float_path, pixels, ranges):
    source = open_onnx(float_path)
    (piece,) = split(source, 1 << 40)
    model = piece_model(source, piece)
    values = ["layer_norm_1", "layer_norm_2"]
    pictures = [{"pixel_values": one[None]} for one in np.load(pixels)]
    seen = observe(model, values, pictures, ranges)
    extremes = observe(model, values, pictures, "minmax")
    for name in values:
        low, high = seen.ranges[name]
        lowest, highest = extremes.ranges[name]
        assert lowest <= low < 0 < high <= highest
        assert seen.peaks[name].max() == max(-lowest, highest)
        assert high - low > 0.3 * (highest - lowest)


def test_smoothing_changes_no_bit_of_the_float_graph(float_path, pixels):
    """Factors are powers of two: scaled and unscaled products round alike."""
    source = open_onnx(float_path)
    (piece,) = split(source, 1 << 40)
    before, after = piece_model(source, piece), piece_model(source, piece)
    names = [n.input[1] for n in after.graph.node if n.op_type == "MatMul"]
    wanted = [n for n in names if n in source.tensors]
    pictures = [{"pixel_values": np.load(pixels)[:1]}]
    values = [n.input[0] for n in after.graph.node if n.op_type == "MatMul"]
    seen = observe(before, values, pictures, "minmax")
    notes = smooth(after, wanted, seen.peaks)
    changed = unsmoothed(notes)
    # Two norms in each layer, with the bias, three products behind one and one behind the other.
    assert len(changed) == 2 * (2 + 3 + 2 + 1)
    assert any((factors != 1).any() for factors in changed.values())
    made = [observe(m, [], pictures, "minmax").outputs[0] for m in (before, after)]
    np.testing.assert_array_equal(made[0], made[1])
    for entry in after.graph.initializer:
        values = numpy_helper.to_array(entry)
        if entry.name in changed:
            values = values * changed[entry.name].reshape(-1, *[1] * (values.ndim - 1))
        np.testing.assert_array_equal(values, source.tensors[entry.name].read())


def test_smoothing_tames_outlying_channels(original, cosine, tmp_path, pixels):
    """Channels 60 times the rest, as CLIP's own: what 8 bits lose without, and keep with."""
    wide = {}

    def read(name):
        values = original.read_tower(name).copy()
        if name.endswith("layer_norm1.weight") or name.endswith("layer_norm2.weight"):
            values[:3] *= 60
            wide[name] = values
        if any(end in name for end in ("q_proj.w", "k_proj.w", "v_proj.w", "fc1.w")):
            values[:, :3] /= 60
        return values

    path = tmp_path / "float.onnx"
    write_tower(path, original.spec, read, original.read_projector)
    schemes = planned_schemes(planned(original, "w8a8-static"))
    picture = original.pixels(0).numpy()
    expected = run(path, picture)
    lost = {}
    for smoothing in (False, True):
        out = tmp_path / f"{smoothing}.onnx"
        job = TowerJob(schemes=schemes, preset="arm64", pixels=pixels, smoothing=smoothing)
        quantize_tower(path, out, job)
        lost[smoothing] = 1 - cosine(run(out, picture), expected)
    assert wide
    assert lost[True] < 0.3 * lost[False]


def test_static_ranges_without_pictures_are_refused(original, float_path, tmp_path):
    schemes = planned_schemes(planned(original, "w8a8-static"))
    with pytest.raises(BuildError, match="need calibration pictures, none were given"):
        quantize_tower(float_path, tmp_path / "x.onnx", TowerJob(schemes=schemes, preset="avx2"))


def test_a_value_past_float16_is_refused_by_name(original, tmp_path):
    def read(name):
        values = original.read_projector(name).copy()
        if name == "mlp.mlp.0.bias":
            values[0] = 70000
        return values

    path = tmp_path / "float.onnx"
    write_tower(path, original.spec, original.read_tower, read)
    job = TowerJob(schemes={"projector.mlp.mlp.0.bias": "f16"}, preset="")
    with pytest.raises(BuildError, match=r"'projector\.mlp\.mlp\.0\.bias' holds 70000"):
        quantize_tower(path, tmp_path / "x.onnx", job)


def test_pieces_give_the_static_tower_that_the_whole_gives(
    original, float_path, pixels, tmp_path, monkeypatch
):
    schemes = planned_schemes(planned(original, "w8a8-static"))
    made = []
    for name, piece_bytes in (("whole", 1 << 40), ("pieces", 1)):
        monkeypatch.setattr(tower_quantize, "PIECE_BYTES", piece_bytes)
        job = TowerJob(schemes=schemes, preset="avx2", pixels=pixels, smoothing=True)
        quantize_tower(float_path, tmp_path / name, job)
        made.append({n: t.read() for n, t in open_onnx(tmp_path / name).tensors.items()})
    assert made[0].keys() == made[1].keys()
    for name, values in made[0].items():
        np.testing.assert_array_equal(values, made[1][name])
