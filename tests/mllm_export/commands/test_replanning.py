"""A bundle is held against what it was planned as, whatever files it was planned by."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from mllm_export.bundle import Bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.calibrating import Calibration
from mllm_export.commands.opening import plan_job
from mllm_export.commands.replanning import Replanned, replan
from mllm_export.device_tests.parity import check
from mllm_export.errors import BundleError
from mllm_export.export.build import build
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.quantize.imatrix import Entry, Imatrix, write_imatrix
from mllm_export.report import Rung
from tests.mllm_export.commands.conftest import Run

OTHERWISE = "tensors stored otherwise than planned"

RECIPE = """description = ""
tower_scheme = "f32"
decoder_scheme = "F16"

[[decoder]]
tensors = "*"
scheme = "F16"
"""


def built(checkpoint: Path, out: Path, target: str, recipe: str, given: Calibration) -> Bundle:
    job = plan_job(str(checkpoint), target, recipe, None, False, given.importance)
    return build(
        job.plan,
        job.reading,
        job.checkpoint,
        job.target,
        out,
        lambda _, __: "unchecked",
        calibrated=given.calibrated(job),
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of eight layers, the least of which an eighth is one."""
    tiny = FAMILY.tiny()
    model = replace(tiny, config={**tiny.config, "num_hidden_layers": 8})
    return write_random_checkpoint(tmp_path_factory.mktemp("deep") / "model", model)


@pytest.fixture(scope="module")
def weighed(deep: Path) -> Bundle:
    """Built with an importance matrix, by which q4_0 stores the first eighth otherwise."""
    entry = Entry(sums=np.ones(512, np.float32), count=3)
    matrix = Imatrix(entries={"blk.0.ffn_down.weight": entry}, datasets=(), chunk_tokens=512)
    write_imatrix(deep.parent / "imatrix.gguf", matrix)
    given = Calibration(imatrix=deep.parent / "imatrix.gguf")
    return built(deep, deep.parent / "bundle", "linux-x86_64", "q4_0", given)


@pytest.fixture(scope="module")
def own(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Built by a recipe and for a target of the user's."""
    folder = tmp_path_factory.mktemp("own")
    target = (files("mllm_export.export.targets") / "linux-x86_64.toml").read_text()
    (folder / "board.toml").write_text(target.replace('"linux-x86_64"', '"my-board"', 1))
    (folder / "mine.toml").write_text(RECIPE)
    words = (str(folder / "board.toml"), str(folder / "mine.toml"))
    return built(made, folder / "bundle", *words, Calibration())


def changed(bundle: Bundle, **keys: object) -> Bundle:
    """The same files under a manifest that says otherwise."""
    return Bundle(bundle.folder, replace(bundle.manifest, **keys))


def checked(bundle: Bundle, checkpoint: Path) -> tuple[Replanned, Rung, dict[str, float]]:
    """What the bundle was planned as, and the weights rung against it with its figures."""
    original = Checkpoint(checkpoint)
    found = replan(bundle, original)
    (rung,) = check(bundle, original, plan=found.plan, rungs=["weights"]).rungs
    return found, rung, {one.name: one.value for one in rung.measurements}


@pytest.mark.parametrize("remembers", [True, False], ids=["now", "before it was kept"])
def test_a_bundle_weighed_by_a_matrix_is_planned_with_one_again(
    deep: Path, weighed: Bundle, remembers: bool
) -> None:
    bundle = weighed if remembers else changed(weighed, planned=())
    found, _, figures = checked(bundle, deep)
    assert found.notes == ()
    assert found.plan is not None
    decoder = found.plan.artifact("decoder")
    schemes = {row.name: row.scheme for row in decoder.tensors} if decoder else {}
    assert schemes["blk.0.ffn_down.weight"] == "Q4_1"
    assert figures[OTHERWISE] == 0


def test_a_bundle_of_the_users_own_recipe_and_target_is_checked_and_says_against_what(
    command: Run, made: Path, own: Bundle
) -> None:
    outcome = command("check", own.folder, "--against", made)
    assert outcome.code == 0, outcome.err
    told = " ".join(outcome.err.split())
    assert "schemes are held against what bundle.json says was planned" in told
    assert "unknown target 'my-board'" in told


def test_a_tensor_stored_otherwise_than_the_bundle_was_planned_fails(
    made: Path, own: Bundle
) -> None:
    assert checked(own, made)[2][OTHERWISE] == 0
    planned = tuple(
        replace(one, scheme="Q8_0") if one.scheme == "F16" else one for one in own.manifest.planned
    )
    found, rung, figures = checked(changed(own, planned=planned), made)
    assert found.plan is None
    assert rung.status == "failed"
    assert figures[OTHERWISE] > 0


def test_a_file_under_a_built_in_name_is_told_and_its_bundle_passes(
    made: Path, own: Bundle
) -> None:
    bundle = changed(own, target="linux-x86_64", recipe="int4")
    found, rung, figures = checked(bundle, made)
    assert found.plan is None
    (note,) = found.notes
    assert "the built-in recipe 'int4' for linux-x86_64 plans" in note
    assert "Q4_0, the bundle's F16" in note or "w8a8, the bundle's f32" in note
    assert rung.status == "passed", rung.reason
    assert figures[OTHERWISE] == 0


def test_a_bundle_that_remembers_nothing_and_names_no_built_in_recipe_says_so(
    made: Path, own: Bundle
) -> None:
    found, rung, figures = checked(changed(own, planned=()), made)
    assert "schemes are held against no plan, for bundle.json says none" in found.notes[0]
    assert rung.status == "passed", rung.reason
    assert OTHERWISE not in figures


def test_another_models_checkpoint_is_refused_before_anything_is_planned(
    deep: Path, own: Bundle
) -> None:
    with pytest.raises(BundleError, match=r"is not what .* was built from: sizes differ"):
        replan(own, Checkpoint(deep))
