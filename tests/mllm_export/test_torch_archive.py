"""torch.save's files are read as torch reads them, without torch, and nothing in them is run."""

import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from mllm_export.errors import CheckpointError
from mllm_export.shards import ArchiveShard, TorchShard, open_shard
from mllm_export.torch_archive import ArchivedTensor, read_archive

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)


def saved(tmp_path: Path, state: object, **options: bool) -> Path:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, **options)
    return path


def as_torch(values: np.ndarray) -> torch.Tensor:
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(values.view(np.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))


def assert_same(path: Path, state: dict[str, torch.Tensor]) -> None:
    shard = open_shard(path)
    assert isinstance(shard, ArchiveShard)
    assert list(shard.infos()) == list(state)
    for name, tensor in state.items():
        values = shard.read(name)
        assert shard.infos()[name].dtype == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(as_torch(values), tensor), name
        assert not values.size or not values.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_is_read_as_it_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = ((), (0,), (7,), (3, 0, 2), (3, 5), (2, 1, 3, 1), (257, 33))
    state = {f"t{i}": (torch.randn(shape) * 3).to(dtype) for i, shape in enumerate(shapes)}
    assert_same(saved(tmp_path, OrderedDict(state)), state)


def test_views_parameters_and_tied_weights_are_found_in_their_storage(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    tied = torch.nn.Linear(4, 3)
    state = {
        "whole": base,
        "rows": base[2:5],
        "row": base[5],
        "parameter": tied.weight,
        "again": tied.weight,
    }
    assert_same(saved(tmp_path, state), state)


def test_a_modules_state_dict_with_its_metadata_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert_same(saved(tmp_path, module.state_dict()), module.state_dict())


@pytest.mark.parametrize(
    "state",
    [
        {"t": torch.arange(6.0).reshape(2, 3).T},
        {"t": torch.ones(1).expand(4, 4)},
        {"t": torch.ones(2, dtype=torch.complex64)},
    ],
    ids=["transposed", "expanded", "a dtype numpy has another name for"],
)
def test_what_is_not_plain_is_left_to_torch(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path, state)
    assert read_archive(path) is None
    shard = open_shard(path)
    assert isinstance(shard, TorchShard)
    assert torch.equal(torch.from_numpy(np.array(shard.read("t"))), state["t"])


def test_a_copy_of_a_transposed_tensor_outlives_the_next_reading(tmp_path: Path) -> None:
    first, second = torch.arange(1.0, 262145).reshape(512, 512).T, torch.ones(4).expand(4, 4)
    shard = open_shard(saved(tmp_path, {"first": first, "second": second}))
    assert isinstance(shard, TorchShard)
    held = shard.read("first")
    shard.read("second")
    assert torch.equal(torch.from_numpy(np.array(held)), first)


def test_files_older_than_zip_are_left_to_torch(tmp_path: Path) -> None:
    path = saved(tmp_path, {"t": torch.ones(3)}, _use_new_zipfile_serialization=False)
    assert isinstance(open_shard(path), TorchShard)


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, {"t": torch.ones(3, dtype=torch.bfloat16)})
    program = (
        "import sys; from pathlib import Path; from mllm_export.shards import open_shard\n"
        "assert open_shard(Path(sys.argv[1])).read('t').astype('float32').sum() == 3\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


def archive(
    path: Path, pickled: bytes, data: bytes = b"\0" * 16, kind: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr("model/data.pkl", pickled)
        made.writestr("model/data/0", data)
    return path


def calls(module: str, name: str, arguments: bytes = b")") -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


class Stored:
    """Pickles as torch's storages do."""


class Saver(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        kind = torch.FloatStorage
        return ("storage", kind, "0", "cpu", 4) if isinstance(value, Stored) else None


class Rebuilt:
    """A tensor over 16 stored bytes, with any offset, shape and strides."""

    def __init__(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (Stored(), offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickled(value: object, path: Path) -> bytes:
    with path.open("wb") as file:
        Saver(file, 2).dump(value)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (-1, (2,), (1,)), (0, (-1,), (1,)), (0, (2, 2), (1,))],
    ids=["too long", "past the end", "before the beginning", "negative", "strides missing"],
)
def test_a_tensor_outside_its_storage_is_not_read(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    honest = pickled({"t": Rebuilt(0, (4,), (1,))}, tmp_path / "honest")
    found = read_archive(archive(tmp_path / "honest.bin", honest))
    assert found is not None
    assert isinstance(found["t"], ArchivedTensor)
    planted = pickled({"t": Rebuilt(offset, shape, strides)}, tmp_path / "planted")
    path = archive(tmp_path / "planted.bin", planted)
    assert read_archive(path) is None
    with pytest.raises(CheckpointError, match=r"planted\.bin"):
        open_shard(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "defaultdict"),
        ("mllm_export.torch_archive", "read_archive"),
    ],
)
def test_a_pickle_gets_no_other_name(module: str, name: str, tmp_path: Path) -> None:
    assert read_archive(archive(tmp_path / "x.bin", calls(module, name))) is None


def test_what_a_pickle_sets_on_a_function_is_gone_with_it(tmp_path: Path) -> None:
    # BUILD with a pair sets attributes: here the defaults of what rebuilds tensors.
    planted = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b0}."
    )
    assert read_archive(archive(tmp_path / "planted.bin", planted)) == {}
    state = {"t": torch.arange(4.0)}
    assert_same(saved(tmp_path, state), state)


def test_compressed_entries_are_left_to_torch(tmp_path: Path) -> None:
    honest = pickled({"t": Rebuilt(0, (4,), (1,))}, tmp_path / "honest")
    packed = archive(tmp_path / "x.bin", honest, kind=zipfile.ZIP_DEFLATED)
    assert read_archive(packed) is None


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_pickle_is_none_of_its_own(seed: int, tmp_path: Path) -> None:
    """Bytes turned at random: a tensor within the file, or nothing; never another error."""
    honest = bytearray(pickled({"t": Rebuilt(0, (4,), (1,))}, tmp_path / "honest"))
    turn = np.random.default_rng(seed)
    for at in turn.integers(0, len(honest), 3):
        honest[at] = turn.integers(0, 256)
    path = archive(tmp_path / "x.bin", bytes(honest))
    found = read_archive(path)
    for one in (found or {}).values():
        if isinstance(one, ArchivedTensor):
            assert 0 <= one.start <= one.start + one.size_bytes <= path.stat().st_size
