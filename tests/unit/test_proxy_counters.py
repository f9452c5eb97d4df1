"""Counters only grow, are said until they are heard, and are bounded in memory."""

from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.sync import Counter
from stepdown.proxy.counters import Counters


def one(day: int = 1, requests: int = 1, cost_nusd: int = 5, model: str = "m") -> Counter:
    return Counter(
        route="ns/r", model=model, request_class="default", day=day, requests=requests, successes=requests, cost_nusd=cost_nusd
    )


def test_what_has_grown_since_it_was_sent_is_sent_again() -> None:
    """A request that ends while a report is on its way would never be reported."""
    counters = Counters([one()])
    sent = counters.reports()
    counters.add(one())
    counters.acknowledge(sent)
    (again,) = counters.reports()
    assert (again.requests, again.cost_nusd) == (2, 10)
    counters.acknowledge((again,))
    assert counters.reports() == ()


def test_what_was_only_looked_at_is_not_reported() -> None:
    """Every rung of ten thousand routes would be a row of the ledger, of nothing, for every day."""
    counters = Counters([one(model="taken")])
    counters.get(("ns/r", "looked-at", "default", 1))
    assert [each.model for each in counters.reports(everything=True)] == ["taken"]


def test_an_old_day_is_let_go_only_when_it_has_been_heard() -> None:
    """A month of days times ten thousand routes would fill the proxy's memory; a day let go unheard would be lost."""
    counters = Counters([one(day=1), one(day=9)])
    counters.forget_before(5)
    assert len(counters) == 2
    counters.acknowledge(counters.reports())
    counters.forget_before(5)
    assert [count.day for count in counters] == [9]


def test_totals_do_not_go_down_when_a_day_is_let_go() -> None:
    """A monitoring system would see a restart where there was none."""
    counters = Counters([one(day=1), one(day=9), one(day=9, model="n")])
    counters.acknowledge(counters.reports())
    before = [(count.model, count.requests, count.cost_nusd) for count in counters.totals()]
    counters.forget_before(100)
    assert len(counters) == 0
    assert [(count.model, count.requests, count.cost_nusd) for count in counters.totals()] == before
    assert before == [("m", 2, 10), ("n", 1, 5)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans()), max_size=40))
def test_heard_and_unheard_together_are_everything(steps: list[tuple[int, int, bool]]) -> None:
    """A fenced instance hands on what was not heard: no more, or it is counted twice; no less, or it is lost."""
    counters, heard = Counters(), {}
    for day, cost_nusd, acknowledged in steps:
        counters.add(one(day=day, cost_nusd=cost_nusd))
        if acknowledged:
            for report in counters.reports():
                heard[report.day] = report.cost_nusd
            counters.acknowledge(counters.reports())
    unheard = {report.day: report.cost_nusd for report in counters.unacknowledged()}
    for count in counters:
        assert heard.get(count.day, 0) + unheard.get(count.day, 0) == count.cost_nusd
