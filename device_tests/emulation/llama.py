"""llama.cpp for arm64, cross-compiled from the source release of the pinned llama-cpp-python."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from mllm_export.caches import cache_folder
from mllm_export.device_tests.emulation.cache import entry, run_tool
from mllm_export.device_tests.emulation.cpu import Cpu

_PACKAGE = "llama-cpp-python"
_COMPILER = "aarch64-linux-gnu"
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DGGML_NATIVE=OFF",
    # One thread is what is counted; OpenMP would bring a library and threads that spin.
    "-DGGML_OPENMP=OFF",
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_C_COMPILER={_COMPILER}-gcc",
    f"-DCMAKE_CXX_COMPILER={_COMPILER}-g++",
    f"-DCMAKE_FIND_ROOT_PATH=/usr/{_COMPILER}",
    "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=NEVER",
    "-DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY",
    "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
    "-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=ONLY",
)


def llama_version() -> str:
    """The release whose binding is installed here."""
    return version(_PACKAGE)


def llama_source() -> Path:
    """The unpacked source release, which holds llama.cpp's own tree."""
    release = llama_version()
    folder = entry("llama-source", {"release": release}, _download)
    return folder / f"llama_cpp_python-{release}"


def llama_libraries(cpu: Cpu) -> Path:
    """A folder with libllama and libggml for the CPU, compiled at the first call."""
    made_of = {
        "release": llama_version(),
        "arch": cpu.llama_arch,
        "options": " ".join(_OPTIONS),
        "compiler": shutil.which(f"{_COMPILER}-g++") or "",
    }
    return entry(f"llama-arm64-{cpu.name}", made_of, lambda folder: _compile(cpu, folder))


def _download(folder: Path) -> None:
    """The build backend is asked for the metadata; it must not compile for that."""
    fetch = ("download", "-q", "--disable-pip-version-check", "--no-deps")
    wanted = f"{_PACKAGE}=={llama_version()}"
    run_tool(
        (sys.executable, "-m", "pip", *fetch, "--no-binary", _PACKAGE, "-d", folder, wanted),
        "fetching llama.cpp's source",
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    archive.unlink()


def _compile(cpu: Cpu, folder: Path) -> None:
    """All CPUs share one build tree: between two of them only ggml's CPU code is compiled anew."""
    tree = cache_folder() / f"llama-build-{llama_version()}"
    source = llama_source() / "vendor" / "llama.cpp"
    run_tool(
        (
            *("cmake", "-G", "Ninja", "-S", source, "-B", tree, *_OPTIONS),
            f"-DGGML_CPU_ARM_ARCH={cpu.llama_arch}",
        ),
        f"configuring llama.cpp for {cpu.name}",
    )
    jobs = str(os.cpu_count() or 1)
    run_tool(("ninja", "-C", tree, "-j", jobs, "llama"), f"compiling llama.cpp for {cpu.name}")
    for library in sorted((tree / "bin").glob("lib*.so*")):
        shutil.copy2(library, folder / library.name, follow_symlinks=False)
