"""The `mllm-export` command: verbs, exit codes, and errors without a traceback.

Exit codes: 0 done, 1 a check failed, 2 cannot be done as asked, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mllm_export import __version__
from mllm_export.commands import (
    bench,
    build,
    check,
    compare,
    device,
    diagnose,
    evaluate,
    inspect,
    listing,
    plan,
    run,
)
from mllm_export.errors import MllmExportError
from mllm_export.terminal import print_error

app = typer.Typer(
    name="mllm-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a check failed, 2 cannot be done as asked.",
)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("build")(build.build)
app.command("check")(check.check)
app.command("compare")(compare.compare)
app.command("diagnose")(diagnose.diagnose)
app.command("evaluate")(evaluate.evaluate)
app.command("run")(run.run)
app.command("bench")(bench.bench)
app.command("list")(listing.list_names)
app.add_typer(device.app, name="device")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mllm-export {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a compact multimodal LLM into a checked bundle for one device."""


def main() -> None:
    """Entry point of the command; Typer itself ends with 2 for a usage error, 130 for Ctrl-C."""
    try:
        app()
    except MllmExportError as failure:
        if "--debug" in sys.argv:
            raise
        print_error(str(failure))
        sys.exit(failure.exit_code)
    except OSError as failure:
        if "--debug" in sys.argv:
            raise
        print_error(f"{failure.filename or 'a file'}: {failure.strerror or failure}")
        sys.exit(MllmExportError.exit_code)
