"""arm64 system files with Python and the runtime's packages, put together without emulation."""

from __future__ import annotations

import compileall
import os
import sys
from importlib.metadata import version
from pathlib import Path
from py_compile import PycInvalidationMode

from mllm_export.device_tests.emulation.cache import entry, run_tool
from mllm_export.errors import DeviceError

RELEASE = "bookworm"
PYTHON = "3.11"
"""Debian 12's."""

_DEBIAN = (
    "libc6",
    "libc-bin",
    "python3-minimal",
    "python3.11-minimal",
    "libpython3.11-stdlib",
    "libgomp1",
    "libstdc++6",
    "libgcc-s1",
    "zlib1g",
    "libssl3",
    "coreutils",
    "dash",
    "bash",
    "openssh-sftp-server",
)
_WHEELS = ("numpy", "onnxruntime", "pillow", "pydantic", "typing_extensions")
_LLAMA_NEEDS = ("diskcache", "jinja2", "MarkupSafe")
_PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
_LAYOUT = "2"
"""Raised when this file puts things elsewhere, so that an older folder is not taken for it."""

PACKAGES_FOLDER = f"usr/local/lib/python{PYTHON}/dist-packages"


def wheel_versions() -> dict[str, str]:
    """The runtime's packages at the versions installed here, so that both sides run the same."""
    return {name: version(name) for name in (*_WHEELS, *_LLAMA_NEEDS)}


def sysroot() -> Path:
    """The folder, made at the first call.

    Raises: DeviceError when a tool is missing or a download fails.
    """
    made_of = {"layout": _LAYOUT, "release": RELEASE, "debian": " ".join(_DEBIAN)}
    return entry("sysroot-arm64", made_of | wheel_versions(), _make)


def _make(folder: Path) -> None:
    root = folder / "root"
    _install_debian(root)
    packages = root / PACKAGES_FOLDER
    packages.mkdir(parents=True, exist_ok=True)
    _install_wheels(packages)
    _compile(root, packages)
    _fill_etc(root)


def _install_debian(root: Path) -> None:
    """Unpacked, not configured: nothing of it has to run here."""
    sources = next((name for name in _SOURCES if Path(name).is_file()), None)
    if sources is None:
        raise DeviceError(f"no Debian package sources; looked for {' and '.join(_SOURCES)}")
    run_tool(
        (
            "mmdebstrap",
            "--quiet",
            "--arch=arm64",
            "--variant=extract",
            "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
            f"--include={','.join(_DEBIAN)}",
            RELEASE,
            root,
            sources,
        ),
        "unpacking Debian's arm64 packages",
    )


def _install_wheels(packages: Path) -> None:
    pinned = [f"{name}=={found}" for name, found in wheel_versions().items()]
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    run_tool(
        (
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("--target", packages, "--no-compile", "--only-binary=:all:"),
            *("--implementation", "cp", "--python-version", PYTHON),
            *(*platforms, *pinned),
        ),
        "fetching arm64 wheels",
    )


def _compile(root: Path, packages: Path) -> None:
    """Bytecode is the same on every CPU; compiling it under emulation takes ten times as long."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        return
    for folder in (root / f"usr/lib/python{PYTHON}", packages):
        compileall.compile_dir(
            folder,
            quiet=2,
            stripdir=str(root),
            workers=os.cpu_count() or 1,
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )


def _fill_etc(root: Path) -> None:
    """What the packages' own scripts would have written, and folders that programs look for."""
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
    (root / "etc/group").write_text("root:x:0:\n", encoding="ascii")
    for name in ("proc", "root", "tmp", "sys/devices/system/cpu"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        text = f"0-{(os.cpu_count() or 1) - 1}\n"
        (root / "sys/devices/system/cpu" / name).write_text(text, encoding="ascii")
