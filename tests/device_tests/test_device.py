"""How devices are named, and what a name that is none gets."""

import pytest

from mllm_export.device_tests.device import DEVICES, Completed, Settings, done_so_far, open_device
from mllm_export.device_tests.emulation.cpu import cpu_names, load_cpu
from mllm_export.errors import DeviceError, DeviceLostError
from mllm_export.export.target import load_target, target_names
from mllm_export.progress import silent

BAD = {
    "qmu:cortex-a72": "unknown device kind 'qmu'; did you mean qemu.*ssh://user@host",
    "": "unknown device kind ''",
    "local:here": "this device has no address; write 'local'",
    "qemu": "no CPU is named; write qemu:CPU .CPU: cortex-a72, cortex-a76, max",
    "qemu:cortex-a77": "unknown CPU 'cortex-a77'; did you mean cortex-a7",
    "ssh:": "names no host; write ssh://user@host",
    "ssh://": "names no host",
    "ssh://pi@board/folder": "names no host; write",
    "ssh://pi@board:port": "port",
    "adb:": "no serial is named; write adb:SERIAL, see 'adb devices'",
}


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_device_is_answered_with_its_form(name: str) -> None:
    with pytest.raises(DeviceError, match=BAD[name]):
        open_device(name, Settings(), silent)


def test_every_kind_says_how_it_is_named() -> None:
    assert DEVICES.names() == ["adb", "local", "qemu", "ssh"]
    for name in DEVICES.names():
        assert DEVICES[name].form.startswith(name)


def test_an_address_keeps_user_and_port() -> None:
    link = open_device("ssh://pi@board.local:2222", Settings(), silent)
    assert link.title == "ssh://pi@board.local:2222"
    link.close()


def test_what_was_done_is_kept_when_time_runs_out() -> None:
    link = open_device("local", Settings(), silent)
    line = "echo 'done: 1 of 9 pictures' >&2; echo 'a warning' >&2; exec sleep 60"
    with pytest.raises(DeviceLostError, match=r"did not finish within 0\.5 s.* --timeout") as lost:
        link.shell(line, 0.5)
    assert done_so_far(lost.value.printed) == "1 of 9 pictures"


def test_progress_is_no_complaint() -> None:
    done = Completed(code=1, out=b"", err=b"error: why\ndone: 2 of 3 answers\n")
    assert done.last_line() == "error: why"
    assert done_so_far(done.err) == "2 of 3 answers"
    silence = Completed(code=1, out=b"", err=b"done: 2 of 3 answers\n")
    assert silence.last_line() == "it printed nothing"
    assert done_so_far(b"nothing of ours\n") == ""


@pytest.mark.parametrize("name", cpu_names())
def test_a_cpu_is_told_as_linux_tells_it(name: str) -> None:
    cpu = load_cpu(name)
    text = cpu.cpuinfo(2)
    assert text.count("processor\t: ") == 2
    assert f"CPU part\t: {cpu.part}" in text
    assert load_cpu(cpu.qemu) == cpu


@pytest.mark.parametrize("name", target_names())
def test_a_target_says_where_its_figures_come_from(name: str) -> None:
    target = load_target(name)
    assert target.source
    assert target.name == name
    if target.system in {"linux", "android"}:
        assert target.rates is not None
        assert target.rates.source


def test_every_arm_target_has_an_emulated_cpu_with_its_features() -> None:
    for name in target_names():
        target = load_target(name)
        if target.arch == "arm64" and target.system in {"linux", "android"}:
            cpus = [load_cpu(cpu) for cpu in cpu_names()]
            assert any(set(target.cpu_features) <= set(cpu.features) for cpu in cpus), name
