"""Core ML packages against the originals, by evaluating what was saved."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.errors import BuildError, EngineError, PlanError, RecipeError
from mllm_export.export.coreml_compress import compress
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_package import read_contents, read_spec, write_spec
from mllm_export.export.coreml_plan import plan_coreml_tensors
from mllm_export.export.coreml_scheme import COREML_SCHEMES, coreml_word
from mllm_export.export.formats.coreml import write_tower
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import MODEL_FILE, WEIGHTS_FILE, read_program
from mllm_export.export.part_module import encoder_module, projector_module
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.positions import settled, settled_reader
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.quantize.tower_scheme import tower_scheme
from mllm_export.spec import VisionSpec

WIDTH = 96
README = Path(__file__).parents[3] / "README.md"
CODE = re.compile(r"`(\w+)`")
PAIRS = [(encoder, "ldpv2") for encoder in ENCODERS.names()] + [
    ("clip_vit", projector) for projector in PROJECTORS.names() if projector != "ldpv2"
]


class AnyName(dict):
    def __missing__(self, name):
        return name


class Tower:
    """A tiny tower of the catalogs with random weights, and its package."""

    def __init__(self, folder, encoder, projector, deployment="iOS18", scale=1.0, **options):
        self.encoder = ENCODERS[encoder].tiny()
        tokens = self.encoder.tokens_out
        self.projector = PROJECTORS[projector].spec(self.encoder.width, WIDTH, tokens)
        self.options = CoremlOptions(deployment=deployment, **options)
        self.read_tower = reader(ENCODERS[encoder].parameters(self.encoder), 1, scale)
        self.read_projector = reader(PROJECTORS[projector].parameters(self.projector), 2)
        self.path = folder / f"{encoder}-{projector}-{deployment}.mlpackage"

    def write(self):
        read = settled_reader(self.published, self.read_tower)
        return write_tower(self.path, self.spec, read, self.read_projector, self.options)

    @property
    def published(self):
        return VisionSpec(encoders=(self.encoder,), projector=self.projector)

    @property
    def spec(self):
        """As a package holds it: positions at the size that the tower runs at."""
        return settled(self.published)

    def pixels(self, seed=3):
        side = self.encoder.image.size_px
        made = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
        return made.numpy()

    @torch.no_grad()
    def expected(self, pixels):
        tower = encoder_module(ENCODERS[self.encoder.kind], self.encoder, self.read_tower)
        head = projector_module(
            PROJECTORS[self.projector.kind], self.projector, self.read_projector
        )
        return head(tower(torch.tensor(pixels)))[0].numpy()


def reader(parameters, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    values = {}
    for name, shape in parameters.items():
        spread = 0.3 if len(shape) < 2 else 1 / np.sqrt(np.prod(shape[1:]))
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        drawn = around + spread * scale * generator.standard_normal(shape)
        values[name] = drawn.astype(np.float32)
    return values.__getitem__


def relative(made, expected):
    return float(np.linalg.norm(made - expected) / np.linalg.norm(expected))


def evaluate(path, pixels, precision="float32"):
    return Evaluator(read_program(path), precision).run({"pixel_values": pixels})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = {}

    def get(encoder="clip_vit", projector="ldpv2", deployment="iOS18"):
        key = (encoder, projector, deployment)
        if key not in made:
            made[key] = Tower(tmp_path_factory.mktemp("coreml"), *key)
            made[key].write()
        return made[key]

    return get


@pytest.mark.parametrize(("encoder", "projector"), PAIRS)
def test_the_saved_program_computes_what_the_tower_does(written, encoder, projector):
    tower = written(encoder, projector)
    pixels = tower.pixels()
    expected = tower.expected(pixels)
    # Weights rounded to float16 move the result by a part of 2^-11 times the root of the depth.
    assert relative(evaluate(tower.path, pixels), expected) < 2e-3
    assert relative(evaluate(tower.path, pixels, "float16"), expected) < 4e-3


@pytest.mark.parametrize("deployment", ["iOS17", "iOS18"])
@pytest.mark.parametrize(("encoder", "projector"), PAIRS)
def test_the_readme_says_where_every_operation_runs(written, encoder, projector, deployment):
    """`gather`, which stays off the neural engine, is in no image tower."""
    told = README.read_text().split("What stays off the neural engine.")[1].split("\n\n")[1]
    on_the_engine, gathers, _, at_the_end = (set(CODE.findall(row)) for row in told.split("\n")[2:])
    found = set(read_program(written(encoder, projector, deployment).path).counts())
    assert found <= on_the_engine | at_the_end
    assert gathers == {"gather"}


@pytest.mark.parametrize(("encoder", "projector"), PAIRS)
def test_every_published_tensor_is_found_in_the_program(written, encoder, projector):
    tower = written(encoder, projector)
    contents = read_contents(tower.path)
    published = plan_coreml_tensors(tower.spec, AnyName(), "f32", tower.options)
    assert [h.name for h in contents.tensors] == [row.name for row in published]
    assert [h.shape for h in contents.tensors] == [row.shape for row in published]
    assert all(h.constant for h in contents.tensors)
    assert contents.float32 == ()


def test_clip_equals_transformers(vision, tmp_path):
    original = vision("ldpv2", out_width=WIDTH)
    states = {**original.tower.state_dict()}
    head = original.head.state_dict()
    path = tmp_path / "tower.mlpackage"
    write_tower(
        path,
        original.spec,
        lambda name: states[name].numpy(),
        lambda name: head[name].numpy(),
        CoremlOptions(deployment="iOS18"),
    )
    side = original.encoder.image.size_px
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        theirs = original.head(original.features(pixels))[0].numpy()
    assert relative(evaluate(path, pixels.numpy()), theirs) < 2e-3


def test_attention_is_one_operation_where_the_system_has_it(written):
    new, old = (written(deployment=d) for d in ("iOS18", "iOS17"))
    counts = read_program(new.path).counts()
    assert counts["scaled_dot_product_attention"] == new.encoder.run_layers
    assert "softmax" not in counts
    counts = read_program(old.path).counts()
    assert counts["softmax"] == old.encoder.run_layers
    pixels = old.pixels()
    assert relative(evaluate(old.path, pixels), evaluate(new.path, pixels)) < 1e-5


@pytest.mark.parametrize(
    ("encoder", "mode"),
    [
        ("clip_vit", "SIGMOID_APPROXIMATION"),
        ("siglip", "TANH_APPROXIMATION"),
        ("vitamin", "EXACT"),
    ],
)
def test_every_gelu_says_which_it_is(written, encoder, mode):
    program = read_program(written(encoder).path)
    constants = {o.name: o.attributes["val"] for o in program.operations if o.type == "const"}
    gelus = [o for o in program.operations if o.type == "gelu"]
    assert {constants[o.inputs["mode"][0]].read() for o in gelus[:-1]} == {mode}
    assert constants[gelus[-1].inputs["mode"][0]].read() == "EXACT"  # the projector's
    assert "sigmoid" not in program.counts()


def test_the_same_weights_give_the_same_bytes(written, tmp_path):
    first = written()
    again = Tower(tmp_path, "clip_vit", "ldpv2")
    again.write()
    for file in ("Manifest.json", MODEL_FILE, WEIGHTS_FILE):
        assert (again.path / file).read_bytes() == (first.path / file).read_bytes(), file


def test_ports_are_named_as_in_onnx(written):
    description = read_spec(written().path).description
    assert [port.name for port in description.input] == ["pixel_values"]
    assert [port.name for port in description.output] == ["image_embeds"]


def test_a_picture_goes_in_with_the_normalisation_inside(tmp_path):
    tower = Tower(tmp_path, "clip_vit", "linear", image_input=True)
    tower.write()
    image = tower.encoder.image
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, image.size_px, image.size_px))
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (image.mean, image.std))
    pixels = ((levels / 255 - mean) / std).astype(np.float32)
    program = read_program(tower.path)
    assert program.image_inputs == ("pixel_values",)
    made = Evaluator(program, "float32").run({"pixel_values": levels.astype(np.float32)})
    assert relative(made, tower.expected(pixels)) < 2e-3


def test_what_overflows_float16_runs_in_float32_and_is_named(tmp_path):
    tower = Tower(tmp_path, "clip_vit", "linear")
    plain = tower.read_tower

    def huge(name):
        values = plain(name)
        return values * 3e4 if name.endswith("layers.0.mlp.fc1.weight") else values

    tower.read_tower = huge
    named = tower.write()
    assert named
    assert read_contents(tower.path).float32 == named
    kinds = {r.name: r.type for o in read_program(tower.path).operations for r in o.results}
    assert all(kinds[name] == "FLOAT32" for name in named)
    told = TOWER_FILES["coreml"].notes(tower.path)
    assert told[1] == f"tower: operations in float32: {', '.join(named)}"
    pixels = tower.pixels()
    made = evaluate(tower.path, pixels, "float16")
    assert relative(made, tower.expected(pixels)) < 1e-2


@pytest.mark.parametrize("scheme", COREML_SCHEMES.names())
@pytest.mark.parametrize("projector", ["ldp", "ldpv2"])
def test_compressed_weights_keep_within_half_a_step(written, tmp_path, projector, scheme):
    source = written(projector=projector)
    path = tmp_path / "compressed.mlpackage"
    shutil.copytree(source.path, path)
    rows = plan_coreml_tensors(source.spec, AnyName(), scheme, source.options)
    compress(path, {row.name: row.scheme for row in rows})
    before, after = (Evaluator(read_program(p), "float32") for p in (source.path, path))
    made = {o.name.rsplit("_", 1)[0] for o in after.program.operations if "constexpr" in o.type}
    held = {h.name: h.constant for h in read_contents(path).tensors}
    assert made == {held[row.name] for row in rows if row.scheme == scheme}
    for name in made:
        ending = "palettized" if scheme.startswith("pal") else "quantized"
        one, two = before.constant(name), after.constant(f"{name}_{ending}")
        assert float((one - two).norm() / one.norm()) < {"w8": 0.012, "pal6": 0.04}.get(
            scheme, 0.16
        )
    pixels = source.pixels()
    assert relative(evaluate(path, pixels), source.expected(pixels)) < 0.2
    planned = sum(row.size_bytes for row in rows)
    stored = (path / WEIGHTS_FILE).stat().st_size
    # The weight file begins every value at a multiple of 64 bytes, behind 64 bytes of its own.
    assert planned <= stored <= planned + 3 * 128 * len(rows) + 64


def test_what_a_scheme_cannot_hold_has_a_reason(written):
    tower = written(projector="ldp")
    parts = (tower.spec, AnyName())
    for scheme in COREML_SCHEMES.names():
        rows = plan_coreml_tensors(*parts, scheme, tower.options)
        assert {row.scheme for row in rows} == {scheme, "f16"}
        for row in rows:
            assert row.note.startswith(f"f16 instead of {scheme}: ") == (row.scheme == "f16")


@pytest.mark.parametrize(
    ("word", "ours"), [("f32", "f16"), ("w8a8", "w8"), ("w4g128", "w4g32"), ("pal4", "pal4")]
)
def test_a_recipe_of_onnx_falls_to_its_like_and_says_so(word, ours):
    found, note = coreml_word(word)
    assert found == ours
    assert note.startswith(f"{ours} instead of {word}: ") == (word != ours)


def test_a_scheme_that_the_system_lacks_is_refused_before_the_build():
    tower = ENCODERS["clip_vit"].tiny()
    head = PROJECTORS["linear"].spec(tower.width, WIDTH, tower.tokens_out)
    old = CoremlOptions(deployment="macOS14")
    with pytest.raises(PlanError, match=r"'w4g32' needs iOS 18 or macOS 15, .* macOS14"):
        plan_coreml_tensors(VisionSpec(encoders=(tower,), projector=head), AnyName(), "w4g32", old)
    with pytest.raises(PlanError, match="'Q4_0' has no like in Core ML"):
        coreml_word("Q4_0")
    with pytest.raises(RecipeError, match="'w8' is for Core ML towers alone"):
        tower_scheme("w8")


def test_rules_give_tensors_their_schemes(written):
    tower = written()
    parts = (tower.spec, AnyName(), "pal6", tower.options)
    rule = TowerRule(tensors="projector.*", scheme="w8a8")
    found = {row.name: row for row in plan_coreml_tensors(*parts, (rule,), "mine")}
    assert found["projector.mlp.mlp.0.weight"].scheme == "w8"
    assert found["projector.mlp.mlp.0.weight"].note.startswith("w8 instead of w8a8")
    assert found["tower.vision_model.encoder.layers.0.mlp.fc1.weight"].scheme == "pal6"
    nothing = TowerRule(tensors="nowhere.*", scheme="w8")
    with pytest.raises(RecipeError, match=r"'mine': tower rule 'nowhere.\*' takes no tensor"):
        plan_coreml_tensors(*parts, (nothing,), "mine")


def test_a_size_that_does_not_fit_is_refused(written):
    tower = written()
    with pytest.raises(
        EngineError,
        match=r"needs 'pixel_values' \[1, 3, 96, 96\], got 'pixel_values' \[1, 3, 8, 8\]",
    ):
        evaluate(tower.path, np.zeros((1, 3, 8, 8), np.float32))


def test_a_package_of_another_tool_is_refused(written, tmp_path):
    path = tmp_path / "other.mlpackage"
    shutil.copytree(written().path, path)
    spec = read_spec(path)
    spec.description.metadata.userDefined.clear()
    write_spec(path, spec)
    with pytest.raises(BuildError, match="does not name its weights"):
        read_contents(path)
    (path / MODEL_FILE).write_bytes(b"\xff\xff\xff")
    with pytest.raises(EngineError, match="not a Core ML model"):
        read_program(path)
