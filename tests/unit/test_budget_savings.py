"""Savings: a report that flatters, or is off by a cent, is one that nobody believes again."""

import pytest

from stepdown.budget.savings import Prices, Traffic, scenario_savings, total, traffic_savings
from stepdown.model.money import nusd_to_usd, usd_per_mtok_to_pusd

GPT_4O = Prices("GPT-4o", None, None, usd_per_mtok_to_pusd("10.00"))


@pytest.mark.parametrize(
    ("index", "name", "baseline", "cost"),
    [
        (0, "MVP", "50.00", "1.25"),
        (1, "Beta", "500.00", "12.50"),
        (2, "Launch", "5000.00", "125.00"),
        (3, "Growth", "50000.00", "1250.00"),
    ],
)
def test_the_quoted_table_to_the_cent(index: int, name: str, baseline: str, cost: str) -> None:
    """The table that people quote comes out as they quote it."""
    line = scenario_savings(usd_per_mtok_to_pusd("0.25"))[index]
    assert (line.name, nusd_to_usd(line.baseline_nusd), nusd_to_usd(line.cost_nusd)) == (name, baseline, cost)
    assert line.percent_text == "97.5"


def _row(**changes: int) -> Traffic:
    fields = {"requests": 10, "successes": 9, "input_tokens": 3_000_000, "cached_input_tokens": 0, "output_tokens": 1_000_000}
    return Traffic(route="shop/chat", model="qwen3-8b", cost_nusd=40_000_000, **{**fields, **changes})


def test_an_unknown_input_price_is_a_lower_bound_and_says_so() -> None:
    """Nobody is told a saving that rests on a price which was made up."""
    (seen,) = traffic_savings([_row()], GPT_4O)
    assert nusd_to_usd(seen.saving.baseline_nusd) == "10.00"
    assert seen.lower_bound and not seen.incomplete


def test_a_known_input_price_counts_every_token() -> None:
    """With all prices known the baseline is what the same tokens would have cost, cached ones included."""
    baseline = Prices("own", usd_per_mtok_to_pusd("2.50"), None, usd_per_mtok_to_pusd("10.00"))
    (seen,) = traffic_savings([_row(cached_input_tokens=1_000_000)], baseline)
    assert nusd_to_usd(seen.saving.baseline_nusd) == "20.00"
    assert not seen.lower_bound


def test_unpriced_traffic_is_marked() -> None:
    """A request of unknown cost is not shown as one that cost nothing."""
    (seen,) = traffic_savings([_row(unpriced=1)], GPT_4O)
    assert seen.incomplete


def test_a_dearer_model_shows_a_loss_and_nothing_divides_by_zero() -> None:
    """A model that costs more than the baseline is shown as a loss; a row without output has no share to show."""
    loss, empty = traffic_savings([_row(output_tokens=1_000), _row(output_tokens=0)], GPT_4O)
    assert loss.saving.saved_nusd == -30_000_000 and loss.saving.percent_text == "-300.0"
    assert empty.saving.percent_text == "–"
    assert total([loss, empty]).cost_nusd == 80_000_000


def test_cost_per_success() -> None:
    """Failures are paid by the successes: 4 cents over 9 successes, rounded up; none succeeded is not zero dollars."""
    one, none = traffic_savings([_row(), _row(successes=0)], GPT_4O)
    assert one.nusd_per_success == 4_444_445 and none.nusd_per_success is None
