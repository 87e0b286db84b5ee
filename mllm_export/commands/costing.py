"""`mllm-export check --cost`: instruction counts against what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mllm_export.errors import CheckFailedError, DeviceError

if TYPE_CHECKING:
    from mllm_export.bundle import Bundle
    from mllm_export.commands.there import Place
    from mllm_export.device_tests.cost import Cost


def check_cost(
    bundle: Bundle, place: Place | None, record: Path | None, write: bool, as_json: bool
) -> None:
    """Count, show, and hold against the record, or write it.

    Raises: DeviceError where this cannot be done, CheckFailedError for a count out of its bound.
    """
    from mllm_export.device_tests.cost import (
        changes,
        measure_cost,
        read_record,
        recorded,
        write_record,
    )
    from mllm_export.records import to_json
    from mllm_export.terminal import print_note

    if place is None:
        raise DeviceError("--cost needs an emulated device, such as --device qemu:cortex-a76")
    if write and record is None:
        raise DeviceError("--record-cost needs a file: name it with --cost-record")
    before = None if write else read_record(record, bundle.manifest.target)
    with place.reach() as (link, progress):
        now = measure_cost(bundle, link, place.timeout_s, progress)
    if as_json:
        typer.echo(to_json(now), nl=False)
    else:
        show_cost(now)
    if before is None:
        assert record is not None, "checked above"
        write_record(record, now)
        print_note(f"recorded in {record}")
        return
    moved = changes(recorded(before, now), now)
    if moved:
        raise CheckFailedError(
            f"the cost moved: {'; '.join(moved)}; if that is meant, write it with --record-cost"
        )


def show_cost(cost: Cost) -> None:
    """The counts as a table."""
    from rich.table import Table

    from mllm_export.device_tests.cost import KINDS
    from mllm_export.terminal import stdout

    table = Table(title=f"{cost.recipe} on {cost.cpu}: counts, no time")
    table.add_column("count")
    for name in cost.regions:
        per = f"\n{cost.prefill_positions} positions" if name == "prefill" else ""
        table.add_column(f"{name}{per}", justify="right")
    for kind in KINDS:
        values = (f"{getattr(region, kind):,}" for region in cost.regions.values())
        table.add_row(kind.replace("_", " "), *values)
    stdout().print(table)


def show_estimate(cost: Cost, bundle: Bundle) -> None:
    """The least time the counts need at the target's rates; nothing for a target without them."""
    from mllm_export.device_tests.roofline import estimate
    from mllm_export.errors import TargetError
    from mllm_export.export.target import load_target

    try:
        rates = load_target(bundle.manifest.target).rates
    except TargetError:  # the user's own file, which stayed where the bundle was built
        return
    if rates is None:
        return
    tower, decoder = (bundle.path(role).stat().st_size for role in ("tower", "decoder"))
    weights = {"tower": tower, "prefill": decoder, "decode": decoder}
    parts = (
        f"{name} {one.milliseconds:,.2f} ms ({one.bound})"
        for name, one in estimate(cost, rates, weights).items()
    )
    typer.echo(
        f"ESTIMATE, not measured: on one {rates.core} of {bundle.manifest.target} at "
        f"{rates.clock_mhz} MHz at least {', '.join(parts)}"
    )
