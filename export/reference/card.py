"""The model card of the shipped checkpoint, from what was measured."""

from dataclasses import dataclass

from mllm_export.export.reference.evaluate import Score
from mllm_export.export.reference.spec import ReferenceSpec
from mllm_export.export.reference.twin import DEFAULT_TWIN, TWINS

DIGITS = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning\n"
    "Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0), as shipped with scikit-learn"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the card reports."""

    parameters: dict[str, int]
    size_bytes: dict[str, int]
    stage_s: dict[str, float]
    score: Score
    blank: Score
    most_common: tuple[str, float]


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _scores(measured: Measured) -> str:
    kinds = measured.score.by_kind
    rows = [
        (kind, f"{100 * share:.1f} %", f"{100 * measured.blank.by_kind[kind]:.1f} %")
        for kind, share in kinds.items()
    ]
    total = (f"{100 * measured.score.exact:.1f} %", f"{100 * measured.blank.exact:.1f} %")
    return _table(("kind", "exact match", "blank picture"), [*rows, ("**all**", *total)])


def _parts(spec: ReferenceSpec) -> str:
    """What the model is made of, in a line each."""
    twin, vision, decoder = TWINS[spec.twin], spec.vision, spec.decoder
    return "\n".join(
        (
            f"- CLIP ViT ({vision.image_px} px, patch {vision.patch_px}, width {vision.width}, "
            f"{vision.layers} layers, {vision.heads} heads, hidden state {vision.select_layer} "
            "selected)",
            f"- Projector `{spec.projector}`, {spec.image_tokens} tokens",
            f"- {twin.decoder_title} decoder (width {decoder.width}, {decoder.layers} layers, "
            f"{decoder.heads} heads, MLP {decoder.mlp_width}, vocabulary {decoder.vocab})",
        )
    )


def _making(spec: ReferenceSpec) -> str:
    """The command, and what it does."""
    plan = spec.schedule
    chosen = "" if spec.twin == DEFAULT_TWIN else f"--twin {spec.twin} "
    return f"""\
    python -m mllm_export.export.reference.train {chosen}--out DIR --work DIR --seed {spec.seed}

1. {plan.pictures:,} pictures are drawn.
2. The tower trains {plan.tower_steps:,} steps of {plan.tower_batch} pictures on the label of
   every patch (object, color, place, centre). Its label heads are then thrown away, its weights
   rounded and frozen.
3. Projector and decoder train {plan.llm_steps:,} steps of {plan.llm_batch} pictures (of the first
   {plan.llm_pictures:,}), with {plan.llm_questions} questions on each, on the answers alone.

Two CPU cores, bfloat16 autocast; Muon for matrices, AdamW for the rest."""


def _counts(head: str, unit: str, numbers: dict[str, int]) -> str:
    return _table((head, unit), [(name, f"{n:,}") for name, n in numbers.items()])


def card(spec: ReferenceSpec, measured: Measured) -> str:
    """The text of `CARD.md`."""
    twin = TWINS[spec.twin]
    answer, share = measured.most_common
    stages = _table(
        ("stage", "wall time"),
        [(name, f"{s / 60:.1f} min") for name, s in measured.stage_s.items()],
    )
    checkpoint = "" if spec.twin == DEFAULT_TWIN else " --checkpoint DIR/checkpoint"
    return f"""# Reference checkpoint

A small {twin.title}, trained from scratch to answer questions about drawn pictures: shapes in
seven colors and handwritten digits, on light backgrounds, at several aspect ratios. It exists to
measure what an export loses; it is of no other use. The files are laid out as the authors of
{twin.title} lay out theirs.

## Parts

{_parts(spec)}

{twin.layout}

{_counts("part", "parameters", measured.parameters)}

{_counts("files", "bytes", measured.size_bytes)}

## Scores

{measured.score.count} questions on held-out pictures, answered greedily in float32 arithmetic on
the stored values. An answer counts if it is the expected text exactly and ends with `{twin.eos}`.
Scenes and digits of this set were never trained on. The most common answer, "{answer}", would be
right for {100 * share:.1f} % of the questions.

{_scores(measured)}

## How it was made

{_making(spec)}

{stages}

Score it again:

    python -m mllm_export.export.reference.evaluate{checkpoint}

## Licence

Weights, pictures and questions: Apache-2.0. The digits are drawn from
{DIGITS}.
"""
