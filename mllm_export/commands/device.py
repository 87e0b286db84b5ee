"""`mllm-export device`: what a device is, and emulated ones set up."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from mllm_export.commands.arguments import (
    DeviceHomeOption,
    DevicePythonOption,
    JsonOption,
    TimeoutOption,
)

app = typer.Typer(no_args_is_help=True, help="Say what a device is; set up emulated ones.")


@app.command("describe")
def describe(
    name: Annotated[
        str,
        typer.Argument(metavar="D", help="local, qemu:CPU, ssh://user@host[:port] or adb:SERIAL."),
    ],
    timeout: TimeoutOption = 600.0,
    device_python: DevicePythonOption = "",
    device_home: DeviceHomeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Architecture, CPU features, cores, memory and engine versions, as the runtime sees them."""
    from mllm_export.commands.there import Place
    from mllm_export.device_tests.visit import Visit
    from mllm_export.records import to_json

    place = Place(device=name, timeout_s=timeout, python=device_python, home=device_home)
    with place.reach() as (link, progress):
        found = Visit(link, timeout, progress).description
    if as_json:
        typer.echo(to_json(found), nl=False)
        return
    features = found.cpu_features
    memory = "not told" if found.memory_bytes is None else f"{found.memory_bytes >> 20} MiB"
    typer.echo(f"{name}: {found.system}, {found.architecture}, {found.cores} cores, {memory}")
    typer.echo(f"CPU features: {'not told' if features is None else ' '.join(features)}")
    typer.echo(f"Python {found.python}, mllm-export {found.runtime}")
    for engine, version in found.engines:
        typer.echo(f"{engine} {version}")


@app.command("setup")
def setup(
    kind: Annotated[str, typer.Argument(metavar="qemu", help="The kind of device.")],
    cpu: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option("--cpu", metavar="CPU", help="This one; may be given again. All by default."),
    ] = None,
) -> None:
    """Make the arm64 machines that qemu plays, into the cache; what is there is kept.

    The cache is MLLM_EXPORT_CACHE, or mllm-export in the user's cache folder.
    """
    from time import perf_counter

    from mllm_export.device_tests.emulation.counter import counter_library
    from mllm_export.device_tests.emulation.cpu import cpu_names, load_cpu
    from mllm_export.device_tests.emulation.machine import set_up
    from mllm_export.errors import DeviceError
    from mllm_export.terminal import ProgressBars

    if kind != "qemu":
        raise DeviceError(f"nothing to set up for '{kind}'; only 'qemu' machines are made here")
    cpus = [load_cpu(name) for name in cpu or cpu_names()]
    start = perf_counter()
    with ProgressBars() as progress:
        made = [set_up(one, progress) for one in cpus]
    counter_library()
    for machine in made:
        typer.echo(f"qemu:{machine.cpu.name}: {machine.cpu.stands_for}")
    typer.echo(f"ready after {perf_counter() - start:.1f} s")
