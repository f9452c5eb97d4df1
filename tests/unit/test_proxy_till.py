"""Admission and settlement without a keeper: what one proxy does with the money that it has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepdown.model.config import Ladder, Parameters, PriceFrom, account_id, shard_of
from stepdown.proxy import wal
from stepdown.proxy.hold import Hold, Usage
from stepdown.proxy.lease import Lease
from stepdown.proxy.refusal import Refused
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.table import Table
from stepdown.proxy.till import Till
from stepdown.proxy.waiting import Wish
from tests.unit.proxy_money import (
    BIG,
    EDGE_S,
    END_S,
    MID,
    MODELS,
    NOW_S,
    SMALL,
    START_S,
    TEAM,
    TEAM_NEXT,
    Hands,
    budget,
    model,
    only,
    open_till,
    route,
    shape,
    shards,
    table,
)

HELD: list[Till] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while HELD:
        HELD.pop().state.close(finished=False)


def till_of(path: Path, config: Table | None = None, granted: int = 1_000, **more: Hands) -> Till:
    till = open_till(path, config or table(), granted={TEAM: granted}, **more)
    HELD.append(till)
    return till


def admit(till: Till, name: str = "shop/chat", wanted: RequestShape | None = None, **more: object) -> Hold | None:
    request_class = more.pop("request_class", "default")
    return till.admit(only(till, name), request_class, wanted or shape(), **more)  # type: ignore[arg-type]


def lease(till: Till, account: str = TEAM) -> Lease:
    return till.books.lease(account)


def test_a_request_reserves_its_worst_case_and_pays_its_usage(tmp_path: Path) -> None:
    """The whole of promise 1 in one request."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    assert (hold.rung.name, hold.reason, hold.amount_nusd, hold.max_tokens) == ("big", "Wanted", BIG, 10)
    assert (lease(till).free, lease(till).reserved) == (1_000 - BIG, BIG)
    assert till.settle(hold, Usage(4, 3, 2), success=True) == 27
    assert (lease(till).free, lease(till).reserved, lease(till).consumed, lease(till).estimated) == (973, 0, 27, 0)
    (counter,) = till.books.counters.reports()
    assert (counter.route, counter.model, counter.request_class, counter.day) == (
        "shop/chat",
        "big",
        "default",
        int(NOW_S) // 86_400,
    )
    assert (counter.requests, counter.successes, counter.cost_nusd, counter.estimated_nusd) == (1, 1, 27, 0)
    assert (counter.input_tokens, counter.cached_input_tokens, counter.output_tokens) == (4, 3, 2)


def test_the_reservation_is_in_the_log_before_the_hold_is_handed_out(tmp_path: Path) -> None:
    """A kill after forwarding would lose a request that the upstream bills."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    assert wal.read(tmp_path / "log", till.log.identity).open[hold.id].amount_nusd == BIG
    till.settle(hold, Usage(1, 0, 0), success=True)
    restored = wal.read(tmp_path / "log", till.log.identity)
    assert (restored.open, restored.lease(TEAM).consumed) == ({}, 1)


def test_what_does_not_fit_must_ask(tmp_path: Path) -> None:
    """A lower rung from the own lease would be served while the ledger still has money for the wanted one."""
    till = till_of(tmp_path, granted=BIG - 1)
    assert admit(till) is None
    assert lease(till).free == BIG - 1


def test_ending_twice_pays_once(tmp_path: Path) -> None:
    """A cut and a late usage would be charged both."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    assert till.settle(hold, Usage(5, 0, 0), success=True) == 5
    assert till.settle(hold, None, success=False) == 5
    till.release(hold, attempted=True)
    assert (lease(till).consumed, lease(till).reserved) == (5, 0)
    assert till.books.counters.reports()[0].requests == 1


def test_missing_usage_is_charged_at_the_reservation_and_labelled(tmp_path: Path) -> None:
    """A cut stream would be free, or an estimate be taken for a fact."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    assert till.settle(hold, None, success=False) == BIG
    assert (lease(till).consumed, lease(till).estimated) == (BIG, BIG)
    (counter,) = till.books.counters.reports()
    assert (counter.requests, counter.successes, counter.cost_nusd, counter.estimated_nusd) == (1, 0, BIG, BIG)


@pytest.mark.parametrize("attempted", [True, False])
def test_what_never_ran_costs_nothing(tmp_path: Path, attempted: bool) -> None:
    """Each refused connection would leak its reservation: a budget of phantoms."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    till.release(hold, attempted=attempted)
    assert (lease(till).free, lease(till).consumed, lease(till).reserved) == (1_000, 0, 0)
    assert [each.requests for each in till.books.counters.reports()] == ([1] if attempted else [])
    assert not till.books.open


def test_an_upstream_that_takes_more_than_allowed_is_charged_in_full(tmp_path: Path) -> None:
    """A clipped cost would make the ledger smaller than the bill, without a trace."""
    till = till_of(tmp_path, granted=BIG)
    hold = admit(till)
    assert hold is not None
    assert till.settle(hold, Usage(0, 0, 50), success=True) == 500
    assert (lease(till).consumed, lease(till).free, lease(till).reserved) == (500, BIG - 500, 0)
    assert till.excess_nusd == 500 - BIG
    assert admit(till) is None


@pytest.mark.parametrize(
    "usage", [Usage(-1, 0, 0), Usage(0, 0, 1 << 70), Usage(1 << 41, 0, 0), Usage(5, -10, 5), Usage(1 << 64, -(1 << 64), 0)]
)
def test_rubbish_usage_is_no_usage(tmp_path: Path, usage: Usage) -> None:
    """One absurd answer would overflow the ledger, or refund money."""
    till = till_of(tmp_path)
    hold = admit(till)
    assert hold is not None
    assert till.settle(hold, usage, success=True) == BIG
    assert (lease(till).consumed, lease(till).estimated) == (BIG, BIG)
    assert till.books.counters.reports()[0].input_tokens == 0


def test_every_budget_of_a_route_is_charged(tmp_path: Path) -> None:
    """A team under a small budget could spend the whole company's."""
    config = table(
        [route(budgets=("shop/team", "ops/all"))], budgets=[budget(), budget("ops/all"), budget("ops/watch", hard=False)]
    )
    till = till_of(tmp_path, config)
    company = account_id("ops/all", START_S)
    assert admit(till) is None
    assert lease(till).free == 1_000, "a reservation in one budget only"
    till.log.grant(company, 300)
    lease(till, company).grant(300)
    hold = admit(till)
    assert hold is not None
    assert (lease(till).free, lease(till, company).free) == (1_000 - BIG, 300 - BIG)
    till.settle(hold, Usage(0, 0, 1), success=True)
    assert (lease(till).consumed, lease(till, company).consumed) == (10, 10)


def test_a_soft_budget_is_charged_and_never_asked(tmp_path: Path) -> None:
    """Soft: steps and alerts, never refuses; and its spend must be known all the same."""
    till = till_of(tmp_path, table(budgets=[budget(hard=False)]), granted=0)
    hold = admit(till)
    assert hold is not None
    till.settle(hold, Usage(0, 0, 3), success=True)
    assert lease(till).consumed == 30
    assert lease(till).report().want == 0


def test_a_route_without_a_budget_is_served_and_counted(tmp_path: Path) -> None:
    """Traffic outside any budget would be invisible in reports."""
    till = till_of(tmp_path, table([route(budgets=())]), granted=0)
    hold = admit(till)
    assert hold is not None
    till.settle(hold, Usage(1, 0, 0), success=True)
    assert till.books.counters.reports()[0].cost_nusd == 1


def test_without_a_bound_a_hard_budget_refuses_and_others_serve(tmp_path: Path) -> None:
    """Hard: nothing may run whose cost nobody can bound. Elsewhere that is no reason to refuse."""
    unpriced = [model("big", prices=()), MODELS[1], MODELS[2]]
    config = table([route(rungs=["big"]), route("shop/free", ["big"], budgets=())], models=unpriced)
    till = till_of(tmp_path, config)
    with pytest.raises(Refused) as refused:
        admit(till)
    assert refused.value.code == "unbounded_request"
    assert "max_tokens" in refused.value.message
    hold = admit(till, "shop/free", shape(10, 7))
    assert hold is not None
    assert (hold.amount_nusd, hold.max_tokens) == (0, 7)
    assert till.settle(hold, Usage(5, 0, 5), success=True) == 0
    assert till.books.counters.reports()[0].unpriced == 1
    assert till.refusals == {"unbounded_request": 1}


@pytest.mark.parametrize("max_tokens", [None, 1 << 60])
def test_an_unbudgeted_request_without_any_bound_is_still_served_by_the_wanted_rung(
    tmp_path: Path, max_tokens: int | None
) -> None:
    """The fit must not step down a route that has nothing to save."""
    till = till_of(tmp_path, table([route(budgets=())], models=[MODELS[0], model("mid", max_output_tokens=9), MODELS[2]]))
    hold = admit(till, wanted=shape(10, max_tokens))
    assert hold is not None
    assert (hold.rung.name, hold.max_tokens) == ("big", max_tokens)
    assert till.settle(hold, None, success=True) <= 10**15


def test_a_sum_beyond_reason_is_no_bound(tmp_path: Path) -> None:
    """`max_tokens: 10^18` must not overflow the log or be asked of the ledger."""
    till = till_of(tmp_path)
    end(till, admit(till))
    assert admit(till, wanted=shape(10, 10**16)) is None, (
        "the lease does not hold it, and the small rung's bound is not known yet"
    )
    for max_tokens in (10**16, 10**18):
        with pytest.raises(Refused) as refused:
            till.offers(Wish(only(till), "default", shape(10, max_tokens), None, None), NOW_S)
        assert refused.value.code == "unbounded_request"


def test_a_rung_that_cannot_be_bounded_is_passed_over_with_a_reason(tmp_path: Path) -> None:
    """The header would say Wanted for a model that nobody wanted."""
    till = till_of(tmp_path, table(models=[model("big", prices=()), MODELS[1], MODELS[2]]))
    hold = admit(till)
    assert hold is not None
    assert (hold.rung.name, hold.reason) == ("mid", "BudgetFit")


def test_a_step_in_force_hides_the_rungs_above(tmp_path: Path) -> None:
    """The budget's step would change the status only."""
    till = till_of(tmp_path, table([route(in_force=1)]))
    hold = admit(till)
    assert hold is not None
    assert (hold.rung.name, hold.reason, hold.amount_nusd) == ("mid", "StepInForce", MID)


def test_a_step_down_never_serves_what_is_dearer_for_this_request(tmp_path: Path) -> None:
    """A lower tier with dear input (Hunyuan-Lite) would cost more than the hidden model for a long prompt."""
    models = [model("big", 1_000, 2_000), model("mid", 9_000, 1_000), model("small", 1_500, 1_000)]
    till = till_of(tmp_path, table([route(in_force=1)], models=models))
    long_prompt, short_prompt = admit(till, wanted=shape(10, 20)), admit(till, wanted=shape(1, 20))
    assert long_prompt is not None
    assert short_prompt is not None
    assert (long_prompt.rung.name, long_prompt.reason) == ("small", "StepInForce")
    assert (short_prompt.rung.name, short_prompt.reason) == ("mid", "StepInForce")


def test_an_outages_fallbacks_come_with_their_reason(tmp_path: Path) -> None:
    """The header would not say that there is an outage."""
    config = table([route(more={"default": Ladder(rungs=("big", "mid"), fallbacks=("small",))})])
    till = till_of(tmp_path, config)
    fallbacks = only(till).ladders["default"].fallbacks
    hold = admit(till, rungs=fallbacks, reason="Outage")
    assert hold is not None
    assert (hold.rung.name, hold.reason, hold.amount_nusd) == ("small", "Outage", SMALL)


# Time -------------------------------------------------------------------------------------------------------------------------


def test_a_request_is_charged_to_the_period_in_which_it_was_admitted(tmp_path: Path) -> None:
    """A stream over midnight would be split, or move last month's bill into this month's budget."""
    hands = Hands()
    till = till_of(tmp_path, hands=hands)
    till.log.grant(TEAM_NEXT, 500)
    lease(till, TEAM_NEXT).grant(500)
    till.deadline_s = 1e12
    hands.boot_s += EDGE_S - NOW_S - 0.5
    before = admit(till)
    hands.boot_s += 0.5
    after = admit(till)
    assert before is not None
    assert after is not None
    assert (lease(till).reserved, lease(till, TEAM_NEXT).reserved) == (BIG, BIG)
    assert after.day == before.day + 1
    till.settle(before, Usage(0, 0, 1), success=True)
    assert (lease(till).consumed, lease(till, TEAM_NEXT).consumed) == (10, 0)


def test_the_ledgers_time_may_turn_out_to_be_a_little_earlier(tmp_path: Path) -> None:
    """A second after the month's end is a second before it once the ledger is heard: next month's budget is not charged."""
    hands = Hands()
    till = till_of(tmp_path, hands=hands)
    till.log.grant(TEAM_NEXT, 500)
    lease(till, TEAM_NEXT).grant(500)
    till.deadline_s = 1e12
    hands.boot_s += EDGE_S - NOW_S + 1
    after = admit(till)
    assert after is not None
    till.release(after, attempted=False)
    till.clock.offset_s -= 2
    before = admit(till)
    assert before is not None
    assert (lease(till).reserved, lease(till, TEAM_NEXT).reserved) == (BIG, 0)
    assert before.day == after.day - 1


def test_another_day_is_another_counter(tmp_path: Path) -> None:
    """A budget created in mid-month opens with its routes' spend by day."""
    hands = Hands()
    till = till_of(tmp_path, table([route(budgets=())]), hands=hands)
    for _ in range(2):
        hold = admit(till)
        assert hold is not None
        till.settle(hold, Usage(1, 0, 0), success=True)
        hands.boot_s += 86_400
    days = sorted(each.day for each in till.books.counters.reports())
    assert days == [int(NOW_S) // 86_400, int(NOW_S) // 86_400 + 1]


def test_no_account_for_the_present_is_a_refusal(tmp_path: Path) -> None:
    """A proxy with a config of the year before would spend without any account."""
    hands = Hands()
    till = till_of(tmp_path, hands=hands)
    till.deadline_s = 1e12
    hands.boot_s += END_S - NOW_S
    with pytest.raises(Refused) as refused:
        admit(till)
    assert (refused.value.code, refused.value.budget) == ("ledger_unreachable", "shop/team")


def test_a_dead_lease_is_not_spent_from(tmp_path: Path) -> None:
    """The keeper gives a dead lease's money to others."""
    hands = Hands()
    till = till_of(tmp_path, hands=hands)
    hands.boot_s = till.deadline_s
    hold = admit(till)
    assert hold is not None
    hands.boot_s = till.deadline_s + 0.001
    assert admit(till) is None
    assert till.settle(hold, Usage(0, 0, 1), success=True) == 10


def test_a_price_that_changes_while_the_request_runs_is_reserved_and_charged_at_the_dearer(tmp_path: Path) -> None:
    """A price rise in the middle of a long stream would pass the ceiling."""
    rises_s = int(NOW_S) + 20
    rising = model("big", prices=(PriceFrom(0, 1_000, 1_000, 1_000), PriceFrom(rises_s, 1_000, 1_000, 9_000)))
    till = till_of(tmp_path, table([route(rungs=["big"])], models=[rising]))
    hold = admit(till)
    assert hold is not None
    assert hold.amount_nusd == 100
    assert till.settle(hold, Usage(0, 0, 1), success=True) == 9


# Config -----------------------------------------------------------------------------------------------------------------------


def test_an_admission_obeys_the_config_in_force_whatever_route_it_holds(tmp_path: Path) -> None:
    """The operator is told that a new budget is in force; a request that was parsed before must not slip past it."""
    till = till_of(tmp_path, table([route(budgets=())]))
    old = only(till)
    assert till.table is not None
    till.swap(till.table.replace(None, shards([route()])))
    hold = till.admit(old, "default", shape())
    assert hold is not None
    assert lease(till).reserved == BIG
    assert hold.route is only(till)


def test_old_fallbacks_are_looked_up_in_the_new_config(tmp_path: Path) -> None:
    """A fallback that an edit has removed would be served for the rest of the request's life."""
    config = table([route(more={"default": Ladder(rungs=("big",), fallbacks=("mid", "small"))})])
    till = till_of(tmp_path, config)
    old = only(till)
    assert till.table is not None
    edited = route(more={"default": Ladder(rungs=("big",), fallbacks=("small",))})
    till.swap(till.table.replace(None, shards([edited])))
    hold = till.admit(old, "default", shape(), rungs=old.ladders["default"].fallbacks, reason="Outage")
    assert hold is not None
    assert hold.rung.name == "small"


def test_a_deleted_route_admits_nothing_more(tmp_path: Path) -> None:
    """It has no budget any more that could bound it."""
    till = till_of(tmp_path)
    old = only(till)
    assert till.table is not None
    gone = shards([route("shop/other")])
    empty = type(next(iter(gone.values())))(index=shard_of("shop/chat"))
    till.swap(till.table.replace(None, {empty.index: empty}))
    with pytest.raises(Refused) as refused:
        till.admit(old, "default", shape())
    assert refused.value.code == "route_gone"


# Premium ----------------------------------------------------------------------------------------------------------------------

PREMIUM = route(more={"critical": Ladder(rungs=("big", "mid", "small"))}, rungs=["mid", "small"], premium_max_share_percent=20)


def end(till: Till, hold: Hold | None) -> Hold:
    assert hold is not None
    till.settle(hold, Usage(0, 0, 0), success=True)
    return hold


def test_critical_requests_have_premium_within_its_share(tmp_path: Path) -> None:
    """One in five may be premium: the others get the default model, and the header says why."""
    till = till_of(tmp_path, table([PREMIUM]))
    served = [end(till, admit(till, request_class="critical")) for _ in range(50)]
    names = [(hold.rung.name, hold.reason) for hold in served]
    assert names[:5] == [("mid", "PremiumShare")] * 4 + [("big", "Wanted")]
    assert sum(name == "big" for name, _ in names) == 10


def test_premium_that_never_ran_does_not_use_up_the_share(tmp_path: Path) -> None:
    """An outage of the premium model would cost the route its share for hours."""
    till = till_of(tmp_path, table([PREMIUM]))
    for _ in range(4):
        end(till, admit(till))
    hold = admit(till, request_class="critical")
    assert hold is not None
    assert hold.rung.name == "big"
    till.release(hold, attempted=True)
    again = admit(till, request_class="critical")
    assert again is not None
    assert again.rung.name == "big"


def test_requests_in_flight_have_not_earned_yet(tmp_path: Path) -> None:
    """Twenty requests that fail to connect would earn premium without one answer."""
    till = till_of(tmp_path, table([PREMIUM]))
    for _ in range(8):
        hold = admit(till)
        assert hold is not None
        till.release(hold, attempted=False)
    assert till.credit("shop/chat") == 0


def test_without_a_share_premium_is_unlimited(tmp_path: Path) -> None:
    """`premium` without `maxSharePercent` means always."""
    config = table([route(more={"critical": Ladder(rungs=("big",))}, rungs=["mid"])])
    till = till_of(tmp_path, config)
    for _ in range(3):
        assert end(till, admit(till, request_class="critical")).rung.name == "big"


# A full disk ------------------------------------------------------------------------------------------------------------------


def test_a_till_that_cannot_write_refuses_and_keeps_its_sums(tmp_path: Path) -> None:
    """A reservation that is not in the log must not be held in memory either."""
    hands = Hands()
    till = till_of(tmp_path / "state", hands=hands)
    first = admit(till)
    assert first is not None
    (tmp_path / "state").rename(tmp_path / "moved")  # the next segment has no directory to be made in
    refused = None
    holds = 0
    while refused is None:
        try:
            hold = admit(till)
            assert hold is not None
            till.release(hold, attempted=False)
            holds += 1
        except Refused as error:
            refused = error
    assert holds > 100
    assert (refused.code, till.refusals) == ("log_unavailable", {"log_unavailable": 1})
    assert (lease(till).reserved, len(till.books.open)) == (BIG, 1)
    assert till.settle(first, Usage(0, 0, 1), success=True) == 10
    (tmp_path / "moved").rename(tmp_path / "state")
    hands.boot_s += 1
    assert admit(till) is not None


# Arithmetic -------------------------------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["admit", "settle", "lose", "release", "grant", "return"]), st.integers(0, 400)), max_size=80
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_what_is_free_plus_what_is_held_is_what_was_granted(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    """A leak of one nano-dollar a request is a phantom budget after a month; a gain is an overspend."""
    tmp_path = tmp_path_factory.mktemp("till")
    till = open_till(tmp_path, table([route(parameters=Parameters(timeout_s=1.0))]))
    held: list[Hold] = []
    cost = 0
    try:
        mine = lease(till)
        for action, number in actions:
            if action == "admit":
                before = mine.granted - mine.returned - mine.consumed - sum(each.amount_nusd for each in held)
                hold = admit(till, wanted=shape(number, number))
                assert (hold is None) == (number * 11 > before)
                if hold is not None:
                    held.append(hold)
            elif action == "grant":
                total = mine.granted + number * 20
                till.log.grant(TEAM, total)
                mine.grant(total)
                mine.grant(total - 1)
            elif action == "return" and mine.free >= number:
                till.log.give_back(TEAM, mine.returned + number)
                mine.give_back(mine.returned + number)
            elif held:
                hold = held.pop(number % len(held))
                if action == "settle":
                    usage = Usage(min(number, hold.amount_nusd // 11), 0, 0)
                    cost += till.settle(hold, usage, success=True)
                elif action == "lose":
                    cost += till.settle(hold, None, success=False)
                else:
                    till.release(hold, attempted=True)
            assert mine.reserved == sum(each.amount_nusd for each in held)
            assert mine.free >= 0
            assert mine.consumed == cost
        assert sum(each.cost_nusd for each in till.books.counters.reports()) == cost
        restored = wal.read(tmp_path / "log", till.log.identity)
        assert restored.charge_open() == len(held)
        assert restored.lease(TEAM).consumed == cost + sum(each.amount_nusd for each in held)
    finally:
        till.state.close(finished=False)


def test_what_an_upstream_took_beyond_its_bound_is_reserved_from_then_on(tmp_path: Path) -> None:
    """The second answer of that kind would pass the ceiling as the first did; here and now, before the keeper can say so."""
    till = till_of(tmp_path, granted=10_000)
    first, beside = admit(till), admit(till)
    assert first is not None and beside is not None
    asked: list[None] = []
    till.kick = lambda: asked.append(None)
    till.settle(first, Usage(0, 0, 41), success=True)
    assert asked, "the other proxies must hear of it"
    till.settle(beside, Usage(0, 0, 41), success=True)  # It had been sent before: the same overrun, not a larger one.
    third = admit(till)
    assert third is not None and third.amount_nusd == BIG + 300
    assert [each.overrun_nusd for each in till.books.counters.reports()] == [300]
    till.settle(third, Usage(0, 0, 61), success=True)
    fourth = admit(till)
    assert fourth is not None and fourth.amount_nusd == BIG + 500


def test_a_new_config_does_not_forget_what_an_upstream_took_beyond_its_bound(tmp_path: Path) -> None:
    """A config that was rendered a moment before would let the second one pass."""
    till = till_of(tmp_path, granted=10_000)
    hold = admit(till)
    assert hold is not None and till.table is not None
    till.settle(hold, Usage(0, 0, 41), success=True)
    till.swap(till.table.replace(None, shards([route()])))
    again = admit(till)
    assert again is not None and again.amount_nusd == BIG + 300
