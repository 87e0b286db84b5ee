"""The decoder's file as the command writes it: calibrated, weighed, folded, and as upstream's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from gguf import GGUFReader

from mllm_export.commands.opening import plan_job
from mllm_export.device_tests.checks.weights import loss_of
from mllm_export.device_tests.decoder_calibration import observe_decoder
from mllm_export.device_tests.folded import FoldedStored, read_decoder, unfold
from mllm_export.device_tests.profile import load_profile
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import reference_calibration
from mllm_export.device_tests.stored import FLOATS, read_gguf
from mllm_export.errors import CheckError, PlanError
from mllm_export.export.artifact import Calibrated, Work
from mllm_export.export.artifacts.gguf import write_decoder_stage
from mllm_export.export.decoder_calibrated import FOLDS, IMATRIX
from mllm_export.export.decoder_plan import plan_decoder_tensors
from mllm_export.export.family import FAMILIES
from mllm_export.export.make_plan import make_plan
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.progress import silent
from mllm_export.quantize.imatrix import read_imatrix
from mllm_export.quantize.methods import awq
from mllm_export.quantize.recipe import Recipe, Rule, load_recipe
from tests.quantize.upstream_quantize import FILE_TYPES, llama_quantize

PLAIN = Recipe(
    name="f32",
    description="",
    tower_scheme="f32",
    decoder_scheme="F32",
    decoder=(Rule(tensors="*", scheme="F32"),),
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Two calibration pictures with their questions."""
    folder = tmp_path_factory.mktemp("calibration")
    source = reference_calibration().parent
    lines = (source / "questions.jsonl").read_text().splitlines()
    names = list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:2]
    kept = [line for line in lines if json.loads(line)["image"] in names]
    (folder / "questions.jsonl").write_text("\n".join(kept))
    for name in names:
        shutil.copy(source / name, folder / name)
    return folder


def write(folder, recipe, name="reference", importance="none", questions=None, imatrix=None):
    """The decoder's file of a shipped checkpoint, as `build` writes it."""
    folder.mkdir()
    job = plan_job(name, "linux-x86_64", "q4_k_m", None, False)
    plan = make_plan(job.reading, job.target, recipe, importance=importance)
    source = (job.checkpoint.path, job.checkpoint.asked)
    work = Work(
        plan=plan,
        reading=job.reading,
        source=source,
        folder=folder,
        calibrated=Calibrated(
            observe=partial(observe_decoder, source, plan.spec.family, questions), imatrix=imatrix
        ),
    )
    artifact = plan.artifact("decoder")
    write_decoder_stage(work, artifact, silent)
    return folder / artifact.path


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, questions):
    """What a build with --calibration leaves beside the decoder."""
    folder = tmp_path_factory.mktemp("built") / "q4_k_m"
    write(folder, load_recipe("q4_k_m"), importance="calibration", questions=questions)
    return folder


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k_m", "q6_k"])
def test_bytes_of_the_reference_equal_llama_quantizes(name, weighed, tmp_path, matrix):
    source = write(tmp_path / "plain", PLAIN)
    given = {"importance": "file", "imatrix": matrix / IMATRIX} if weighed else {}
    ours = GGUFReader(write(tmp_path / "ours", load_recipe(name), **given))
    costs = read_imatrix(matrix / IMATRIX).importance() if weighed else None
    made = llama_quantize(source, tmp_path / "theirs.gguf", FILE_TYPES[name], costs)
    expected = {tensor.name: tensor for tensor in GGUFReader(made).tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name


def test_a_matrix_that_the_build_gathers_gives_the_bytes_of_the_same_one_given(tmp_path, matrix):
    given = write(
        tmp_path / "given", load_recipe("q4_k_m"), importance="file", imatrix=matrix / IMATRIX
    )
    assert given.read_bytes() == (matrix / "decoder.gguf").read_bytes()
    plain = write(tmp_path / "plain", load_recipe("q4_k_m"))
    assert plain.read_bytes() != given.read_bytes()
    assert not (plain.parent / IMATRIX).exists()


def test_the_matrix_has_an_entry_for_every_product_of_the_decoder(matrix):
    stored, _ = read_gguf(matrix / "decoder.gguf")
    products = {n for n, one in stored.items() if len(one.shape) == 2} - {"token_embd.weight"}
    found = read_imatrix(matrix / IMATRIX)
    assert set(found.entries) == products
    assert all(entry.count > 100 for entry in found.entries.values())


@pytest.fixture(scope="module", params=["reference", "reference-phi", "cobra"])
def folded(request, tmp_path_factory, questions):
    """AWQ, then GPTQ, on a checkpoint that ships, or a small random Mamba; with its original."""
    folder, name = tmp_path_factory.mktemp("folded"), request.param
    if name == "cobra":
        name = str(write_random_checkpoint(folder / "cobra", FAMILIES["cobra"].tiny()))
    recipe = replace(load_recipe("q4_k_m"), decoder_methods=("awq", "gptq"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(awq, "_POWERS", (0.0, 0.3, 0.6))  # a fifth of the time
        path = write(folder / "decoder", recipe, name, questions=questions)
    job = plan_job(name, "linux-x86_64", "q4_k_m", None, False)
    return path, REFERENCES[job.plan.spec.family](job.checkpoint).decoder_originals()


def broken(stored, originals):
    """Tensors outside the default profile's limits for weighed columns."""
    profile, found = load_profile("default"), []
    for name, original in originals.items():
        one = stored[name]
        loss = loss_of(one, original)
        if one.scheme in FLOATS:
            found += [name] * bool(loss.unrounded)
        elif loss.sqnr_db is not None:
            limit = profile.scheme(one.scheme, calibrated=True)
            bad = loss.sqnr_db < limit.sqnr_db or loss.largest_error > limit.largest_error
            found += [name] * bad
    return found


def test_folded_weights_keep_their_limits_and_norms_are_exact(folded):
    path, originals = folded
    stored, _ = read_decoder(path)
    assert any(isinstance(one, FoldedStored) for one in stored.values())
    assert broken(stored, originals) == []


def test_read_without_their_scales_folded_weights_are_wrong(folded):
    path, originals = folded
    stored, _ = read_gguf(path)
    assert any(name.endswith("_norm.weight") for name in broken(stored, originals))


@pytest.mark.parametrize("end", [".rows", ".columns"])
def test_a_scale_that_went_into_one_side_alone_is_found(folded, end, tmp_path):
    from safetensors.numpy import load_file, save_file

    path, originals = folded
    scales = load_file(path.with_name(FOLDS))
    name = next(key for key in sorted(scales) if key.endswith(end))
    scales[name] = np.roll(scales[name] * np.linspace(0.2, 5, len(scales[name])), 1).astype("f4")
    save_file(scales, tmp_path / FOLDS)
    stored, _ = read_gguf(path)
    assert name.removesuffix(end) in broken(unfold(stored, tmp_path / FOLDS), originals)


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("blk.9.attn_norm.weight.rows", [1.0], "'blk.9.attn_norm.weight', which the decoder's"),
        ("blk.0.attn_norm.weight.rows", [1.0], r"are \[1\], needed: 256 positive numbers"),
        ("blk.0.attn_norm.weight.rows", [0.0] * 256, "needed: 256 positive numbers"),
    ],
)
def test_scales_that_do_not_fit_are_refused(matrix, key, values, words, tmp_path):
    from safetensors.numpy import save_file

    save_file({key: np.array(values, np.float32)}, tmp_path / FOLDS)
    stored, _ = read_gguf(matrix / "decoder.gguf")
    with pytest.raises(CheckError, match=words):
        unfold(stored, tmp_path / FOLDS)


def test_a_method_that_needs_inputs_refuses_a_matrix_in_their_place():
    job = plan_job("reference", "linux-x86_64", "q4_k_m", None, False)
    recipe = replace(load_recipe("q4_k_m"), decoder_methods=("gptq",))
    with pytest.raises(PlanError, match="'gptq' does not work on an importance matrix"):
        make_plan(job.reading, job.target, recipe, importance="file")
    assert make_plan(job.reading, job.target, recipe).decoder_importance == "calibration"


def test_a_matrix_is_not_gathered_for_layouts_that_do_not_use_one():
    job = plan_job("reference", "linux-x86_64", "q8_0", None, False)
    recipe = load_recipe("q8_0")
    plan = make_plan(job.reading, job.target, recipe, importance="calibration")
    assert plan.decoder_importance == "none"
    rows = plan_decoder_tensors(
        job.plan.spec.decoder, recipe, job.reading.weights.part("decoder"), imatrix=True
    )
    assert {row.scheme for row in rows} == {"F32", "Q8_0"}


def test_the_plan_says_which_tensors_a_method_leaves_to_ggml():
    job = plan_job("reference", "linux-x86_64", "q3_k_m", None, False)
    sources = job.reading.weights.part("decoder")

    def notes(*methods):
        recipe = replace(load_recipe("q3_k_m"), decoder_methods=methods)
        rows = plan_decoder_tensors(job.plan.spec.decoder, recipe, sources)
        return {(row.scheme, row.note) for row in rows}

    left = "rounded by ggml, not by gptq: the steps of Q3_K are not even"
    schemes = {"F32", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert notes("awq", "gptq") == {(s, left if s == "Q3_K" else "") for s in schemes}
    assert notes("awq") == notes("rtn") == {(scheme, "") for scheme in schemes}
