"""Verdicts and forecasts: a step taken late spends money that was meant to be kept; one forgotten relaxes a budget."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.budget.forecast import forecast
from stepdown.budget.months import Period
from stepdown.budget.verdict import Step, Terms, judge, percent, strictest
from stepdown.model.config import TIERS

STEPS = (Step(50, "Notify"), Step(80, "StepDown", "MidRange"), Step(95, "StepDown", "UltraBudget"))
NOVEMBER = Period("2026-11", 1_793_491_200, 1_796_083_200)
USD = 1_000_000_000

steps = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from([None, *TIERS])), max_size=5, unique_by=lambda each: each[0]
).map(
    lambda each: tuple(
        Step(at, "Notify" if tier is None else "StepDown", tier) for at, tier in sorted(each, key=lambda pair: pair[0])
    )
)
shares = st.fractions(0, 2)


@pytest.mark.parametrize(
    ("used", "state", "tier"),
    [
        (Fraction(0), "Within", None),
        (Fraction(1, 2), "Within", None),
        (Fraction(799_999_999_999, 10**12), "Within", None),
        (Fraction(8, 10), "Stepped", "MidRange"),
        (Fraction(95, 100), "Stepped", "UltraBudget"),
        (Fraction(1), "Exhausted", "UltraBudget"),
        (Fraction(3, 2), "Exhausted", "UltraBudget"),
    ],
)
def test_the_default_steps(used: Fraction, state: str, tier: str | None) -> None:
    """80 % means 80 %: exactly there the step is in force, a millionth of a millionth before it is not."""
    verdict = judge(STEPS, used)
    assert (verdict.state, verdict.max_tier) == (state, tier)


@given(steps, shares, shares)
def test_more_spend_never_relaxes(each: tuple[Step, ...], one: Fraction, other: Fraction) -> None:
    """A route never goes back up because its budget spent more: not even past a later, weaker step or a Notify."""
    low, high = sorted((one, other))
    before, after = judge(each, low).max_tier, judge(each, high).max_tier
    assert strictest((before, after)) == after


def test_a_notify_after_a_step_down_keeps_it() -> None:
    """A reminder at 90 % must not undo the step at 80 %."""
    verdict = judge((Step(80, "StepDown", "Budget"), Step(90, "Notify")), Fraction(91, 100))
    assert (verdict.state, verdict.max_tier, verdict.step) == ("Stepped", "Budget", Step(90, "Notify"))


def test_an_override_ends_at_its_second() -> None:
    """Extra money is there until `until` and not a second longer."""
    terms = Terms(500 * USD, "UTC", STEPS, True, False, 100 * USD, 1_000)
    assert terms.limit_nusd(999.999) == 600 * USD
    assert terms.limit_nusd(1_000) == 500 * USD
    assert terms.next_limit_change_s(999) == 1_000 and terms.next_limit_change_s(1_000) is None


def test_percent_rounds_down() -> None:
    """99.96 % used is not shown as 100: a person would look for refusals that are not there."""
    assert percent(Fraction(9996, 10_000)) == "99.9"
    assert percent(Fraction(1)) == "100.0"


def test_half_a_month_at_half_the_limit() -> None:
    """A steady spend is forecast to end where the straight line ends."""
    half_s = (NOVEMBER.start_s + NOVEMBER.end_s) // 2
    seen = forecast(NOVEMBER, 250 * USD, 500 * USD, half_s)
    assert seen.month_end_nusd == 500 * USD and not seen.over(500 * USD) and seen.exhausted_at_s is None
    assert forecast(NOVEMBER, 300 * USD, 500 * USD, half_s).exhausted_at_s == NOVEMBER.start_s + 25 * 86_400


def test_a_burst_in_the_first_hour_is_damped() -> None:
    """One dollar in the first hour is not a forecast of 720 dollars."""
    seen = forecast(NOVEMBER, USD, 500 * USD, NOVEMBER.start_s + 3600)
    assert seen.month_end_nusd < 31 * USD


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.integers(0, NOVEMBER.end_s - NOVEMBER.start_s - 1))
def test_a_forecast_never_undoes_what_is_spent(spent: int, limit: int, after_s: int) -> None:
    """The month never ends below what it has cost already, and an exhaustion lies ahead, inside the period."""
    now_s = NOVEMBER.start_s + after_s
    seen = forecast(NOVEMBER, spent, limit, now_s)
    assert seen.month_end_nusd >= spent
    if seen.exhausted_at_s is not None:
        assert spent < limit <= seen.month_end_nusd + 1
        assert now_s - 3600 < seen.exhausted_at_s < NOVEMBER.end_s
    assert forecast(NOVEMBER, spent, limit, now_s) == seen
