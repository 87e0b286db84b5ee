"""Our template and tokenizer against the original's, id by id."""

from __future__ import annotations

from mllm_export.device_tests.cases import PromptCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.questions import WITH_SPECIAL
from mllm_export.report import Example, Rung, rung_of

_SHOWN = 4
_AROUND = 6


class Prompt:
    """Whole prompts, the BOS, and what ends an answer."""

    measures = (
        "prompts with other ids",
        "questions with control tokens typed in, other ids",
        "prompts with another count of BOS",
        "stop rules that differ",
    )

    def run(self, context: Context) -> Rung:
        """Compare every case; ids must be equal."""
        oracle = context.oracle
        cases = oracle.prompt_cases()
        wrong: list[Example] = []
        wrong_bos = wrong_control = 0
        for case in cases:
            ids = tuple(context.subject.session.encode(case.question, case.images))
            wrong_bos += ids.count(oracle.bos_id) != case.expected.count(oracle.bos_id)
            if ids != case.expected:
                wrong_control += case.question in WITH_SPECIAL
                wrong.append(_shown(case, ids))
        prompt = context.bundle.manifest.model.prompt
        stops = (set(prompt.stop_ids) ^ set(oracle.stop_ids)) | (
            set(prompt.stop_strings) ^ set(oracle.stop_strings)
        )
        measure = context.limits.measure
        return rung_of(
            "prompt",
            reference=oracle.title,
            samples=len(cases),
            measurements=(
                measure("prompt", "prompts with other ids", len(wrong) - wrong_control),
                measure(
                    "prompt", "questions with control tokens typed in, other ids", wrong_control
                ),
                measure("prompt", "prompts with another count of BOS", wrong_bos),
                measure("prompt", "stop rules that differ", len(stops)),
            ),
            examples=tuple(wrong[:_SHOWN]),
        )


def _shown(case: PromptCase, ids: tuple[int, ...]) -> Example:
    pairs = enumerate(zip(ids, case.expected, strict=False))
    shorter = min(len(ids), len(case.expected))
    at = next((n for n, (a, b) in pairs if a != b), shorter)
    around = slice(max(0, at - 2), at + _AROUND)
    return Example(
        name=repr(case.question),
        reference=f"... {list(case.expected[around])}",
        export=f"... {list(ids[around])}",
        note=f"{case.images} images; ids differ from place {at} on",
    )


CHECK = Prompt()
