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


def card(spec: ReferenceSpec, measured: Measured) -> str:
    """The text of `CARD.md`."""
    twin, plan, vision, decoder = TWINS[spec.twin], spec.schedule, spec.vision, spec.decoder
    answer, share = measured.most_common
    parts = _table(
        ("part", "parameters"), [(part, f"{n:,}") for part, n in measured.parameters.items()]
    )
    sizes = _table(
        ("files", "bytes"), [(name, f"{n:,}") for name, n in measured.size_bytes.items()]
    )
    stages = _table(
        ("stage", "wall time"),
        [(name, f"{s / 60:.1f} min") for name, s in measured.stage_s.items()],
    )
    tower_text = (
        f"CLIP ViT ({vision.image_px} px, patch {vision.patch_px}, width {vision.width}, "
        f"{vision.layers} layers, {vision.heads} heads, hidden state {vision.select_layer} "
        "selected)"
    )
    decoder_text = (
        f"{twin.decoder_title} decoder (width {decoder.width}, {decoder.layers} layers, "
        f"{decoder.heads} heads, MLP {decoder.mlp_width}, vocabulary {decoder.vocab})"
    )
    parts_text = "\n".join(
        (f"- {tower_text}", f"- Projector `{spec.projector}`, {spec.image_tokens} tokens",
         f"- {decoder_text}")
    )  # fmt: skip
    checkpoint = "" if spec.twin == DEFAULT_TWIN else " --checkpoint DIR/checkpoint"
    chosen = "" if spec.twin == DEFAULT_TWIN else f"--twin {spec.twin} "
    return f"""# Reference checkpoint

A small {twin.title}, trained from scratch to answer questions about drawn pictures: shapes in
seven colors and handwritten digits, on light backgrounds, at several aspect ratios. It exists to
measure what an export loses; it is of no other use. The files are laid out as the authors of
{twin.title} lay out theirs.

## Parts

{parts_text}

{twin.layout}

{parts}

{sizes}

## Scores

{measured.score.count} questions on held-out pictures, answered greedily in float32 arithmetic on
the stored values. An answer counts if it is the expected text exactly and ends with `{twin.eos}`.
Scenes and digits of this set were never trained on. The most common answer, "{answer}", would be
right for {100 * share:.1f} % of the questions.

{_scores(measured)}

## How it was made

    python -m mllm_export.export.reference.train {chosen}--out DIR --work DIR --seed {spec.seed}

1. {plan.pictures:,} pictures are drawn.
2. The tower trains {plan.tower_steps:,} steps of {plan.tower_batch} pictures on the label of
   every patch (object, color, place, centre). Its label heads are then thrown away, its weights
   rounded and frozen.
3. Projector and decoder train {plan.llm_steps:,} steps of {plan.llm_batch} pictures (of the first
   {plan.llm_pictures:,}), with {plan.llm_questions} questions on each, on the answers alone.

Two CPU cores, bfloat16 autocast; Muon for matrices, AdamW for the rest.

{stages}

Score it again:

    python -m mllm_export.export.reference.evaluate{checkpoint}

## Licence

Weights, pictures and questions: Apache-2.0. The digits are drawn from
{DIGITS}.
"""
