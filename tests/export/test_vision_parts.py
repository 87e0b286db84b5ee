"""Several encoders in one graph: names, inputs, order of channels, pieces, files."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mllm_export.errors import SpecError
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.formats import coreml
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import read_program
from mllm_export.export.onnx_stream import open_onnx
from mllm_export.export.part_module import encoder_module, projector_module
from mllm_export.export.parts import ENCODERS, FUSIONS, PROJECTORS
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_pieces import split
from mllm_export.export.tower_plan import plan_tower_tensors, planned_schemes, tower_tensors
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.export.vision_parts import tower_parameters
from mllm_export.pixels import join_pixels, tiles_of
from mllm_export.runtimes.engines import VISION_ENGINES
from mllm_export.spec import VisionSpec

SIDES = {"same": 96, "other": 72}


def encoder(name, size_px, mean=0.4):
    tiny = ENCODERS["siglip"].tiny()
    image = replace(tiny.image, size_px=size_px, mean=(mean,) * 3)
    return replace(tiny, name=name, image=image, patch_px=size_px // 6)


def joined(*encoders):
    fusion = FUSIONS["channels"].spec(encoders)
    projector = PROJECTORS["mlp2x_gelu"].spec(fusion.out_width, 48, fusion.tokens_out)
    return VisionSpec(encoders=encoders, projector=projector, fusion=fusion)


def reader(parameters, seed):
    draw = np.random.default_rng(seed)
    values = {
        name: (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in parameters.items()
    }
    return values.__getitem__


class Model:
    def __init__(self, side):
        self.vision = joined(encoder("left", 96), encoder("right", side, mean=0.6))
        self.read_tower = reader(tower_parameters(self.vision), 1)
        projector = self.vision.projector
        self.read_projector = reader(PROJECTORS[projector.kind].parameters(projector), 2)

    def pixels(self, seed=0):
        draw = np.random.default_rng(seed)
        shapes = self.vision.input_shapes.values()
        return [draw.standard_normal(shape).astype(np.float32) for shape in shapes]

    @torch.no_grad()
    def expected(self, pixels, order=(0, 1)):
        features = []
        for at in order:
            one = self.vision.encoders[at]
            read = lambda name, one=one: self.read_tower(f"{one.name}.{name}")  # noqa: E731
            module = encoder_module(ENCODERS[one.kind], one, read)
            features.append(module(torch.from_numpy(pixels[at])))
        projector = self.vision.projector
        head = projector_module(PROJECTORS[projector.kind], projector, self.read_projector)
        return head(torch.cat(features, 2))[0].numpy()


@pytest.fixture(scope="module", params=list(SIDES))
def model(request):
    return Model(SIDES[request.param])


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "tower.onnx"
    write_tower(path, model.vision, model.read_tower, model.read_projector)
    return path


def run(path, model, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (tile,) = tiles_of(join_pixels(pixels), model.vision.input_shapes)
    return session.run(None, tile)[0]


def error(made, expected):
    return float(np.linalg.norm(made - expected) / np.linalg.norm(expected))


def test_there_is_one_input_for_each_preprocessing():
    left, right = encoder("left", 96), encoder("right", 96)
    assert [one.name for one in joined(left, right).image_inputs] == ["pixel_values"]
    other = joined(left, encoder("right", 96, mean=0.6), encoder("third", 96))
    names = ["pixel_values_left", "pixel_values_right"]
    assert [one.name for one in other.image_inputs] == names
    assert [other.input_of(one) for one in other.encoders] == [0, 1, 0]


def test_both_encoders_are_in_the_graph_that_is_written(model, written):
    pixels = model.pixels()
    names = [one.name for one in onnx.load(written).graph.input]
    assert names == ["pixel_values_left", "pixel_values_right"]
    assert error(run(written, model, pixels), model.expected(pixels)) < 1e-5


def test_encoders_swapped_before_the_projector_would_show(model, written):
    pixels = model.pixels()
    assert error(run(written, model, pixels), model.expected(pixels, (1, 0))) > 0.1


def test_inputs_swapped_would_show(tmp_path):
    model = Model(SIDES["same"])
    write_tower(tmp_path / "tower.onnx", model.vision, model.read_tower, model.read_projector)
    pixels = model.pixels()
    assert error(run(tmp_path / "tower.onnx", model, pixels[::-1]), model.expected(pixels)) > 0.1


def test_every_tensor_stands_behind_its_encoders_name(model, written):
    stored = [one.name for one in onnx.load(written).graph.initializer]
    assert stored == [one.name for one in tower_tensors(model.vision)]
    beginnings = {".".join(name.split(".")[:2]) for name in stored if name.startswith("tower.")}
    assert beginnings == {"tower.left", "tower.right"}


def test_an_encoder_is_a_piece_of_its_own_however_small(written):
    pieces = split(open_onnx(written), 1 << 40)
    left = pieces[0].output
    assert [one.inputs for one in pieces] == [
        ("pixel_values_left",),
        ("pixel_values_right", left),
    ]
    small = split(open_onnx(written), 1)
    assert len(small) > 6
    assert [one.output for one in small if "pixel_values_right" in one.inputs] != []
    assert left in next(one.inputs for one in small[::-1] if len(one.inputs) > 1)
    assert small[-1].output == "image_embeds"


@pytest.mark.parametrize("scheme", ["w8a8-static", "w4g32"])
def test_a_quantized_twin_is_near(model, written, tmp_path, scheme):
    pictures = [join_pixels(model.pixels(seed))[0] for seed in range(4)]
    np.save(tmp_path / "pixels.npy", np.stack(pictures))
    names = dict.fromkeys(tower_parameters(model.vision), "x")
    heads = dict.fromkeys(PROJECTORS["mlp2x_gelu"].parameters(model.vision.projector), "x")
    schemes = planned_schemes(plan_tower_tensors(model.vision, names, heads, scheme))
    job = TowerJob(schemes=schemes, preset="avx2", pixels=tmp_path / "pixels.npy")
    quantize_tower(written, tmp_path / "tower.onnx", job)
    pixels = model.pixels()
    assert 1e-4 < error(run(tmp_path / "tower.onnx", model, pixels), model.expected(pixels)) < 0.2


def test_the_runtime_feeds_both(model, written):
    class Spec:
        vision = model.vision
        image_tokens = model.vision.projector.tokens_out
        decoder = type("Decoder", (), {"width": 48})

    tower = VISION_ENGINES["onnx"].open(written, Spec(), 1)
    pixels = model.pixels()
    made = tower.embed(np.concatenate([join_pixels(pixels)] * 2))
    assert error(made, np.concatenate([model.expected(pixels)] * 2)) < 1e-5


def test_one_core_ml_program_takes_both(model, tmp_path):
    path = tmp_path / "tower.mlpackage"
    options = CoremlOptions(deployment="iOS18")
    coreml.write_tower(path, model.vision, model.read_tower, model.read_projector, options)
    program = read_program(path)
    assert {p.name: p.shape for p in program.inputs} == model.vision.input_shapes
    pixels = model.pixels()
    given = dict(zip(model.vision.input_shapes, pixels, strict=True))
    assert error(Evaluator(program, "float32").run(given), model.expected(pixels)) < 2e-3


@pytest.mark.parametrize(
    ("names", "message"),
    [(("left", "left"), "need a name each"), (("left", ""), "need a name each")],
)
def test_encoders_that_cannot_be_told_apart_are_refused(names, message):
    with pytest.raises(SpecError, match=message):
        joined(*(encoder(name, 96) for name in names))


def test_unlike_token_counts_cannot_be_joined_by_channels():
    fewer = replace(encoder("right", 96), patch_px=24)
    with pytest.raises(SpecError, match=r"36 \(left\), 16 \(right\) tokens"):
        joined(encoder("left", 96), fewer)
