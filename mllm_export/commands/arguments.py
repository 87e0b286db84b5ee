"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

CheckpointArgument = Annotated[
    str,
    typer.Argument(metavar="CKPT", help="A checkpoint's folder, 'reference' or 'reference-phi'."),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
TargetOption = Annotated[
    str,
    typer.Option("--target", metavar="T", help="A device: see 'list targets', or a .toml file."),
]
RecipeOption = Annotated[
    Optional[str],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
    typer.Option("--recipe", metavar="R", help="How to quantize; the target's own by default."),
]
TowerOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--vision-tower",
        metavar="[NAME=]DIR",
        help="Folder of the vision tower, or 'inside' for the copy in the checkpoint; NAME=DIR, "
        "more than once, for a model of several. By default where config.json says, or beside "
        "the checkpoint.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
EvaluationOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--evaluation",
        metavar="F",
        help="JSON lines of image, question, answers for the task rung. 'reference' has its own.",
    ),
]
CalibrationOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--calibration",
        metavar="DIR",
        help="Pictures with a questions.jsonl (image, question) to calibrate tower and decoder "
        "with; by default the set that this package brings, where the recipe calibrates.",
    ),
]
ImatrixOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="An importance matrix for the decoder, as llama-imatrix writes it, in place of one "
        "that the build gathers.",
    ),
]
BudgetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="Such as 900MiB, for weights, KV cache and activations together: schemes are then "
        "chosen by what each part loses, measured on the calibration set.",
    ),
]
MmprojOption = Annotated[
    bool,
    typer.Option(
        "--mmproj",
        help="Also write the tower for llama.cpp's own tools; left in only if it measures right.",
    ),
]
ProfileOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--profile",
        metavar="P",
        help="Limits: strict, default or lenient; those it was built for by default.",
    ),
]
DeviceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--device",
        metavar="D",
        help="local, qemu:CPU, ssh://user@host[:port] or adb:SERIAL.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="S", help="Seconds for one command on the device.", min=1),
]
DevicePythonOption = Annotated[
    str,
    typer.Option("--device-python", metavar="P", help="The device's Python; python3 by default."),
]
DeviceHomeOption = Annotated[
    str, typer.Option("--device-home", metavar="DIR", help="A folder on the device for our files.")
]
QUESTIONS = 100
QuestionsOption = Annotated[
    int,
    typer.Option(help="With --device and --evaluation: how many of them are asked.", min=1),
]
CostOption = Annotated[
    bool,
    typer.Option("--cost", help="Hold instruction counts on an emulated device against a record."),
]
CostRecordOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--cost-record", metavar="FILE", help="What it cost before; by default the target's own."
    ),
]
RecordCostOption = Annotated[
    bool, typer.Option("--record-cost", help="Write what was counted into --cost-record.")
]
AgainstOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--against", metavar="CKPT", help="The original; without it the golden outputs count."
    ),
]
ReportOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--report", metavar="DIR", help="Write report.html, .json, .md, .xml here."),
]
HistoryOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--history", metavar="FILE", help="Append this check to a target's history (JSON lines)."
    ),
]
WhenOption = Annotated[
    str, typer.Option("--when", metavar="T", help="Time to write there; the clock's unless given.")
]
PeersOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--peers",
        metavar="A,B",
        help="Engines that answer the same beside ours: llama.cpp, llama_bench, torch, openvino.",
    ),
]
PeerCheckpointOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--checkpoint", metavar="CKPT", help="With --peers torch: the original."),
]
LanguageModelOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--language-model",
        metavar="DIR",
        help="With --peers torch: the decoder alone as transformers reads it; by default copied "
        "out of --checkpoint.",
    ),
]
PeerMmprojOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--mmproj", metavar="FILE", help="With --peers llama.cpp; the bundle's own by default."
    ),
]
PageOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--report", metavar="FILE", help="Write an HTML page with table and plots."),
]
