"""Importance matrices: there and back, as ggml reads them, and what is refused."""

import ctypes
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_export.errors import CalibrationError
from mllm_export.quantize import ggml
from mllm_export.quantize.imatrix import Entry, Imatrix, read_imatrix, write_imatrix


def matrix_of(sizes, count=7, seed=0):
    generator = np.random.default_rng(seed)
    entries = {
        name: Entry(sums=generator.random(size).astype(np.float32) * 100, count=count)
        for name, size in sizes.items()
    }
    return Imatrix(entries=entries, datasets=("pictures",), chunk_tokens=512)


SIZES = {"blk.0.attn_q.weight": 64, "blk.1.ffn_down.weight": 96}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.dictionaries(
        st.sampled_from([f"blk.{at}.ffn_up.weight" for at in range(9)]),
        st.integers(1, 300),
        min_size=1,
    ),
    count=st.integers(0, 1 << 20),
)
def test_a_matrix_is_read_back_as_it_was_written(sizes, count, tmp_path_factory):
    path = tmp_path_factory.mktemp("imatrix") / "m.gguf"
    matrix = matrix_of(sizes, count)
    write_imatrix(path, matrix)
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_tokens) == (matrix.datasets, 512)
    assert set(found.entries) == set(sizes)
    for name, entry in matrix.entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert found.entries[name].count == count


def test_ggml_itself_finds_what_its_tools_look_for(tmp_path):
    write_imatrix(tmp_path / "m.gguf", matrix_of(SIZES))
    library = ggml._library()
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
    library.gguf_get_n_tensors.restype = ctypes.c_int64
    library.gguf_get_n_tensors.argtypes = (ctypes.c_void_p,)
    library.gguf_get_tensor_name.restype = ctypes.c_char_p
    library.gguf_get_tensor_name.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.gguf_find_key.restype = ctypes.c_int64
    library.gguf_find_key.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    # struct gguf_init_params { bool no_alloc; ggml_context ** ctx; } goes in two registers.
    opened = library.gguf_init_from_file(str(tmp_path / "m.gguf").encode(), 1, 0)
    assert opened
    names = [library.gguf_get_tensor_name(opened, at).decode() for at in range(4)]
    assert library.gguf_get_n_tensors(opened) == 4
    assert sorted(names) == sorted(n + end for n in SIZES for end in (".in_sum2", ".counts"))
    for key in ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert library.gguf_find_key(opened, key.encode()) >= 0, key


def legacy(entries, dataset=b"text.txt"):
    data = struct.pack("<i", len(entries))
    for name, (calls, sums) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(sums)) + np.array(sums, "<f4").tobytes()
    return data + struct.pack("<ii", 3, len(dataset)) + dataset


def test_the_format_before_gguf_is_read(tmp_path):
    (tmp_path / "m.dat").write_bytes(legacy({"blk.0.attn_q.weight": (4, [4.0, 8.0])}))
    found = read_imatrix(tmp_path / "m.dat")
    assert found.datasets == ("text.txt",)
    assert found.importance()["blk.0.attn_q.weight"].tolist() == [1.0, 2.0]


def test_plain_sums_beside_the_squares_are_passed_over(tmp_path):
    """Source: llama.cpp after the pinned revision, common/imatrix-loader.cpp: `.in_sum`."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "")
    for name, end, values in (
        ("blk.0.attn_q.weight", ".in_sum", [-3.0, 5.0]),
        ("blk.0.attn_q.weight", ".in_sum2", [4.0, 8.0]),
        ("blk.0.attn_q.weight", ".counts", [2.0]),
    ):
        writer.add_tensor(name + end, np.array([values], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "m.gguf").importance()
    assert {name: costs.tolist() for name, costs in found.items()} == {
        "blk.0.attn_q.weight": [2.0, 4.0]
    }


def test_a_weight_that_saw_nothing_counts_every_column_the_same():
    assert Entry(sums=np.zeros(3, np.float32), count=0).importance.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", b"not a matrix at all", legacy({"a": (1, [1.0, 2.0])})[:20]],
    ids=["empty", "magic alone", "text", "cut"],
)
def test_a_file_that_is_no_matrix_is_refused(data, tmp_path):
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(CalibrationError, match="not an importance matrix"):
        read_imatrix(tmp_path / "m")


def test_sums_that_are_no_numbers_are_refused(tmp_path):
    matrix = matrix_of(SIZES)
    matrix.entries["blk.0.attn_q.weight"].sums[3] = np.nan
    write_imatrix(tmp_path / "m.gguf", matrix)
    with pytest.raises(CalibrationError, match=r"'blk\.0\.attn_q\.weight' holds sums of squares"):
        read_imatrix(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"blk.0.attn_q.weight": 64}, "holds 'blk.1.ffn_down.weight', which this model does not"),
        ({**SIZES, "blk.1.ffn_down.weight": 128}, "has 96 columns, this model's has 128; is it"),
    ],
)
def test_the_matrix_of_another_model_is_refused(columns, words):
    with pytest.raises(CalibrationError, match=words):
        matrix_of(SIZES).require_model(columns, "m.gguf")
