"""`mllm-export inspect`: the parts of a checkpoint, or why it cannot be taken."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import typer

from mllm_export.commands.arguments import CheckpointArgument, JsonOption, TowerOption
from mllm_export.records import record
from mllm_export.spec import DecoderSpec, ModelSpec

if TYPE_CHECKING:
    from rich.table import Table

    from mllm_export.export.family import Reading
    from mllm_export.weights import Dropped


@record
class Inspection:
    """What `inspect --json` prints."""

    model: ModelSpec
    parameters: dict[str, int]
    """By part: what the export uses."""
    image_tokens: int
    example_prompt: str
    dropped: dict[str, list[str]]
    """Reason to names of the checkpoint's tensors that are left out."""
    notes: tuple[str, ...]


def inspect(
    checkpoint: CheckpointArgument,
    vision_tower: TowerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the parts, parameter counts, prompt and left-over tensors of a checkpoint."""
    from mllm_export.commands.alone import inspect_alone, open_alone, refuse_options
    from mllm_export.commands.opening import open_checkpoint
    from mllm_export.export.family import cover, read_spec
    from mllm_export.records import to_json
    from mllm_export.terminal import stdout

    alone = open_alone(checkpoint)
    if alone is not None:
        refuse_options(checkpoint, vision_tower=bool(vision_tower))
        inspect_alone(alone, as_json)
        return
    opened = open_checkpoint(checkpoint, vision_tower)
    reading = read_spec(opened)
    found = _inspection(reading, cover(opened, reading))
    if as_json:
        typer.echo(to_json(found), nl=False)
        return
    console = stdout()
    console.print(_parts(found))
    console.print(f"Prompt ({found.model.prompt.name}): {found.example_prompt!r}", markup=False)
    for why, names in found.dropped.items():
        console.print(f"Left out: {len(names)} tensors such as {names[0]} ({why})", markup=False)
    for note in found.notes:
        console.print(f"Note: {note}", markup=False)
    console.print("Every tensor of the checkpoint is used or left out by a stated rule.")


def _inspection(reading: Reading, dropped: tuple[Dropped, ...]) -> Inspection:
    parameters = dict.fromkeys(("tower", "projector", "decoder"), 0)
    for take in reading.weights.takes:
        parameters[take.part] += prod(take.shape)
    for encoder in reading.spec.encoders:
        if encoder.name:
            inside = (t for t in reading.weights.takes if t.part == "tower")
            own = (prod(t.shape) for t in inside if t.parameter.startswith(f"{encoder.name}."))
            parameters[f"tower.{encoder.name}"] = sum(own)
    reasons: dict[str, list[str]] = {}
    for row in dropped:
        reasons.setdefault(row.why, []).append(row.source)
    return Inspection(
        model=reading.spec,
        parameters=parameters,
        image_tokens=reading.spec.image_tokens,
        example_prompt=reading.spec.prompt.text("What is shown?"),
        dropped=reasons,
        notes=reading.notes,
    )


def _parts(found: Inspection) -> Table:
    from rich.table import Table

    spec = found.model
    decoder = spec.decoder
    table = Table(title=f"{spec.name} ({spec.family})")
    for header in ("part", "kind", "parameters", "sizes"):
        table.add_column(header, justify="right" if header == "parameters" else "left")
    for encoder in spec.encoders:
        part = f"tower.{encoder.name}" if encoder.name else "tower"
        table.add_row(
            f"vision tower {encoder.name}".rstrip(),
            encoder.kind,
            f"{found.parameters[part]:,}",
            f"{encoder.image.size_px} px ({encoder.image.fit}), patch {encoder.patch_px}, "
            f"{encoder.run_layers} of {encoder.layers} layers, width {encoder.width}, "
            f"{encoder.tokens_out} tokens",
        )
    if spec.fusion is not None:
        sizes = f"width {spec.fusion.out_width}, {spec.fusion.tokens_out} tokens"
        table.add_row("fusion", spec.fusion.kind, "0", sizes)
    table.add_row(
        "projector",
        spec.projector.kind,
        f"{found.parameters['projector']:,}",
        f"{spec.projector.in_width} to {spec.projector.out_width}, "
        f"{spec.projector.tokens_in} to {spec.projector.tokens_out} tokens",
    )
    table.add_row(
        "decoder",
        decoder.kind,
        f"{found.parameters['decoder']:,}",
        f"{decoder.layers} layers, width {decoder.width}, {_mixing(decoder)}, "
        f"vocabulary {decoder.vocab}, context {decoder.context_tokens}",
    )
    return table


def _mixing(decoder: DecoderSpec) -> str:
    """How a decoder mixes tokens."""
    if decoder.state is None:
        return f"{decoder.heads} heads ({decoder.kv_heads} KV)"
    return f"no attention, {decoder.state.inner_width} x {decoder.state.state_size} states"
