"""What the logits rung shows of the rows that are furthest off."""

import re

from mllm_export.device_tests.check import CHECKS


def test_the_furthest_row_names_the_likeliest_token_of_both(make_context) -> None:
    rung = CHECKS["logits"].run(make_context())
    assert rung.examples
    for one in rung.examples:
        for side in (one.reference, one.export):
            assert re.fullmatch(r"(?:'.+', )?id \d+", side), side
        assert re.match(r"likeliest next in row \d+: KL [\d.e-]+ nats", one.note)


def test_a_decoder_whose_favourite_is_another_shows_both(make_context, monkeypatch) -> None:
    from mllm_export.device_tests.subject import Subject

    plain = Subject.rows
    monkeypatch.setattr(Subject, "rows", lambda *asked: -plain(*asked))
    rung = CHECKS["logits"].run(make_context())
    assert all(one.reference != one.export for one in rung.examples)
