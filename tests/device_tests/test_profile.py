from __future__ import annotations

import pytest

from mllm_export.device_tests.check import CHECKS
from mllm_export.device_tests.limit import Limit, Values
from mllm_export.device_tests.parity import measures_of
from mllm_export.device_tests.profile import Limits, Profile, load_profile, profile_names
from mllm_export.errors import CheckError
from mllm_export.quantize.layout import LAYOUTS


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_limits_what_is_measured_and_says_why(name: str) -> None:
    profile = load_profile(name)
    for limit in profile.limits:
        assert limit.measurement in measures_of(limit.rung)
        assert len(limit.reason) > 20


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_knows_every_layout(name: str) -> None:
    profile = load_profile(name)
    for layout in LAYOUTS.names():
        if layout not in {"F32", "F16", "BF16"}:
            assert profile.scheme(layout).sqnr_db > 0


@pytest.mark.parametrize("rung", CHECKS.names())
@pytest.mark.parametrize("kind", ["f16", "int8", "int4", "int2"])
@pytest.mark.parametrize("trained", [True, False])
def test_every_rung_has_a_limit_for_every_kind(rung: str, kind, trained: bool) -> None:
    """A rung without one would fail, for it would have checked nothing."""
    if rung == "task" and not trained:
        return  # not run without known answers
    limits = [one for one in load_profile("default").limits if one.rung == rung]
    assert any(one.value(kind, trained) is not None for one in limits)


def profile_of(*limits: Limit) -> Profile:
    return Profile(name="p", description="", limits=limits, schemes=())


LIMIT = Limit(
    rung="logits",
    measurement="mean KL",
    sense="at_most",
    values=Values(every=0.5, f16=0.1),
    untrained=Values(f16=0.2),
    reason="a reason",
)


def test_a_measurement_carries_its_limit_and_where_it_comes_from() -> None:
    found = Limits(profile_of(LIMIT), "f16", "f16", True).measure("logits", "mean KL", 0.3, "nats")
    assert (found.limit, found.passed) == (0.1, False)
    assert found.limit_from == "profile p, f16: a reason"


def test_kinds_that_are_not_named_share_a_value() -> None:
    found = Limits(profile_of(LIMIT), "int4", "int8", True).measure("logits", "mean KL", 0.3)
    assert (found.limit, found.passed) == (0.5, True)


def test_models_without_known_answers_have_limits_of_their_own() -> None:
    limits = Limits(profile_of(LIMIT), "f16", "f16", False)
    assert limits.measure("logits", "mean KL", 0.15).limit == 0.2
    limits = Limits(profile_of(LIMIT), "int4", "int8", False)
    assert limits.measure("logits", "mean KL", 0.15).passed is None


def test_a_value_that_is_no_number_is_never_measured() -> None:
    limits = Limits(profile_of(LIMIT), "f16", "f16", True)
    with pytest.raises(FloatingPointError, match="mean KL is nan"):
        limits.measure("logits", "mean KL", float("nan"))


def test_an_unknown_profile_scheme_or_rung_is_named() -> None:
    with pytest.raises(CheckError, match="unknown profile 'defualt'; did you mean default"):
        load_profile("defualt")
    with pytest.raises(CheckError, match="profile 'p': unknown scheme 'Q4_0'"):
        profile_of().scheme("Q4_0")
    with pytest.raises(CheckError, match="unknown rung 'logit'; did you mean logits"):
        Limit(rung="logit", measurement="x", sense="at_most", values=Values(), reason="why")
    with pytest.raises(CheckError, match="limit on logits, 'x' has no reason"):
        Limit(rung="logits", measurement="x", sense="at_most", values=Values(), reason=" ")


def test_a_looser_profile_lies_further_from_what_nothing_lost_would_give() -> None:
    strict, default, lenient = (load_profile(n) for n in ("strict", "default", "lenient"))

    def limit(profile: Profile, rung: str, name: str, kind) -> float:
        (found,) = [o for o in profile.limits if (o.rung, o.measurement) == (rung, name)]
        value = found.value(kind, True)
        assert value is not None
        return value

    kl = [limit(p, "logits", "mean KL", "int4") for p in (strict, default, lenient)]
    assert kl == pytest.approx([0.1, 0.2, 0.4])
    same = [limit(p, "logits", "top-1 agreement", "int4") for p in (strict, default, lenient)]
    assert same == pytest.approx([0.965, 0.93, 0.86])
    words = [limit(p, "logits", "perplexity ratio", "int4") for p in (strict, default, lenient)]
    assert words == pytest.approx([1.125, 1.25, 1.5])
    exact = [limit(p, "prompt", "prompts with other ids", "f16") for p in (strict, lenient)]
    assert exact == [0, 0]
    assert "default's distance" in strict.limits[0].reason


@pytest.mark.parametrize("name", profile_names())
def test_no_profile_lets_an_ignored_picture_pass(name: str) -> None:
    for one in load_profile(name).limits:
        if one.rung == "controls":
            for kind in ("f16", "int8", "int4", "int2"):
                assert min(one.value(kind, True), one.value(kind, False)) > 0


@pytest.mark.parametrize("scheme", ["IQ3_S", "TQ1_0", "Q8_1", "w4g64-new", "w8a8-later"])
def test_a_scheme_without_an_entry_is_judged_by_its_bits(scheme: str) -> None:
    profile = load_profile("default")
    if scheme == "TQ1_0":
        with pytest.raises(CheckError, match="unknown scheme 'TQ1_0'"):
            profile.scheme(scheme)
    else:
        assert "bits" in profile.scheme(scheme).reason
