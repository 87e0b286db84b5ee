"""`mllm-export bench`: times of a bundle's stages on a device, costs on an emulated one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mllm_export.commands.arguments import (
    BundleArgument,
    DeviceHomeOption,
    DevicePythonOption,
    JsonOption,
    LanguageModelOption,
    PageOption,
    PeerCheckpointOption,
    PeerMmprojOption,
    PeersOption,
    TimeoutOption,
)

if TYPE_CHECKING:
    from mllm_export.bundle import Bundle
    from mllm_export.device_tests.bench import Bench
    from mllm_export.device_tests.cost import Cost
    from mllm_export.runtimes.machine import MachineState


def bench(
    bundle: BundleArgument,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="D", help="local, qemu:CPU, ssh://user@host[:port] or adb:SERIAL."
        ),
    ] = "local",
    repeats: Annotated[
        Optional[int],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option(
            help="Timed answers after the warm-up, 10 by default; where it runs in rounds, how "
            "many, 5 by default.",
            min=1,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=2)] = 24,
    pictures: Annotated[
        int, typer.Option(help="In rounds: pictures a round, the first warms up.", min=2)
    ] = 3,
    threads: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N[,N]",
            help="CPU threads, one run for each; by default the runtime's own choice, in rounds "
            "all cores.",
        ),
    ] = None,
    peers: PeersOption = None,
    checkpoint: PeerCheckpointOption = None,
    language_model: LanguageModelOption = None,
    mmproj: PeerMmprojOption = None,
    report: PageOption = None,
    timeout: TimeoutOption = 600.0,
    device_python: DevicePythonOption = "",
    device_home: DeviceHomeOption = "",
    as_json: JsonOption = False,
) -> None:
    """Time preprocess, load, tower, prefill, first token and decode: median and quartiles.

    With --peers, several --threads or a --report it runs in rounds on this machine, each a
    process of its own: cold start, second question and memory are told as well. With --peers,
    other engines answer the same in turn with ours. An emulated device has no times: its
    instructions are counted, and the least time they need on the bundle's target is estimated.
    """
    from mllm_export.bundle import open_bundle
    from mllm_export.commands.peering import ROUNDS, Beside, bench_beside, thread_counts
    from mllm_export.commands.there import Place, refuse_alone
    from mllm_export.device_tests.bench import bench as measure
    from mllm_export.device_tests.cost import measure_cost
    from mllm_export.embedder import is_embedder
    from mllm_export.records import to_json

    place = Place(device=device, timeout_s=timeout, python=device_python, home=device_home)
    if is_embedder(bundle):
        refuse_alone(place, bundle)
    counts = thread_counts(threads)
    beside = Beside.asked(peers, checkpoint, language_model, mmproj, report, counts)
    if beside is not None:
        beside.require_here(place)
        bench_beside(bundle, beside, counts, repeats or ROUNDS, max_tokens, pictures, as_json)
        return
    opened = open_bundle(bundle)
    with place.reach() as (link, progress):
        found = (
            measure_cost(opened, link, timeout, progress)
            if link.emulated
            else measure(
                opened,
                link,
                repeats=repeats or 10,
                max_tokens=max_tokens,
                threads=counts[0] if counts else None,
                timeout_s=timeout,
                progress=progress,
            )
        )
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _show(found, opened)


def _show(found: Bench | Cost, bundle: Bundle) -> None:
    from mllm_export.commands.costing import show_cost, show_estimate
    from mllm_export.device_tests.cost import Cost

    if isinstance(found, Cost):
        show_cost(found)
        show_estimate(found, bundle)
    else:
        _show_times(found)


def _show_times(found: Bench) -> None:
    from rich.table import Table

    from mllm_export.terminal import mib, stdout

    table = Table(title=f"{found.model}, {found.recipe}, on {found.device}")
    for header in ("stage", "median", "quartiles", "repeats", "threads"):
        table.add_column(header, justify="left" if header == "stage" else "right")
    for one in found.stages:
        name = one.stage
        if name == "prefill":
            name += f", {found.prefill_positions} positions"
        spread = f"{one.low_ms:,.2f} to {one.high_ms:,.2f} ms"
        table.add_row(name, f"{one.median_ms:,.2f} ms", spread, str(one.repeats), str(one.threads))
    stdout().print(table)
    what = found.description
    typer.echo(f"peak memory of the process: {mib(found.peak_memory_bytes)}")
    typer.echo(f"device: {what.architecture}, {what.cores} cores, Python {what.python}")
    typer.echo(f"before: {_state(found.before)}")
    typer.echo(f"after: {_state(found.after)}")


def _state(state: MachineState) -> str:
    """What the machine told, and what it did not."""
    told = {
        "governor": state.governor,
        "clock": None if state.clock_mhz is None else f"{state.clock_mhz:.0f} MHz",
        "temperature": None if state.temperature_c is None else f"{state.temperature_c:.1f} C",
        "throttling flags": state.throttled,
    }
    return ", ".join(f"{name} {value or 'not told'}" for name, value in told.items())
