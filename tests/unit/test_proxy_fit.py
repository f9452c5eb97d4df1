"""The worst case is never below what a request can cost, and the fit never serves what is dearer than what is hidden."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.config import Model, PriceFrom
from stepdown.model.money import cost_nusd
from stepdown.proxy.fit import candidates, output_tokens, worst_case_nusd
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.table import RungEntry
from tests.unit.proxy_money import model, shape

PRICES = st.integers(0, 3_500_000)
TOKENS = st.integers(0, 200_000)


def worst(rung: Model, wanted: RequestShape, route_max: int | None = None) -> tuple[int, int | None] | None:
    return worst_case_nusd(RungEntry(rung), wanted, route_max, 0.0, 100.0)


def test_a_request_is_rounded_up_once() -> None:
    """Rounding each part would drift from the bill; rounding down would pass the ceiling."""
    assert worst(model("m", 1, 1), shape(400, 601)) == (2, 601)
    assert worst(model("m", 1, 1), shape(400, 600)) == (1, 600)


def test_the_output_bound_is_the_smallest_that_anyone_states() -> None:
    """A client could ask for more than the route allows, or the route for more than the model gives."""
    capped = model("m", 0, 1_000, max_output_tokens=50)
    assert worst(capped, shape(0, 100), 80) == (50, 50)
    assert worst(capped, shape(0, 20), 80) == (20, 20)
    assert worst(capped, shape(0, None), 30) == (30, 30)
    assert worst(capped, shape(0, None)) == (50, 50)
    assert output_tokens(RungEntry(model("m")), shape(0, None), None) is None


def test_every_answer_is_paid_for() -> None:
    """`n: 8` would cost eight times its reservation."""
    assert worst(model("m", 1_000, 1_000), shape(10, 100, n=8)) == (810, 100)


def test_reasoning_comes_on_top_where_the_catalog_says_so() -> None:
    """A reasoning model would spend tokens that nobody reserved."""
    thinks = model("m", 0, 1_000, output_bound="MaxTokensPlusReasoning", reasoning_tokens=1_000)
    assert worst(thinks, shape(0, 100, n=2)) == (2_200, 100)


def test_a_model_that_ignores_its_bound_is_reserved_by_its_context() -> None:
    """`outputBound: Context` would be taken for a promise."""
    ignores = model("m", 0, 1_000, output_bound="Context", context_tokens=4_096)
    assert worst(ignores, shape(0, 100, n=2)) == (8_192, 100)
    assert worst(ignores, shape(0, None)) == (4_096, None)
    assert worst(model("m", output_bound="Context"), shape(0, 100)) is None


def test_what_is_not_text_counts_the_whole_context() -> None:
    """An image by URL is a few bytes here and thousands of tokens there."""
    sees = model("m", 1_000, 0, context_tokens=8_000)
    assert worst(sees, shape(10, 1, has_non_text=True)) == (8_000, 1)
    assert worst(sees, shape(9_000, 1, has_non_text=True)) == (9_000, 1)
    assert worst(model("m", 1_000, 0), shape(10, 1, has_non_text=True)) is None


@pytest.mark.parametrize(
    "unbounded",
    [model("m", prices=()), model("m", prices=(PriceFrom(200, 1, 1, 1),)), model("m", prices=(PriceFrom(50, 1, 1, 1),))],
)
def test_no_price_for_a_part_of_its_life_is_no_price(unbounded: Model) -> None:
    """A request would be reserved at nothing."""
    assert worst(unbounded, shape()) is None


def test_no_bound_on_output_is_no_worst_case() -> None:
    """A request without max_tokens could write for ever."""
    assert worst(model("m"), shape(10, None)) is None


@given(
    st.tuples(PRICES, PRICES, PRICES),
    TOKENS,
    TOKENS,
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(
    prices: tuple[int, int, int], input_bound: int, max_tokens: int, n: int, part: float, cached_part: float, out_part: float
) -> None:
    """Promise 1 rests on this inequality: also where cached input is dearer than fresh."""
    rung = model("m", prices[0], prices[2], cached_pusd=prices[1])
    reserved = worst(rung, shape(input_bound, max_tokens, n=n))
    assert reserved is not None
    used = int(input_bound * part)
    cached = int(used * cached_part)
    output = int(max_tokens * n * out_part)
    assert cost_nusd(used - cached, cached, output, *prices) <= reserved[0]


RUNGS = st.lists(st.tuples(PRICES, PRICES), min_size=1, max_size=6)


@given(RUNGS, st.integers(0, 5), st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_fit_goes_down_and_never_past_what_is_hidden(
    prices: list[tuple[int, int]], in_force: int, input_tokens: int, max_tokens: int
) -> None:
    """A step down that serves a dearer model would spend the budget faster for a worse answer."""
    in_force = min(in_force, len(prices) - 1)
    rungs = [RungEntry(model(f"m{index}", *each)) for index, each in enumerate(prices)]
    wanted = shape(input_tokens, max_tokens)
    costs = {rung.name: worst_case_nusd(rung, wanted, None, 0, 1) for rung in rungs}
    amounts = {name: cost[0] for name, cost in costs.items() if cost}
    hidden, visible = rungs[:in_force], rungs[in_force:]
    fits = candidates(visible, hidden, wanted, None, 0, 1)
    chosen = [fit.amount_nusd for fit in fits]
    assert chosen == sorted(set(chosen), reverse=True)
    assert chosen
    least_hidden = min((amounts[rung.name] for rung in hidden), default=None)
    cheapest = min(amounts[rung.name] for rung in visible)
    assert chosen[-1] == cheapest
    if least_hidden is not None and cheapest <= least_hidden:
        assert chosen[0] <= least_hidden
    if least_hidden is not None and cheapest > least_hidden:
        assert chosen == [cheapest]
    if least_hidden is None:
        assert fits[0].rung is visible[0]
    # For any sum that is left, the first candidate that fits is the first visible rung that fits and is not dearer than a
    # hidden one.
    for left in {*amounts.values()}:
        fitting = next((fit.rung.name for fit in fits if fit.amount_nusd <= left), None)
        allowed = [
            rung.name
            for rung in visible
            if amounts[rung.name] <= left and (least_hidden is None or amounts[rung.name] <= max(least_hidden, cheapest))
        ]
        if fitting is None:
            assert not allowed
        else:
            assert fitting in allowed
            assert amounts[allowed[0]] == amounts[fitting]


def test_a_rung_without_a_bound_is_passed_over() -> None:
    """An unpriced model on the ladder would refuse every request, though the next rung could answer."""
    rungs = [RungEntry(model("unpriced", prices=())), RungEntry(model("small"))]
    assert [fit.rung.name for fit in candidates(rungs, [], shape(), None, 0, 1)] == ["small"]
    assert candidates(rungs[:1], [], shape(), None, 0, 1) == []
