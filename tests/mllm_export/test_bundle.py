"""A loader takes a bundle whole and unchanged, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_export.bundle import (
    MANIFEST,
    Manifest,
    describe_file,
    open_bundle,
    write_manifest,
)
from mllm_export.errors import BundleError
from mllm_export.records import from_json, to_json
from mllm_export.spec import (
    DecoderSpec,
    EncoderSpec,
    ImageSpec,
    ModelSpec,
    ProjectorSpec,
    PromptSpec,
    RopeScaling,
    TokenizerSpec,
)

IMAGE = ImageSpec(
    size_px=28,
    fit="pad",
    resample="bicubic",
    mean=(0.5, 0.4, 0.3),
    std=(1, 1, 1),
    pad_rgb=(1, 2, 3),
)
SPEC = ModelSpec(
    family="mobilevlm",
    name="m",
    encoders=(
        EncoderSpec(
            kind="clip_vit",
            image=IMAGE,
            patch_px=14,
            width=8,
            layers=2,
            heads=2,
            mlp_width=16,
            activation="quick_gelu",
            norm_eps=1e-5,
            select_layer=-2,
            keep_prefix=False,
        ),
    ),
    projector=ProjectorSpec(kind="linear", in_width=8, out_width=16, tokens_in=4, tokens_out=4),
    decoder=DecoderSpec(
        kind="llama",
        width=16,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=32,
        vocab=300,
        context_tokens=64,
        norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling=RopeScaling(kind="linear", factor=2.0),
        tied_head=True,
    ),
    tokenizer=TokenizerSpec(
        kind="sentencepiece",
        file="tokenizer.model",
        vocab=300,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=None,
        add_bos=True,
    ),
    prompt=PromptSpec(
        name="p",
        before="a ",
        after=" b",
        between_turns="</s>",
        stop_strings=("</s>",),
        stop_ids=(2,),
    ),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "tower.onnx").write_bytes(b"tower")
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "a.png").write_bytes(b"picture")
    manifest = Manifest(
        model=SPEC,
        target="t",
        recipe="int4",
        profile="default",
        checked="passed",
        context_tokens=64,
        minimum_runtime=(0, 1, 0),
        vision_engine="onnx",
        decoder_engine="llama_cpp",
        files=(
            describe_file(tmp_path, "tower.onnx", "tower"),
            describe_file(tmp_path, "golden/a.png", "golden"),
        ),
        sources=(),
        tools=(("torch", "2"),),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_a_whole_bundle_opens_and_says_what_it_is(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model == SPEC
    assert opened.path("tower") == bundle / "tower.onnx"
    assert opened.find("decoder") is None


def test_the_manifest_goes_to_json_and_back_without_loss(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert from_json(Manifest, to_json(manifest), "x", BundleError) == manifest


def test_a_manifest_from_before_the_plan_was_kept_is_read(bundle: Path) -> None:
    edit(lambda d: d.pop("planned"))(bundle)
    assert open_bundle(bundle).manifest.planned == ()


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        change(data)
        (folder / MANIFEST).write_text(json.dumps(data))

    return apply


def point_at(name: str) -> Callable[[Path], None]:
    return edit(lambda d: d["files"][0].update(path=name))  # type: ignore[index]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / MANIFEST).unlink(), "bundle.json is missing"),
        (lambda f: (f / MANIFEST).write_text('{"schema": 1'), "not valid JSON"),
        (lambda f: (f / MANIFEST).write_text("[]"), "schema None"),
        (edit(lambda d: d.update(schema=99)), "schema 99"),
        (edit(lambda d: d.update(schema=2, job="embedder")), "an encoder alone, which answers no"),
        (edit(lambda d: d.update(surprise=1)), "surprise"),
        (edit(lambda d: d.pop("model")), "model"),
        (lambda f: (f / "tower.onnx").unlink(), "tower.onnx"),
        (lambda f: (f / "tower.onnx").write_bytes(b"towet"), "changed"),
        (lambda f: (f / "tower.onnx").write_bytes(b"tow"), "3 bytes"),
        (point_at("../tower.onnx"), "leads out"),
        (point_at("/etc/passwd"), "leads out"),
        (point_at("golden/../../x"), "leads out"),
        (point_at("golden\\a.png"), "leads out"),
    ],
)
def test_a_damaged_bundle_is_refused_and_says_what_is_wrong(
    bundle: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(bundle)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_out_is_refused(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "tower.onnx"
    outside.write_bytes(b"tower")
    (bundle / "tower.onnx").unlink()
    (bundle / "tower.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out"):
        open_bundle(bundle)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        open_bundle(tmp_path / "nothing")
