"""A CPU that qemu plays, as data."""

from __future__ import annotations

from importlib.resources import files

from mllm_export.catalog import unknown
from mllm_export.errors import DeviceError
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.device_tests.emulation.cpus"


@record
class Cpu:
    """One file of device_tests/emulation/cpus."""

    name: str
    qemu: str
    """What `-cpu` is given."""
    stands_for: str
    part: str
    """MIDR part number, as /proc/cpuinfo shows it."""
    features: tuple[str, ...]
    """As the kernel's /proc/cpuinfo names them."""
    llama_arch: str
    """GCC's -march of the llama.cpp library for it."""
    source: str

    def cpuinfo(self, cores: int) -> str:
        """A /proc/cpuinfo of this CPU, which ONNX Runtime's cpuinfo library reads.

        Source: Linux, arch/arm64/kernel/cpuinfo.c, c_show.
        """
        return "".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {' '.join(self.features)}\n"
            "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
            f"CPU part\t: {self.part}\nCPU revision\t: 1\n\n"
            for core in range(cores)
        )


def cpu_names() -> list[str]:
    """The CPUs that can be played."""
    return sorted(e.name[:-5] for e in files(_PACKAGE).iterdir() if e.name.endswith(".toml"))


def load_cpu(name: str) -> Cpu:
    """A CPU by its file's name, or by qemu's word for it.

    Raises: DeviceError for a name that is neither.
    """
    known = {stem: _read(stem) for stem in cpu_names()}
    for cpu in known.values():
        if name in {cpu.name, cpu.qemu}:
            return cpu
    raise DeviceError(unknown("CPU", name, list(known)))


def _read(stem: str) -> Cpu:
    file = f"{stem}.toml"
    table = read_toml(files(_PACKAGE) / file, DeviceError)
    return from_plain(Cpu, {"name": stem, **table}, file, DeviceError)
