"""Importance matrices through the loader of llama-quantize and llama-imatrix, compiled for it."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mllm_export.quantize.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

ROOT = Path(__file__).parents[2]
MAIN = r"""
#include "imatrix-loader.h"
#include "common.h"
#include "log.h"
#include <cstdio>

// The loader alone: what it logs has nowhere to go.
int common_log_get_verbosity_thold(void) { return -1; }
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char *, ...) {}

int main(int, char ** arguments) {
    common_imatrix found;
    if (!common_imatrix_load(arguments[1], found)) return 1;
    printf("%d %d %d %d\n", found.is_legacy, found.has_metadata, found.chunk_count,
           found.chunk_size);
    for (const auto & [name, entry] : found.entries) {
        printf("%s %lld", name.c_str(), (long long) entry.counts.at(0));
        for (float one : entry.sums) printf(" %.9g", one);
        printf("\n");
    }
}
"""


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """A program that prints what llama.cpp finds in a file."""
    found = sorted(ROOT.glob("build/upstream/llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("run 'make upstream' to compare with llama.cpp's loader")
    source, folder = found[-1], tmp_path_factory.mktemp("loader")
    libraries = Path(find_spec("llama_cpp").origin).parent / "lib"
    (folder / "main.cpp").write_text(MAIN)
    subprocess.run(
        [
            *("c++", "-std=c++17", "-O0", "-o", folder / "loader", folder / "main.cpp"),
            source / "common" / "imatrix-loader.cpp",
            *(f"-I{source / part}" for part in ("common", "include", "ggml/include")),
            *(f"-L{libraries}", "-lggml-base", f"-Wl,-rpath,{libraries}"),
        ],
        check=True,
    )
    return folder / "loader"


def loaded(loader, path):
    """Flags and sizes of the first line; counts and sums by name."""
    done = subprocess.run([loader, path], check=True, capture_output=True, text=True)
    head, *lines = (line.split() for line in done.stdout.splitlines())
    found = {name: (int(count), np.array(sums, np.float32)) for name, count, *sums in lines}
    return [int(one) for one in head], found


def test_llama_cpps_loader_finds_every_sum_and_count_that_was_written(loader, tmp_path):
    generator = np.random.default_rng(4)
    entries = {
        name: Entry(sums=generator.lognormal(0, 5, size).astype(np.float32), count=count)
        for name, size, count in (
            ("blk.0.attn_q.weight", 64, 1025),
            ("blk.11.ffn_down.weight", 100, 7),
            ("output.weight", 1, 0),
        )
    }
    path = tmp_path / "m.gguf"
    write_imatrix(path, Imatrix(entries=entries, datasets=("pictures",), chunk_tokens=512))
    head, found = loaded(loader, path)
    assert head == [0, 1, 3, 512]
    assert set(found) == set(entries)
    for name, entry in entries.items():
        count, sums = found[name]
        assert count == entry.count
        assert np.array_equal(sums, entry.sums)
    read = read_imatrix(path)
    assert {name: one.count for name, one in read.entries.items()} == {
        name: count for name, (count, _) in found.items()
    }


def test_a_file_without_its_counts_is_none_to_either(loader, tmp_path):
    import gguf

    from mllm_export.errors import CalibrationError

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = subprocess.run([loader, tmp_path / "m.gguf"], check=False)
    assert done.returncode == 1
    with pytest.raises(CalibrationError, match=r"blk\.0\.attn_q\.weight\.counts"):
        read_imatrix(tmp_path / "m.gguf")
