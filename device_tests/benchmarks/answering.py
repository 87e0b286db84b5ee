"""The same question answered by the runtime and by its peers: `bench --peers` as a Markdown table.

python -m mllm_export.device_tests.benchmarks.answering BUNDLE \
        --checkpoint CKPT --mmproj FILE --threads 1,2 -o table.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mllm_export.bundle import open_bundle
from mllm_export.device_tests.peer import PEERS, named_peers
from mllm_export.device_tests.peer_files import gathered
from mllm_export.device_tests.side_by_side import side_by_side
from mllm_export.reports.side_by_side import to_markdown
from mllm_export.terminal import ProgressBars

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def compare(
    bundle: Path,
    out: Annotated[Path, typer.Option("-o", help="The table, in Markdown.")],
    checkpoint: Annotated[Optional[Path], typer.Option(help="For torch.")] = None,  # noqa: UP045
    language_model: Annotated[Optional[Path], typer.Option(help="For torch.")] = None,  # noqa: UP045
    mmproj: Annotated[Optional[Path], typer.Option(help="For llama.cpp.")] = None,  # noqa: UP045
    peers: Annotated[str, typer.Option(help="With commas between.")] = ",".join(PEERS.names()),
    threads: Annotated[str, typer.Option(help="With commas between.")] = "1,2",
    rounds: int = 5,
    tokens: int = 32,
) -> None:
    """Run all peers in turn and write the table."""
    opened, names = open_bundle(bundle), named_peers(peers)
    with (
        ProgressBars() as progress,
        gathered(opened, names, checkpoint, language_model, mmproj) as files,
    ):
        found = side_by_side(
            opened,
            names,
            files,
            threads=[int(one) for one in threads.split(",")],
            rounds=rounds,
            tokens=tokens,
            progress=progress,
        )
    table = to_markdown(found)
    typer.echo(table, nl=False)
    out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    app()
