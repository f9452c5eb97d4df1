"""When a status is written: an API server drowned in cents helps nobody, nor does a step that shows a minute late."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.fleet import ProxyStatus
from stepdown.model.resources import ModelRoute, RoutingProxy, SpendBudget
from stepdown.model.route import RouteStatus
from stepdown.model.spend import BudgetStatus
from stepdown.plan.world import FleetSeen, LedgerView, ObjectKey, ProxiesSeen, RouteTotals, World
from stepdown.reconcile import Pass, reconcile
from stepdown.status.pace import ARRIVAL_S, OTHER_S, ROUTE_S, Pace, Write
from stepdown.status.statuses import Statuses
from tests.unit.policy import NOW_S, budget, proxy, route, spent, world

HOUR_S = 3600.0
FLEET = ("RoutingProxy", "shop/default")
CHAT = ("ModelRoute", "shop/chat")
TEAM = ("SpendBudget", "shop/team")


def written(due: Any) -> list[ObjectKey]:
    return [each.name for each in due.writes]


def settle(pace: Pace, made: Pass, now_s: float) -> list[Write]:
    """Writes all that is due at one moment, and is told so."""
    found: list[Write] = []
    while writes := pace.look(made.made, made.plan, now_s).writes:
        for write in writes:
            pace.wrote(write, made.plan, now_s)
        found += writes
    return found


def serving(made: Pass, ready: int = 2) -> dict[str, ProxiesSeen]:
    """Every proxy has the config of that pass."""
    config = made.configs["shop/default"]
    return {"shop/default": ProxiesSeen(ready, {index: {digest: ready} for index, digest in config.digests.items()})}


# --- what people see ---------------------------------------------------------------------------------------------------------


def test_a_step_is_written_at_once_and_money_is_not() -> None:
    """`kubectl get` tells of a step within the second; of a cent within ten."""
    things = world(route(default="DeepSeek V4 Pro"), budget())
    pace = Pace()
    made = reconcile(things, spent(things, team="10"), NOW_S)
    assert len(settle(pace, made, NOW_S)) == 3
    made = reconcile(things, spent(things, team="10.01"), NOW_S + 1, made)
    due = pace.look(made.made, made.plan, NOW_S + 1)
    assert due.writes == () and due.again_s == NOW_S + OTHER_S
    made = reconcile(things, spent(things, team="81"), NOW_S + 2, made)
    assert set(written(pace.look(made.made, made.plan, NOW_S + 2))) == {TEAM, CHAT}


def test_the_budget_comes_before_its_thousand_routes() -> None:
    """When a step changes 1,000 routes, the object that says why is not the 1,001st."""
    things = world(*(route(f"r{index}", "DeepSeek V4 Pro") for index in range(300)), budget(), proxy())
    pace = Pace()
    made = reconcile(things, spent(things, team="10"), NOW_S)
    now_s = NOW_S
    while (due := pace.look(made.made, made.plan, now_s)).again_s is not None or due.writes:
        for write in due.writes:
            pace.wrote(write, made.plan, now_s)
        now_s += 1.0
    made = reconcile(things, spent(things, team="81"), now_s + 60, made)
    first = pace.look(made.made, made.plan, now_s + 60)
    assert first.writes[0].name == TEAM and len(first.writes) == 100 and first.again_s is not None


def test_a_step_overtakes_the_routes_that_wait_for_a_place() -> None:
    """An API server takes its time over 300 routes: the step that comes meanwhile is the next write, not the 301st."""
    things = world(*(route(f"r{index}", "DeepSeek V4 Pro") for index in range(300)), budget(), proxy())
    pace = Pace(burst=1000)
    made = reconcile(things, spent(things, team="10"), NOW_S)
    settle(pace, made, NOW_S)
    made = reconcile(things, spent(things, team="81"), NOW_S + 60, made)
    begun = pace.look(made.made, made.plan, NOW_S + 60, 8)
    assert begun.writes[0].name == TEAM and len(begun.writes) == 8 and begun.again_s is not None
    assert pace.look(made.made, made.plan, NOW_S + 60, 0).writes == ()
    pace.wrote(begun.writes[0], made.plan, NOW_S + 60)
    made = reconcile(things, spent(things, team="96"), NOW_S + 61, made)
    assert written(pace.look(made.made, made.plan, NOW_S + 61, 1)) == [TEAM]


def test_a_cold_start_of_a_thousand_routes_is_through_in_a_minute() -> None:
    """1,000 routes and 100 budgets, each written twice (as it was found, then as it is served), within 60 s."""
    things = world(*(route(f"r{index}") for index in range(1000)), *(budget(f"b{index}") for index in range(100)))
    pace, made, now_s, count = Pace(), reconcile(things, LedgerView(), NOW_S), float(NOW_S), 0
    served = reconcile(things, LedgerView(proxies=serving(made)), NOW_S + 20, made)
    while now_s < NOW_S + 60:
        current = made if now_s < NOW_S + 20 else served
        due = pace.look(current.made, current.plan, now_s)
        for write in due.writes:
            pace.wrote(write, current.plan, now_s)
        count += len(due.writes)
        now_s += 0.5
    assert pace.look(served.made, served.plan, now_s).again_s is None and count >= 2000


def test_an_idle_hour_writes_nothing() -> None:
    """Money was spent, none is any more: the forecast falls by the hour, and nobody is told each time."""
    things = world(route(), budget())
    view = replace(spent(things, team="60"), totals={"shop/chat": RouteTotals(10, 10, 5, 5, 10**9)})
    pace, made = Pace(), reconcile(things, view, NOW_S)
    assert settle(pace, made, NOW_S)
    for minute in range(1, 181):
        made = reconcile(things, view, NOW_S + minute * 60, made)
        assert settle(pace, made, NOW_S + minute * 60) == []


def test_a_route_moves_by_a_hundredth_of_its_strictest_budget_or_not_at_all() -> None:
    """A thousand routes under one budget, each with its cents, must not be a thousand writes a minute."""
    things = world(route(), budget(usd="100"), budget("wide", usd="5000"))

    def at(usd: float, now_s: float, before: Pass | None) -> Pass:
        totals = {"shop/chat": RouteTotals(1, 1, 1, 1, int(usd * 10**9))}
        return reconcile(things, replace(spent(things), totals=totals), now_s, before)

    pace, made = Pace(), at(3, NOW_S, None)
    settle(pace, made, NOW_S)
    made = at(3.99, NOW_S + HOUR_S, made)
    assert settle(pace, made, NOW_S + HOUR_S) == []
    made = at(4, NOW_S + HOUR_S + 1, made)
    assert [each.name for each in settle(pace, made, NOW_S + HOUR_S + 1)] == [CHAT]
    made = at(50, NOW_S + HOUR_S + 2, made)
    due = pace.look(made.made, made.plan, NOW_S + HOUR_S + 2)
    assert due.writes == () and due.again_s == NOW_S + HOUR_S + 1 + ROUTE_S


def test_a_config_on_its_way_is_not_written_unless_it_stays_on_its_way() -> None:
    """One edited route moves the shard of sixty others: for each of them two writes in a second would be for nothing."""
    things = world(*(route(f"r{index}") for index in range(40)))
    made = reconcile(things, LedgerView(), NOW_S)
    made = reconcile(things, LedgerView(proxies=serving(made)), NOW_S + 1, made)
    pace, old = Pace(), serving(made)
    settle(pace, made, NOW_S + 1)
    edited = route("r0", "qwen3-8b", meta={"generation": 2})
    things = world(edited, *things.routes[1:])
    made = reconcile(things, LedgerView(proxies=old), NOW_S + 2, made)
    assert {each.name for each in settle(pace, made, NOW_S + 2)} == {("ModelRoute", "shop/r0")}
    arrived = reconcile(things, LedgerView(proxies=serving(made)), NOW_S + 3, made)
    assert {each.name for each in settle(pace, arrived, NOW_S + 3)} == {("ModelRoute", "shop/r0")}
    assert pace.look(arrived.made, arrived.plan, NOW_S + 3).again_s is None
    late = reconcile(things, LedgerView(proxies=old), NOW_S + 4, arrived)
    settle(pace, late, NOW_S + 4)
    neighbours = [each for each in settle(pace, late, NOW_S + 4 + ARRIVAL_S) if each.name != ("ModelRoute", "shop/r0")]
    assert neighbours


# --- starts, failures, other writers -----------------------------------------------------------------------------------------


def as_stored(things: World, made: Pass) -> World:
    """The objects as an API server has them after the pass's statuses were written."""

    def stored(thing: Any, kind: str, model: Any) -> Any:
        return thing.model_copy(update={"status": model.model_validate(made.statuses[(kind, thing.key)])})

    return replace(
        things,
        routes=tuple(cast(ModelRoute, stored(each, "ModelRoute", RouteStatus)) for each in things.routes),
        budgets=tuple(cast(SpendBudget, stored(each, "SpendBudget", BudgetStatus)) for each in things.budgets),
        proxies=tuple(cast(RoutingProxy, stored(each, "RoutingProxy", ProxyStatus)) for each in things.proxies),
    )


def test_a_restart_writes_nothing_and_says_nothing() -> None:
    """An operator that starts again finds everything as it left it, although no proxy has reported to it yet and it has not
    looked at the fleet's Deployment."""
    things = world(*(route(f"r{index}", "DeepSeek V4 Pro") for index in range(20)), budget(), route("bad", "no-such-model"))
    view = spent(things, team="96")
    there = {"shop/default": FleetSeen(2, 2, 2)}
    things = replace(things, fleets=there)
    made = reconcile(things, view, NOW_S)
    made = reconcile(things, replace(view, proxies=serving(made)), NOW_S + 1, made)
    assert made.statuses[("ModelRoute", "shop/r1")]["conditions"][2]["status"] == "True"
    again = as_stored(things, made)
    pace, afresh = Pace(), reconcile(replace(again, fleets={}), replace(view, settled=False), NOW_S + 600)
    assert afresh.events == () and settle(pace, afresh, NOW_S + 600) == []
    looked = reconcile(again, replace(view, settled=False), NOW_S + 602, afresh)
    assert looked.events == () and settle(pace, looked, NOW_S + 602) == []
    heard = reconcile(again, replace(view, proxies=serving(made)), NOW_S + 606, looked)
    assert heard.events == () and settle(pace, heard, NOW_S + 606) == []
    silent = reconcile(again, view, NOW_S + 606, afresh)
    conditions = {each["type"]: each for each in silent.statuses[("ModelRoute", "shop/r1")]["conditions"]}
    assert (conditions["Programmed"]["status"], conditions["Programmed"]["reason"]) == ("False", "Propagating")


def test_an_object_that_was_made_again_gets_its_status() -> None:
    """Deleted and created between two passes: it has the name and not the status of the one before."""
    first, second = (world(budget(meta={"uid": uid})) for uid in ("one", "two"))
    pace, made = Pace(), reconcile(first, LedgerView(), NOW_S)
    settle(pace, made, NOW_S)
    made = reconcile(second, LedgerView(), NOW_S, made)
    (write,) = settle(pace, made, NOW_S)
    assert (write.name, write.uid) == (TEAM, "two")


def test_a_write_that_failed_comes_again_and_a_foreign_one_is_undone() -> None:
    """What the API server may not have, or has from somebody else, is written until it has it."""
    things = world(budget())
    pace, made = Pace(), reconcile(things, LedgerView(), NOW_S)
    for write in pace.look(made.made, made.plan, NOW_S).writes:
        pace.failed(write, made.plan, NOW_S, retry_s=5)
    due = pace.look(made.made, made.plan, NOW_S + 1)
    assert due.writes == () and due.again_s == NOW_S + 5
    assert set(written(pace.look(made.made, made.plan, NOW_S + 5))) == {TEAM, FLEET}
    assert pace.look(made.made, made.plan, NOW_S + 6).writes == ()  # under way
    pace = Pace()
    settle(pace, made, NOW_S)
    pace.changed_by_others(TEAM, made.plan, NOW_S + 1)
    assert written(pace.look(made.made, made.plan, NOW_S + 1)) == [TEAM]


# --- properties --------------------------------------------------------------------------------------------------------------

THINGS = world(*(route(f"r{index}") for index in range(4)), budget("one"), budget("two"), proxy())
MADE = reconcile(THINGS, spent(THINGS, one="1", two="1"), NOW_S)
ALL = sorted(MADE.statuses)
RATE, BURST, RESERVE = 2.0, 4, 2

Edit = Callable[[dict[str, Any]], None]


def _spend(document: dict[str, Any]) -> None:
    if "spentUSD" in document:
        document["spentUSD"] = f"{float(document['spentUSD']) + 1:.2f}"
    else:
        was = float(document.get("spend", {"usd": 0})["usd"])
        document["spend"] = {"month": "2026-11", "usd": f"{was + 0.4:.2f}"}


def _turn(document: dict[str, Any]) -> None:
    first, *others = document["conditions"]
    status = "False" if first["status"] == "True" else "True"
    document["conditions"] = [{**first, "status": status}, *others]


def _forecast(document: dict[str, Any]) -> None:
    if "forecast" in document:
        document["forecast"] = {"monthEndUSD": f"{float(document['forecast']['monthEndUSD']) - 0.01:.2f}"}


def telling(document: Mapping[str, Any]) -> Any:
    return [(each["type"], each["status"]) for each in document["conditions"]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.5, 3.0, 20.0, 100.0]),
            st.lists(st.tuples(st.sampled_from(ALL), st.sampled_from([_spend, _turn, _forecast])), max_size=6),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_whatever_happens_writes_are_few_and_right(story: list[tuple[float, list[tuple[ObjectKey, Edit]], bool]]) -> None:
    """The rate holds over every stretch of time; nothing is written too soon, twice, or never; `again_s` is when it says."""
    pace, now_s = Pace(RATE, BURST, RESERVE), 0.0
    documents: dict[ObjectKey, dict[str, Any]] = dict(MADE.statuses)
    stored: dict[ObjectKey, Mapping[str, Any] | None] = {}
    log: list[tuple[float, ObjectKey, bool]] = []
    made = Statuses(dict(documents), {}, dict.fromkeys(documents))

    def step(works: bool) -> float | None:
        due = pace.look(made, MADE.plan, now_s)
        for write in due.writes:
            had = stored.get(write.name)
            urgent = had is None or telling(had) != telling(write.document)
            log.append((now_s, write.name, urgent))
            if works:
                assert had != write.document, "a write that changes nothing"
                stored[write.name] = write.document
                pace.wrote(write, MADE.plan, now_s)
            else:
                stored[write.name] = None
                pace.failed(write, MADE.plan, now_s, retry_s=1.0)
        return pace.look(made, MADE.plan, now_s).again_s if due.writes else due.again_s

    again_s = step(True)
    for wait_s, edits, works in story:
        if again_s is not None and now_s < again_s - 1e-3:
            between = min(now_s + wait_s, again_s - 1e-3)
            assert pace.look(made, MADE.plan, between).writes == (), "something was due before it was said"
            now_s = between
        now_s = max(now_s, now_s + wait_s)
        for name, edit in edits:
            document = dict(documents[name])
            edit(document)
            documents[name] = document
        if edits:
            made = Statuses(dict(documents), {}, {})
        again_s = step(works)
    for _ in range(400):
        if again_s is None:
            break
        now_s = max(now_s, again_s)
        again_s = step(True)
    assert again_s is None, "it never comes to rest"
    for name, document in documents.items():
        have = stored[name]
        assert have is not None and telling(have) == telling(document)
        if name[0] == "SpendBudget":
            assert have["spentUSD"] == document["spentUSD"]
        elif name[0] == "ModelRoute":
            assert float(document.get("spend", {"usd": 0})["usd"]) - float(have.get("spend", {"usd": 0})["usd"]) < 1
    _check(log)


def _check(log: list[tuple[float, ObjectKey, bool]]) -> None:
    for index, (began_s, _, _) in enumerate(log):
        for count, (ended_s, _, _) in enumerate(log[index:], 1):
            assert count <= BURST + RATE * (ended_s - began_s) + 1e-6, "more than the rate allows"
    last: dict[ObjectKey, float] = {}
    for at_s, name, urgent in log:
        shortest_s = ROUTE_S if name[0] == "ModelRoute" else OTHER_S
        if not urgent and name in last:
            assert at_s - last[name] >= shortest_s - 1e-6, "money alone, and too soon"
        last[name] = at_s
