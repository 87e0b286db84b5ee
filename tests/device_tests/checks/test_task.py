from __future__ import annotations

from dataclasses import replace

from parity_fakes import FakeSession, few_samples
from scripted import Saying, Scripted, knowing

from mllm_export.device_tests.check import CHECKS
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.samples import Samples
from mllm_export.device_tests.subject import Subject
from mllm_export.progress import silent


class Wrong(FakeSession):
    """Right on the first picture, wrong on every other."""

    def generate(self, prompt, images, *, max_tokens):
        right = self.first is None or (images and (images[0] == self.first).all())
        self.first = images[0] if self.first is None else self.first
        for step in super().generate(prompt, images, max_tokens=max_tokens):
            yield step if right else replace(step, token_id=(step.token_id + 9) % 512)

    first = None


def answered(make_context) -> Samples:
    """Questions whose known answers are what the original says."""
    samples = few_samples(4)
    context = make_context(samples=samples)
    cases = context.oracle.answer_cases(context.subject)
    questions = tuple(
        replace(c.question, answers=(context.oracle.text(c.greedy.ids).strip(),)) for c in cases
    )
    return replace(samples, questions=questions)


def test_without_known_answers_the_rung_says_so(make_context) -> None:
    rung = CHECKS["task"].run(make_context())
    assert rung.status == "not_run"
    assert "evaluation file" in rung.reason


def test_an_answer_that_did_not_end_is_not_right(make_context) -> None:
    """Random weights never stop: cut answers equal the known text and still do not count."""
    context = make_context(samples=answered(make_context))
    rung = CHECKS["task"].run(context)
    values = {m.name: m.value for m in rung.measurements}
    assert values["accuracy of the original"] == values["accuracy of the export"] == 0


def test_lost_answers_are_counted_and_shown(make_context, reference, monkeypatch) -> None:
    from mllm_export.device_tests.checks import task

    def right(context, case, ids, finished) -> bool:
        return context.oracle.text(ids).strip() in case.question.answers

    monkeypatch.setattr(task, "_right", right)
    samples = answered(make_context)
    passed = CHECKS["task"].run(make_context(samples=samples))
    assert passed.status == "passed"
    failed = CHECKS["task"].run(make_context(Wrong(reference), samples=samples))
    values = {m.name: m.value for m in failed.measurements}
    assert failed.status == "failed"
    assert values["accuracy of the original"] == 100
    assert values["accuracy of the export"] == 25
    assert values["accuracy lost"] == 75
    low, high = (values[f"difference, {end} end of 95 %"] for end in ("lower", "upper"))
    assert low <= -75 <= high
    assert len(failed.examples) == 3
    assert failed.examples[0].image.startswith("data:image/jpeg")


def test_a_large_model_that_answers_wrongly_fails(make_context, reference) -> None:
    """Its original is not asked to finish every answer, and must not count as wrong for that."""
    original = Scripted(reference, "red")
    context = make_context(samples=knowing("red"))
    oracle = LiveOracle(original, knowing("red"), 512, silent)
    assert not oracle.effort.goes_on
    for said, status, lost in (("red", "passed", 0), ("no", "failed", 100)):
        subject = Subject(Saying(reference, said))
        rung = CHECKS["task"].run(replace(context, oracle=oracle, subject=subject))
        values = {m.name: m.value for m in rung.measurements}
        assert (rung.status, values["accuracy lost"]) == (status, lost)
        assert values["accuracy of the original"] == 100
