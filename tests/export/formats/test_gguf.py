"""GGUF files: what is in them, that they do not vary, and what becomes of a failure."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

from mllm_export.errors import BuildError, CheckpointError, DiskFullError
from mllm_export.export.decoder_plan import StoredTensor, general_fields
from mllm_export.export.formats import gguf
from mllm_export.export.parts import GgufField, GgufTensor
from mllm_export.progress import silent

SHAPES = {"a.weight": (37, 64), "b.weight": (5, 96), "c_norm.weight": (64,)}
SCHEMES = {"a.weight": "Q8_0", "b.weight": "F16", "c_norm.weight": "F32"}


def first(values):
    (only,) = values
    return only


def stored(**changes):
    return [
        StoredTensor(
            tensor=GgufTensor(name=name, sources=(f"model.{name}",), shape=shape, transform=first),
            scheme=changes.get(name, SCHEMES[name]),
        )
        for name, shape in SHAPES.items()
    ]


def values(source, dtype=np.float32):
    name = source.removeprefix("model.")
    rng = np.random.default_rng(len(name))
    return rng.standard_normal(SHAPES[name]).astype(dtype)


def fields():
    return (
        *general_fields("tiny", "Q8_0", stored()),
        GgufField(key="general.architecture", value="llama", kind="STRING"),
        GgufField(key="llama.block_count", value=3, kind="UINT32"),
        GgufField(key="llama.rope.freq_base", value=10000.0, kind="FLOAT32"),
        GgufField(key="tokenizer.ggml.add_bos_token", value=True, kind="BOOL"),
        GgufField(key="tokenizer.ggml.tokens", value=("<s>", "▁ä"), kind="ARRAY"),
        GgufField(key="tokenizer.ggml.scores", value=(0.0, -1.5), kind="ARRAY"),
        GgufField(key="tokenizer.ggml.token_type", value=(3, 1), kind="ARRAY"),
    )


def write(path, tensors=None, read=values, progress=silent):
    gguf.write_decoder(path, fields(), tensors or stored(), read, progress)
    return path


def test_keys_and_tensors_are_read_back(tmp_path):
    reader = GGUFReader(write(tmp_path / "x.gguf"))
    for field in fields():
        found = reader.fields[field.key].contents()
        expected = list(field.value) if isinstance(field.value, tuple) else field.value
        assert found == expected, field.key
    assert [tensor.name for tensor in reader.tensors] == list(SHAPES)
    for tensor in reader.tensors:
        found = dequantize(tensor.data, tensor.tensor_type)
        expected = values(tensor.name)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 0.02, tensor.name
        assert tensor.data_offset % 32 == 0


def test_the_file_has_the_predicted_size(tmp_path):
    path = write(tmp_path / "x.gguf")
    reader = GGUFReader(path)
    assert sum(t.n_bytes for t in reader.tensors) == sum(t.size_bytes for t in stored())
    end = max(t.data_offset + t.n_bytes for t in reader.tensors)
    assert path.stat().st_size == -(-end // 32) * 32


def test_the_same_inputs_give_the_same_bytes_in_slabs_of_any_size(tmp_path, monkeypatch):
    once = write(tmp_path / "a.gguf").read_bytes()
    monkeypatch.setattr(gguf, "_SLAB_BYTES", 3 * 64 * 4)
    assert write(tmp_path / "b.gguf").read_bytes() == once


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=str)
def test_float16_rounds_every_source_type_once(dtype, tmp_path):
    source = values("model.b.weight", dtype)
    reader = GGUFReader(write(tmp_path / "x.gguf", read=lambda name: values(name, dtype)))
    found = next(t.data for t in reader.tensors if t.name == "b.weight")
    assert np.array_equal(found, source.astype(np.float32).astype(np.float16))


def test_one_tensor_is_read_at_a_time_and_in_order(tmp_path):
    asked = []

    def read(name):
        asked.append(name)
        return values(name)

    seen = []
    write(tmp_path / "x.gguf", read=read, progress=lambda s: seen.append((len(asked), s)))
    assert asked == [f"model.{name}" for name in SHAPES]
    assert [count for count, step in seen if step.item != "done"] == [1, 2, 3]
    done = [step.done for _, step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1].total == sum(t.size_bytes for t in stored())


WRITES_A_TABLE = """
import sys
from pathlib import Path
from mllm_export.export.decoder_plan import StoredTensor
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import GgufField, GgufTensor
from mllm_export.pages import peak_bytes
from mllm_export.shards import open_shard

shard = open_shard(Path(sys.argv[1]))

def peak_mib(name):
    shape = shard.infos()[name].shape
    tensor = GgufTensor(name=name, sources=(name,), shape=shape, transform=lambda v: v[0])
    field = GgufField(key="general.architecture", value="llama", kind="STRING")
    stored = [StoredTensor(tensor=tensor, scheme="Q8_0")]
    write_decoder(Path(sys.argv[2]), [field], stored, shard.read)
    return peak_bytes() >> 20

small = peak_mib("small")
print(peak_mib("large") - small)
"""


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_large_tensor_is_never_whole_in_memory(ending, tmp_path):
    tensors = {
        "small": torch.zeros(8192, 2048, dtype=torch.bfloat16),
        "large": torch.zeros(131072, 2048, dtype=torch.bfloat16),
    }
    source = tmp_path / f"model.{ending}"
    (torch.save if ending == "bin" else save_file)(tensors, source)
    done = subprocess.run(
        [sys.executable, "-c", WRITES_A_TABLE, source, tmp_path / "x.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 128  # of 512 MiB, and 272 stored


def test_a_failure_of_the_last_write_is_not_lost(tmp_path):
    class Full:
        written = 0

        def write(self, data):
            self.written += 1
            if self.written == 1:
                return
            raise OSError(28, f"No space left for {memoryview(data).nbytes} bytes")

    slab = np.zeros((1, 34), np.uint8)
    with pytest.raises(OSError, match="No space left"):
        gguf._write_tensors(Full(), 32, stored()[:1], lambda _: iter([slab]), silent, "decoder")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_a_build_error_that_names_the_file():
    with pytest.raises(BuildError, match=r"/dev/full: No space left on device; make room"):
        write(Path("/dev/full"))


def test_a_disk_that_fills_between_tensors_is_a_build_error(tmp_path, monkeypatch):
    import resource
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "x.gguf"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        with pytest.raises(DiskFullError, match=r"x\.gguf: File too large; make room"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def test_a_missing_folder_is_a_build_error(tmp_path):
    with pytest.raises(BuildError, match=r"none/x\.gguf: No such file or directory"):
        write(tmp_path / "none" / "x.gguf")


def test_values_that_no_layout_holds_name_the_tensor(tmp_path):
    def read(name):
        found = values(name)
        found[-1, ...] = np.nan if name == "model.a.weight" else found[-1, ...]
        return found

    with pytest.raises(CheckpointError, match=r"'model.a.weight': q8_0 cannot hold NaN"):
        write(tmp_path / "x.gguf", read=read)


def test_a_float16_overflow_names_the_tensor_and_the_value(tmp_path):
    def read(name):
        return values(name) * np.float32(1e6 if name == "model.b.weight" else 1)

    with pytest.raises(
        CheckpointError, match=r"'model.b.weight': f16 cannot hold a value as large"
    ):
        write(tmp_path / "x.gguf", read=read)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"gives \[96, 5\], b.weight must be \[5, 96\]"):
        write(
            tmp_path / "x.gguf",
            read=lambda name: values(name).T if name == "model.b.weight" else values(name),
        )
