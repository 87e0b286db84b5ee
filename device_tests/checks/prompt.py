"""Our template and tokenizer against the original's, id by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mllm_export.device_tests.cases import PromptCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.questions import PLAIN, WITH_SPECIAL
from mllm_export.report import Example, Measurement, Rung, rung_of

_SHOWN = 4
_AROUND = 6


class Prompt:
    """Whole prompts, the BOS, and what ends an answer."""

    measures = (
        "prompts with other ids",
        "questions with control tokens typed in, other ids",
        "questions with other control tokens",
        "prompts with another count of BOS",
        "stop rules that differ",
        "prompts that the file's chat template writes otherwise",
    )

    def run(self, context: Context) -> Rung:
        """Compare every case; ids must be equal."""
        oracle = context.oracle
        cases = oracle.prompt_cases()
        wrong: list[Example] = []
        wrong_bos = wrong_control = other_control = 0
        control = {oracle.bos_id, *oracle.stop_ids}
        for case in cases:
            ids = tuple(context.subject.session.encode(case.question, case.images))
            wrong_bos += ids.count(oracle.bos_id) != case.expected.count(oracle.bos_id)
            other_control += _only(control, ids) != _only(control, case.expected)
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
                measure("prompt", "questions with other control tokens", other_control),
                measure("prompt", "prompts with another count of BOS", wrong_bos),
                measure("prompt", "stop rules that differ", len(stops)),
                *_template(context),
            ),
            examples=tuple(wrong[:_SHOWN]),
        )


def _only(wanted: set[int], ids: Sequence[int]) -> list[int]:
    return [one for one in ids if one in wanted]


def _template(context: Context) -> Iterator[Measurement]:
    """The chat template that other programs take from the decoder's file, against our prompt.

    Our prompt's ids are held against the original's, so that this is too, but for the tokenizer.
    """
    template = context.stored.keys.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return
    spec = context.bundle.manifest.model.prompt
    wrong = sum(_rendered(template, text) != spec.text(text, 0) for text in PLAIN)
    yield context.limits.measure(
        "prompt", "prompts that the file's chat template writes otherwise", wrong
    )


def _rendered(template: str, question: str) -> str:
    """One user turn; the BOS is left to the tokenizer."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # As transformers and llama.cpp set it up for every template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turn = [{"role": "user", "content": question}]
    try:
        made = environment.from_string(template).render(
            messages=turn, add_generation_prompt=True, bos_token="", eos_token=""
        )
    except TemplateError as failure:
        return f"not to be rendered: {failure}"
    return made


def _shown(case: PromptCase, ids: tuple[int, ...]) -> Example:
    pairs = enumerate(zip(ids, case.expected, strict=False))
    shorter = min(len(ids), len(case.expected))
    at = next((n for n, (a, b) in pairs if a != b), shorter)
    around = slice(max(0, at - 2), at + _AROUND)
    return Example(
        name=repr(case.question),
        reference=f"... {list(case.expected[around])}",
        export=f"... {list(ids[around])}",
        note=f"{case.images} image{'' if case.images == 1 else 's'}; ids differ from place {at} on",
    )


CHECK = Prompt()
