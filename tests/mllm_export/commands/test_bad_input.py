"""What bad input gets: one line with the file, key or tensor; exit code 2; nothing left behind."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllm_export.bundle import open_bundle
from mllm_export.errors import BundleError
from tests.mllm_export.commands.conftest import Run


def change_config(model: Path, **keys: object) -> None:
    file = model / "config.json"
    config = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_state(model: Path, **tensors: torch.Tensor | None) -> None:
    file = model / "pytorch_model.bin"
    state = {**torch.load(file, weights_only=True), **tensors}
    torch.save({k: v for k, v in state.items() if v is not None}, file)


def shard_it(model: Path, second: str = "pytorch_model-00002-of-00002.bin") -> None:
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    (model / "pytorch_model.bin").unlink()
    names = sorted(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], second: names[1::2]}
    for file, part in halves.items():
        if ".." not in file:
            torch.save({n: state[n] for n in part}, model / file)
    weight_map = {n: file for file, part in halves.items() for n in part}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def missing_shard(model: Path) -> None:
    shard_it(model)
    (model / "pytorch_model-00002-of-00002.bin").unlink()


def cut_short(model: Path) -> None:
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    (model / "pytorch_model.bin").unlink()
    save_file({k: v.clone() for k, v in state.items()}, model / "model.safetensors")
    os.truncate(model / "model.safetensors", 100_000)


class Wants:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo executed",)


def pickle_bomb(model: Path) -> None:
    torch.save({"model.norm.weight": Wants()}, model / "pytorch_model.bin")


NORM = "model.norm.weight"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (missing_shard, "pytorch_model-00002-of-00002.bin"),
    "a truncated safetensors": (cut_short, "model.safetensors"),
    "a tensor of a wrong shape": (lambda m: change_state(m, **{NORM: torch.ones(255)}), NORM),
    "a missing tensor": (lambda m: change_state(m, **{NORM: None}), NORM),
    "an extra tensor": (lambda m: change_state(m, **{"extra": torch.ones(1)}), "extra"),
    "an unknown projector": (
        lambda m: change_config(m, mm_projector_type="resampler"),
        "resampler",
    ),
    "a missing key": (lambda m: change_config(m, hidden_size=...), "hidden_size"),
    "a key of another type": (lambda m: change_config(m, hidden_size="wide"), "hidden_size"),
    "a pickle that executes": (pickle_bomb, "pytorch_model.bin"),
    "a shard name with ..": (lambda m: shard_it(m, "../outside.bin"), "../outside.bin"),
    "no tokenizer": (lambda m: (m / "tokenizer.model").unlink(), "tokenizer.model"),
    "a broken tokenizer": (lambda m: (m / "tokenizer.model").write_bytes(b"x"), "tokenizer.model"),
    "no config": (lambda m: (m / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("verb", ["inspect", "build"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_before_anything_is_written(
    command: Run, model: Path, tmp_path: Path, verb: str, case: str
) -> None:
    damage, named = BAD[case]
    damage(model)
    out = tmp_path / "bundle"
    extra = () if verb == "inspect" else ("--target", "linux-x86_64", "-o", out)
    outcome = command(verb, model, *extra)
    assert outcome.code == 2
    assert named in outcome.error
    assert "executed\n" not in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--target", "raspberry"), "unknown target 'raspberry'"),
        (("--target", "linux-arm65"), "did you mean linux-arm64"),
        (("--target", "linux-arm64", "--recipe", "int5"), "did you mean int8 or int4"),
        (("--target", "linux-arm64", "--vision-tower", "no/such"), "no/such"),
    ],
)
def test_an_unknown_name_is_answered_with_the_near_ones(
    command: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    outcome = command("build", model, *arguments, "-o", tmp_path / "bundle")
    assert outcome.code == 2
    assert named in outcome.error


def test_a_profile_that_does_not_exist_is_refused(command: Run, unchecked: Path) -> None:
    outcome = command("check", unchecked, "--profile", "strickt")
    assert outcome.code == 2
    assert "unknown profile 'strickt'" in outcome.error
    assert "strict" in outcome.error


def test_an_output_folder_that_exists_is_refused_and_untouched(
    command: Run, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "mine").write_text("keep")
    outcome = command("build", model, "--target", "linux-x86_64", "-o", out)
    assert outcome.code == 2
    assert "exists" in outcome.error
    assert [p.name for p in out.iterdir()] == ["mine"]


def build_on_a_full_disk(made: Path, out: Path, limit_bytes: int) -> str:
    """A limit on file sizes stands for the full disk: the same refusal, from the same calls."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mllm_export", "build", made, "--recipe", "f16"),
            *("--target", "linux-x86_64", "-o", out, "--no-check"),
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
    )
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr
    return error


def test_a_disk_that_is_full_for_the_first_artifact_leaves_nothing(
    made: Path, tmp_path: Path
) -> None:
    assert "make room" in build_on_a_full_disk(made, tmp_path / "bundle", 20_000)
    assert list(tmp_path.iterdir()) == []


def test_what_a_full_disk_left_is_no_bundle_and_the_next_build_takes_it_up(
    made: Path, unchecked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    error = build_on_a_full_disk(made, out, 1_000_000)
    (left,) = tmp_path.iterdir()
    assert f"wait in {left} for the next build" in error
    files = sorted(path.relative_to(left).as_posix() for path in left.rglob("*") if path.is_file())
    assert files == [".finished/tower.onnx.json", "tower.onnx"]
    with pytest.raises(BundleError, match="its build did not end"):
        open_bundle(left)
    written = (left / "tower.onnx").stat().st_mtime_ns
    asked = ("build", made, "--target", "linux-x86_64", "--recipe", "f16", "-o", out, "--no-check")
    subprocess.run([sys.executable, "-m", "mllm_export", *map(str, asked)], check=True)
    assert (out / "tower.onnx").stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [out]
    for name in ("bundle.json", "decoder.gguf"):
        assert (out / name).read_bytes() == (unchecked / name).read_bytes()


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_folder_that_is_no_bundle_is_refused(command: Run, tmp_path: Path, verb: str) -> None:
    extra = ("--prompt", "x") if verb == "run" else ()
    outcome = command(verb, tmp_path, *extra)
    assert outcome.code == 2
    assert "bundle.json is missing" in outcome.error
