"""The machine this process runs on: what its CPU knows, and what it tells of its state."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from mllm_export.records import record

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")
_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
"""Raspberry Pi's firmware flags. Source: raspberrypi/linux, drivers/firmware/raspberrypi.c."""
_ASK_FIRMWARE = ("vcgencmd", "get_throttled")
"""The same where there is no such file, as on a Raspberry Pi 5.

Source: raspberrypi/documentation, vcgencmd: it prints throttled=0x50000.
"""

_FEATURE_LINES = ("flags", "Features")
"""How Linux names the line on x86 and on ARM."""

_ARCHITECTURES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


@record
class MachineState:
    """What changes while a machine works; None where it does not tell."""

    governor: str | None
    clock_mhz: float | None
    temperature_c: float | None
    throttled: str | None
    """The firmware's flags as hexadecimal digits; 0 where nothing was throttled."""


def architecture() -> str:
    """x86_64, arm64, or what the system calls a CPU we do not know."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def cpu_features() -> frozenset[str] | None:
    """Features as the kernel names them; None where the system has no such list (macOS)."""
    text = _text(_CPUINFO)
    if text is None:
        return None
    for line in text.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in _FEATURE_LINES:
            return frozenset(words.split())
    return None


def memory_bytes() -> int | None:
    """The machine's memory."""
    for line in (_text(_MEMINFO) or "").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            return int(amount.split()[0]) << 10
    return None


def state() -> MachineState:
    """Governor, clock, temperature and throttling, as far as the machine tells."""
    clock_khz = _number(_CPUFREQ / "scaling_cur_freq")
    temperature_mc = _number(_THERMAL)
    return MachineState(
        governor=_text(_CPUFREQ / "scaling_governor"),
        clock_mhz=None if clock_khz is None else clock_khz / 1000,
        temperature_c=None if temperature_mc is None else temperature_mc / 1000,
        throttled=_text(_THROTTLED) or _firmware_flags(),
    )


def _firmware_flags() -> str | None:
    try:
        asked = subprocess.run(
            _ASK_FIRMWARE, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, flags = asked.stdout.strip().partition("=")
    return flags.removeprefix("0x") or None if name == "throttled" else None


def usable_cores() -> int:
    """Cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
