"""A checkpoint is read exactly, lazily and without running anything in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mllm_export.checkpoint import TOWER_PREFIX, Checkpoint, Companion
from mllm_export.errors import CheckpointError
from mllm_export.shards import SafetensorsShard

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    values = torch.randn(6, 5)
    return {f"part.{str(d).split('.')[1]}": values.to(d) for d in DTYPES}


def write(folder: Path, form: str, shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    single = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    save = save_file if form == "safetensors" else torch.save
    if shards == 1:
        save(state(), folder / single)
        return folder
    weight_map = {}
    for number, (name, tensor) in enumerate(state().items(), 1):
        file = f"{Path(single).stem}-{number:05d}-of-{len(DTYPES):05d}{Path(single).suffix}"
        save({name: tensor}, folder / file)
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{single}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_gives_the_stored_values_in_their_own_dtype(
    tmp_path: Path, form: str, shards: int
) -> None:
    checkpoint = Checkpoint(write(tmp_path / "model", form, shards))
    infos = checkpoint.infos(tower=False)
    assert set(infos) == set(state())
    for name, tensor in state().items():
        values = checkpoint.read(name)
        assert infos[name].dtype == str(tensor.dtype).split(".")[1] == values.dtype.name
        assert infos[name].shape == (6, 5)
        np.testing.assert_array_equal(values.astype(np.float32), tensor.float().numpy())


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_reading_maps_the_file_and_does_not_copy_it(tmp_path: Path, form: str) -> None:
    checkpoint = Checkpoint(write(tmp_path / "model", form))
    values = checkpoint.read("part.bfloat16")
    assert values.dtype == ml_dtypes.bfloat16
    assert not values.flags.owndata
    if form == "safetensors":
        assert not values.flags.writeable


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
)
def test_safetensors_of_any_shape_read_as_the_library_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("shard") / "model.safetensors"
    tensors = {f"t{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    save_file(tensors, path)
    shard = SafetensorsShard(path)
    for name, tensor in tensors.items():
        values = shard.read(name)
        assert values.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(values.astype(np.float32), tensor.float().numpy())


def test_the_tower_folder_is_found_beside_the_checkpoint_by_its_hub_name(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "bin")
    (model / "config.json").write_text('{"mm_vision_tower": "openai/some-clip"}')
    write(tmp_path / "some-clip", "safetensors")
    infos = Checkpoint(model).infos(tower=True)
    assert TOWER_PREFIX + "part.float32" in infos


def refused(action: object, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        action()  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_missing_tower_says_where_it_was_looked_for(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "bin")
    (model / "config.json").write_text('{"mm_vision_tower": "openai/some-clip"}')
    refused(Checkpoint(model).require_tower, "some-clip", str(tmp_path), "--vision-tower")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "safetensors", 3)
    (model / "model-00002-of-00003.safetensors").unlink()
    refused(lambda: Checkpoint(model).infos(False), "model-00002-of-00003.safetensors", "missing")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_cut_short_is_named(tmp_path: Path, form: str) -> None:
    model = write(tmp_path / "model", form)
    file = next(p for p in model.iterdir() if p.suffix in {".bin", ".safetensors"})
    file.write_bytes(file.read_bytes()[:-40])
    refused(lambda: Checkpoint(model).infos(False), file.name, "again")


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/../../outside.bin"])
def test_a_shard_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    model = write(tmp_path / "model", "bin")
    torch.save(state(), tmp_path / "outside.bin")
    (model / "pytorch_model.bin").unlink()
    index = {"weight_map": {"part.float32": name}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(lambda: Checkpoint(model).infos(False), name, "leads out")


class Payload:
    """Makes a file when a pickle that holds it is executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_execute_is_refused_and_not_executed(
    tmp_path: Path, zipped: bool
) -> None:
    model = write(tmp_path / "model", "bin")
    mark = tmp_path / "executed"
    torch.save(
        {"weights": Payload(mark)},
        model / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    refused(lambda: Checkpoint(model).infos(False), "pytorch_model.bin", "not executed")
    assert not mark.exists()


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "safetensors", 3)
    save_file({"part.float32": torch.ones(2)}, model / "model-00003-of-00003.safetensors")
    refused(lambda: Checkpoint(model).infos(False), "part.float32", "00001", "00003")


def test_a_tensor_that_only_the_index_knows_is_an_error(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "safetensors", 3)
    file = model / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    file.write_text(json.dumps(index))
    refused(lambda: Checkpoint(model).infos(False), "ghost")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "key 'weight_map' is missing or empty"),
        ({"weight_map": {}}, "key 'weight_map' is missing or empty"),
        ({"weight_map": ["a"]}, "key 'weight_map' is missing or empty"),
        ({"weight_map": {"a": ["x"], "b": "y"}}, "['x'] for tensor 'a', needed: a file name"),
        ({"weight_map": {"a": "x", "b": 1}}, "1 for tensor 'b', needed: a file name"),
    ],
)
def test_an_index_that_maps_nothing_to_files_is_named(
    tmp_path: Path, form: str, index: dict[str, object], words: str
) -> None:
    model = write(tmp_path / "model", form, 3)
    (file,) = model.glob("*.index.json")
    file.write_text(json.dumps(index))
    refused(lambda: Checkpoint(model).infos(False), str(file), words)


def test_an_index_of_files_that_are_not_read_is_not_held_against_those_that_are(
    tmp_path: Path,
) -> None:
    """Published folders hold both forms, and the pickles' tensors may have other names."""
    model = write(tmp_path / "model", "bin", 3)
    write(model, "safetensors")
    file = model / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["an.older.name"] = "pytorch_model-00001-of-00003.bin"
    file.write_text(json.dumps(index))
    assert set(Checkpoint(model).infos(False)) == set(state())
    file.write_text("{}")
    assert set(Checkpoint(model).infos(False)) == set(state())


def test_a_folder_without_weights_or_config_is_an_error(tmp_path: Path) -> None:
    refused(lambda: Checkpoint(tmp_path / "nothing"), "not a folder")
    (tmp_path / "config.json").write_text("{}")
    refused(lambda: Checkpoint(tmp_path).infos(False), "no weights")
    refused(lambda: Checkpoint(tmp_path / "config.json"), "not a folder")


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(lambda: Checkpoint(tmp_path).config, "config.json")


def test_a_pickle_larger_than_memory_should_be_is_given_back_tensor_by_tensor(
    tmp_path: Path,
) -> None:
    """Reading every tensor of a file may not hold every tensor of it."""
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"t{i}": torch.full((4 << 20,), float(i)) for i in range(16)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    program = (
        "import sys, pathlib, numpy, psutil\n"
        "from mllm_export.checkpoint import Checkpoint\n"
        "checkpoint = Checkpoint(pathlib.Path(sys.argv[1]))\n"
        "names = sorted(checkpoint.infos(False))\n"
        "before = psutil.Process().memory_info().rss\n"
        "for name in names:\n"
        "    values = checkpoint.read(name)\n"
        "    assert values[0] == values[-1] == int(name[1:]), name\n"
        "    assert values.sum(dtype='float64') == int(name[1:]) * values.size\n"
        "first = checkpoint.read(names[0])\n"
        "checkpoint.read(names[1])\n"
        "assert first[100] == 0 and first[-1] == 0\n"
        "print((psutil.Process().memory_info().rss - before) >> 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100  # of 256 MiB


def write_prismatic(folder: Path, **entries: object) -> Path:
    """Prismatic's layout: state dicts within a state dict, in a folder below."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    parts = {"projector": {"projector.0.weight": torch.ones(2, 3)}, "llm_backbone": state()}
    torch.save({"model": parts, **entries}, folder / "checkpoints" / "latest-checkpoint.pt")
    return folder


def test_state_dicts_within_a_state_dict_read_as_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_prismatic(tmp_path / "model"))
    names = {f"model.llm_backbone.{name}" for name in state()}
    assert set(checkpoint.infos(tower=False)) == {*names, "model.projector.projector.0.weight"}
    values = checkpoint.read("model.llm_backbone.part.bfloat16")
    assert values.dtype == ml_dtypes.bfloat16
    assert not values.flags.owndata
    (source,) = (s for s in checkpoint.sources(False) if s.path.endswith(".pt"))
    assert source.path == "model/checkpoints/latest-checkpoint.pt"


def test_what_is_no_tensor_in_a_nested_file_is_named_with_its_place(tmp_path: Path) -> None:
    folder = write_prismatic(tmp_path / "model", optimizer={"param_groups": [1]})
    with pytest.raises(CheckpointError, match=r"'optimizer\.param_groups' is a list"):
        Checkpoint(folder).infos(tower=False)


DINO = Companion(name="dino", published="some-dino")
TOKENS = Companion(name="llm", published="some-llm", has_weights=False)


def with_companions(tmp_path: Path) -> Path:
    model = write(tmp_path / "model", "bin")
    write(tmp_path / "some-dino", "safetensors")
    write(tmp_path / "some-llm", "bin")
    return model


def test_tensors_of_a_companion_stand_behind_its_name(tmp_path: Path) -> None:
    checkpoint = Checkpoint(with_companions(tmp_path))
    infos = checkpoint.infos(False, (DINO,))
    assert set(infos) == {*state(), *(f"dino@some-dino:{name}" for name in state())}
    # Another process opens the folder anew and has the names alone.
    again = Checkpoint(checkpoint.path).read("dino@some-dino:part.float32")
    np.testing.assert_array_equal(again, state()["part.float32"].numpy())


def test_a_companion_is_taken_from_where_the_user_says(tmp_path: Path) -> None:
    model = with_companions(tmp_path)
    elsewhere = write(tmp_path / "far" / "away", "bin")
    named = Checkpoint(model, (("dino", elsewhere),))
    assert named.companion(DINO).path == elsewhere
    assert named.companion(TOKENS).path == tmp_path / "some-llm"
    assert named.tower is None


def test_weights_that_are_not_taken_are_not_hashed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(with_companions(tmp_path))
    paths = {source.path for source in checkpoint.sources(False, (DINO, TOKENS))}
    assert {"some-dino/model.safetensors", "some-llm/config.json"} <= paths
    assert "some-llm/pytorch_model.bin" not in paths


def test_a_companion_that_is_missing_is_named_with_its_places(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "bin")
    with pytest.raises(CheckpointError, match="'some-dino' was not found") as raised:
        Checkpoint(model).companion(DINO)
    assert str(tmp_path / "some-dino") in str(raised.value)
    assert "--vision-tower dino=DIR" in str(raised.value)
    gone = Checkpoint(model, (("dino", tmp_path / "gone"),))
    with pytest.raises(CheckpointError, match=str(tmp_path / "gone")):
        gone.companion(DINO)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_config.json", r"holds no weights; .*LoRA adapter; merge it into its base model"),
        ("mm_projector.bin", r"holds no weights; mm_projector\.bin is a projector alone"),
        ("other.bin", r"holds no weights; looked for model\.safetensors, pytorch_model\.bin"),
    ],
)
def test_a_folder_without_a_models_weights_says_what_it_is(
    tmp_path: Path, file: str, words: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=words):
        Checkpoint(tmp_path).shapes(False)
