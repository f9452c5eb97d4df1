"""A pass over everything: pure, a fixpoint, and no more work than what changed. Ten thousand routes must not wait for one."""

from dataclasses import replace

from stepdown.budget.serving import Unheard
from stepdown.model.config import SHARDS, Shard, digest, shard_of
from stepdown.model.route import RouteStatus
from stepdown.model.spend import BudgetStatus
from stepdown.plan.world import Invalid, LedgerView, ProxiesSeen, RouteTotals
from stepdown.proxy.table import Table
from stepdown.reconcile import Pass, reconcile
from tests.unit.policy import NOW_S, budget, catalog, proxy, route, spent, world

HYBRID = {"fallbacks": ["Qwen/Qwen3-32B"], "premium": "Pro/deepseek-ai/DeepSeek-R1"}


def _condition(made: Pass, kind: str, key: str, type_: str) -> tuple[str, str]:
    found = {each["type"]: each for each in made.statuses[(kind, key)]["conditions"]}
    return found[type_]["status"], found[type_]["reason"]


def test_a_pass_is_a_fixpoint() -> None:
    """An unchanged world makes no write: the same statuses, the same shards, no Event, nothing to accept."""
    things = world(*(route(f"r{index}", models=HYBRID) for index in range(50)), budget(), budget("soft", enforcement="Soft"))
    view = spent(things, team="96.00")
    first = reconcile(things, replace(view, accepted={}), NOW_S)
    assert len(first.accept) == 53 and dict(first.accept) == view.accepted
    again = reconcile(things, view, NOW_S + 60, first)
    assert again.statuses == first.statuses and again.events == () and again.accept == ()
    assert again.shards is first.shards and again.fleet is first.fleet
    assert all(again.plan.routes[key] is plan for key, plan in first.plan.routes.items())
    afresh = reconcile(things, view, NOW_S)
    assert afresh.statuses == first.statuses and afresh.shards == first.shards and afresh.bindings == first.bindings


def test_one_changed_route_costs_one_shard() -> None:
    """A change of one route among many re-plans that route, re-renders its shard, and nothing else."""
    routes = [route(f"r{index}") for index in range(200)]
    first = reconcile(world(*routes, budget()), LedgerView(), NOW_S)
    changed = world(route("r0", "qwen3-8b"), *routes[1:], budget())
    second = reconcile(changed, LedgerView(), NOW_S, first)
    kept = [key for key in first.plan.routes if second.plan.routes[key] is first.plan.routes[key]]
    assert len(kept) == 199 and "shop/r0" not in kept
    moved = [index for index in range(SHARDS) if second.shards[index] is not first.shards[index]]
    assert moved == [shard_of("shop/r0")]
    assert second.shards == reconcile(changed, LedgerView(), NOW_S).shards


def test_a_route_that_comes_and_goes() -> None:
    """A new route is served after one pass, a deleted one is not; both ways as a pass from nothing would have it."""
    some, more = world(route("a"), budget()), world(route("a"), route("b"), budget())
    first = reconcile(some, LedgerView(), NOW_S)
    second = reconcile(more, LedgerView(), NOW_S, first)
    third = reconcile(some, LedgerView(), NOW_S, second)
    assert second.shards == reconcile(more, LedgerView(), NOW_S).shards and third.shards == first.shards
    assert ("ModelRoute", "shop/b") not in third.statuses


def test_the_proxy_takes_what_is_rendered() -> None:
    """Every shard compiles into the proxy's table, refused routes among them, and carries all that it names."""
    things = world(
        *(route(f"r{index}", models=HYBRID) for index in range(40)), route("bad", "no-such-model"), budget(), proxy()
    )
    made = reconcile(things, LedgerView(), NOW_S)
    table = Table(made.fleet, made.shards)
    assert len(list(table.routes)) == 41 and len(made.shards) == SHARDS
    entry, _ = table.find("bad", None)
    assert "no-such-model" in entry.config.refuse and not entry.ladders["default"].rungs
    entry, _ = table.find("shop/r1", None)
    assert entry.hard and entry.ladders["background"].rungs[0].upstream_id == "Qwen/Qwen3-32B"
    assert made.configs["shop/default"].digests == {index: digest(shard) for index, shard in made.shards.items()}
    for shard in made.shards.values():
        _carries_just_what_it_names(shard)


def _carries_just_what_it_names(shard: Shard) -> None:
    ladders = [ladder for each in shard.routes.values() for ladder in each.ladders.values()]
    assert set(shard.models) == {name for ladder in ladders for name in (*ladder.rungs, *ladder.fallbacks)}
    assert set(shard.budgets) == {name for each in shard.routes.values() for name in each.budgets}
    assert all(
        len(each.accounts) == 2 and each.accounts[0].end_s == each.accounts[1].start_s for each in shard.budgets.values()
    )


def test_no_hard_route_names_a_model_without_a_price() -> None:
    """Under a Hard budget nothing that cannot be counted is in the config at all; a route without one may have it."""
    hard = reconcile(world(route(models=HYBRID), budget()), LedgerView(), NOW_S)
    assert all(model.prices for shard in hard.shards.values() for model in shard.models.values())
    free = reconcile(world(route(models=HYBRID)), LedgerView(), NOW_S)
    unpriced = [model for shard in free.shards.values() for model in shard.models.values() if not model.prices]
    assert [(model.upstream_id, model.channel) for model in unpriced] == [("Pro/deepseek-ai/DeepSeek-R1", "pro")]


def test_a_step_rewrites_the_route_and_says_so() -> None:
    """At 80 % the config, the status and one Event say the same thing: who stepped down what, and since when."""
    things = world(route(default="DeepSeek V4 Pro"), budget())
    first = reconcile(things, spent(things, team="79.99"), NOW_S)
    assert _condition(first, "ModelRoute", "shop/chat", "SteppedDown") == ("False", "Wanted")
    second = reconcile(things, spent(things, team="80.00"), NOW_S + 3600, first)
    assert _condition(second, "ModelRoute", "shop/chat", "SteppedDown") == ("True", "StepInForce")
    effective = second.statuses[("ModelRoute", "shop/chat")]["effective"]
    assert (effective["tier"], effective["budget"], effective["since"]) == ("MidRange", "shop/team", "2026-11-23T13:00:00Z")
    assert [event.reason for event in second.events if event.reason != "ForecastOverLimit"] == ["SteppedDown"]
    ladder = second.shards[shard_of("shop/chat")].routes["shop/chat"].ladders["default"]
    assert (ladder.in_force, ladder.hidden_by) == (1, "shop/team")
    third = reconcile(things, spent(things, team="80.50"), NOW_S + 7200, second)
    assert third.statuses[("ModelRoute", "shop/chat")] is second.statuses[("ModelRoute", "shop/chat")]
    assert third.statuses[("SpendBudget", "shop/team")]["step"]["since"] == "2026-11-23T13:00:00Z"


def test_a_spent_budget_is_ready() -> None:
    """kstatus reads Ready=False as "in progress": a spent budget is not, it does what it was told."""
    things = world(route(), budget())
    made = reconcile(things, spent(things, team="100.00"), NOW_S)
    assert _condition(made, "SpendBudget", "shop/team", "WithinBudget") == ("False", "Exhausted")
    assert _condition(made, "SpendBudget", "shop/team", "Ready") == ("True", "Ready")
    over = reconcile(things, spent(things, team="100.50"), NOW_S, made)
    assert _condition(over, "SpendBudget", "shop/team", "WithinBudget") == ("False", "OverLimit")
    assert "Exhausted" not in [event.reason for event in over.events]


def test_a_new_month_brings_everything_back() -> None:
    """On the first the wanted model answers again, and one Event each says that the period began and the step is lifted."""
    things = world(route(), budget())
    view = spent(things, team="96.00")
    november = reconcile(things, view, NOW_S)
    end_s = november.bindings[0].end_s
    assert november.next_change_s == end_s
    december = reconcile(things, view, end_s, november)
    assert [event.reason for event in december.events] == ["PeriodStarted", "Restored"]
    assert _condition(december, "ModelRoute", "shop/chat", "SteppedDown") == ("False", "Wanted")
    assert december.bindings[0].account == november.bindings[1].account
    again = reconcile(things, view, end_s + 1, december)
    assert again.events == ()


def test_a_restart_repeats_no_event() -> None:
    """A new process that reads the objects' own status says nothing twice."""
    things = world(route(), budget())
    view = spent(things, team="96.00")
    before = reconcile(things, view, NOW_S)
    assert {event.reason for event in before.events} == {"SteppedDown", "ForecastOverLimit"}
    team = things.budgets[0].model_copy(
        update={"status": BudgetStatus.model_validate(before.statuses[("SpendBudget", "shop/team")])}
    )
    chat = things.routes[0].model_copy(
        update={"status": RouteStatus.model_validate(before.statuses[("ModelRoute", "shop/chat")])}
    )
    after = reconcile(replace(things, budgets=(team,), routes=(chat,)), view, NOW_S + 3600)
    assert after.statuses[("ModelRoute", "shop/chat")] == before.statuses[("ModelRoute", "shop/chat")]
    old, new = before.statuses[("SpendBudget", "shop/team")], after.statuses[("SpendBudget", "shop/team")]
    assert (new["step"], new["conditions"]) == (old["step"], old["conditions"])


def test_statuses_are_what_the_crds_allow() -> None:
    """A status that the API server would refuse is a status that nobody sees."""
    things = world(
        route("a", models=HYBRID),
        route("b", "nope"),
        budget(),
        catalog("own", {"name": "x"}),
        proxy(catalogRefs=[{"name": "own"}]),
    )
    view = replace(spent(things, team="123.456789"), totals={"shop/a": RouteTotals(3, 2, 100, 50, 7_000_000_001)})
    made = reconcile(things, view, NOW_S)
    kinds = {"ModelRoute": things.routes, "SpendBudget": things.budgets, "RoutingProxy": things.proxies}
    for (kind, key), document in made.statuses.items():
        thing = next(each for each in (*kinds.get(kind, ()), *things.catalogs) if each.kind == kind and each.key == key)
        status = type(thing).model_fields["status"].annotation.__args__[0].model_validate(document)  # type: ignore[union-attr]
        assert status.model_dump(mode="json", by_alias=True, exclude_unset=True) == document
    spend = made.statuses[("ModelRoute", "shop/a")]["spend"]
    assert (spend["month"], spend["usd"], spend["usdPerSuccess"]) == ("2026-11", "7.000000001", "3.500000001")


def test_programmed_when_every_proxy_has_the_shard() -> None:
    """Ready=True means that a request is served by this generation now, by whichever proxy it reaches."""
    things = world(route("a"), route("b"))
    made = reconcile(things, LedgerView(), NOW_S)
    assert _condition(made, "ModelRoute", "shop/a", "Ready") == ("Unknown", "Pending")
    serving = {index: {value: 2} for index, value in made.configs["shop/default"].digests.items()}
    all_have = LedgerView(proxies={"shop/default": ProxiesSeen(2, serving)})
    ready = reconcile(things, all_have, NOW_S, made)
    assert _condition(ready, "ModelRoute", "shop/a", "Ready") == ("True", "Ready")
    assert _condition(ready, "RoutingProxy", "shop/default", "Ready") == ("True", "Ready")
    changed = reconcile(world(route("a", "qwen3-8b"), route("b")), all_have, NOW_S, ready)
    assert _condition(changed, "ModelRoute", "shop/a", "Programmed") == ("False", "Propagating")
    assert _condition(changed, "ModelRoute", "shop/b", "Programmed") == ("True", "Programmed")
    none = reconcile(things, LedgerView(proxies={"shop/default": ProxiesSeen(0)}), NOW_S, ready)
    assert _condition(none, "ModelRoute", "shop/a", "Ready") == ("False", "NotProgrammed")


def test_enforced_only_when_acknowledged() -> None:
    """Promise 1 is made when it holds, not when the object is applied."""
    things = world(route(), budget())
    view = spent(things, team="1.00")
    waiting = replace(view, balances={key: replace(each, enforced=False) for key, each in view.balances.items()})
    first = reconcile(things, waiting, NOW_S)
    assert _condition(first, "SpendBudget", "shop/team", "Enforced") == ("False", "AwaitingAcknowledgement")
    assert _condition(first, "SpendBudget", "shop/team", "Ready") == ("False", "NotEnforced")
    second = reconcile(things, view, NOW_S + 60, first)
    found = {each["type"]: each for each in second.statuses[("SpendBudget", "shop/team")]["conditions"]}
    assert found["Enforced"]["lastTransitionTime"] == "2026-11-23T12:01:00Z"
    assert found["Accepted"]["lastTransitionTime"] == "2026-11-23T12:00:00Z"


def test_a_ceiling_that_waits_for_a_pod_names_it_and_what_to_do() -> None:
    """Nobody would find the one pod on a dead node for which every new budget waits; nor know that it takes their word."""
    things = world(route(), budget())
    view = spent(things, team="1.00")
    lost = tuple(Unheard("shop", f"web-{number}", f"uid-{number}", NOW_S - 600.0) for number in range(20))

    def held(*unheard: Unheard) -> Pass:
        balances = {key: replace(each, enforced=not unheard, unheard=unheard) for key, each in view.balances.items()}
        return reconcile(things, replace(view, balances=balances), NOW_S)

    assert _condition(held(lost[0]), "SpendBudget", "shop/team", "Enforced") == ("False", "ProxyLost")
    assert _condition(held(lost[0]), "SpendBudget", "shop/team", "Ready") == ("False", "NotEnforced")
    told = {each["type"]: each["message"] for each in held(lost[0]).statuses[("SpendBudget", "shop/team")]["conditions"]}
    assert "shop/web-0 since 2026-11-23T11:50:00Z. What still runs" in told["Enforced"] == told["Ready"]
    assert "`kubectl delete pod -n shop web-0 --force`" in told["Enforced"]
    many = {each["type"]: each["message"] for each in held(*lost).statuses[("SpendBudget", "shop/team")]["conditions"]}
    assert "shop/web-7 since 2026-11-23T11:50:00Z and 12 more. What" in many["Enforced"]


def test_an_invalid_update_says_so_once() -> None:
    """One Event for a broken edit, not one a pass; the route goes on, and the fixed one is accepted again."""
    good = world(route())
    first = reconcile(good, LedgerView(), NOW_S)
    view = LedgerView(accepted=dict(first.accept))
    broken = replace(world(), invalid=(Invalid("ModelRoute", "shop", "chat", "spec.models is 7", {}, generation=2),))
    second = reconcile(broken, view, NOW_S, first)
    third = reconcile(broken, view, NOW_S + 1, second)
    assert [event.reason for event in second.events] == ["InvalidSpec"] and third.events == ()
    assert second.shards == first.shards, "the last accepted spec serves, and proxies are told nothing"
    assert second.statuses[("ModelRoute", "shop/chat")]["observedGeneration"] == 2
    fixed = reconcile(world(route(default="qwen3-8b", meta={"generation": 3})), view, NOW_S + 2, third)
    assert _condition(fixed, "ModelRoute", "shop/chat", "Accepted") == ("True", "Accepted")
    assert [each.generation for _, each in fixed.accept if each.uid == "ModelRoute/shop/chat"] == [3]


def test_a_price_that_changes_by_date() -> None:
    """A price that rises on the first moves the ladder on the first: the pass says when to look again."""
    dear = {
        "name": "qwen-dated", "inputUSDPerMTok": "0.10", "outputUSDPerMTok": "0.20",
        "prices": [{"from": "2026-11-23T13:00:00Z", "inputUSDPerMTok": "0.10", "outputUSDPerMTok": "2.00"}],
    }  # fmt: skip
    things = world(route(default="qwen-dated"), catalog("own", dear), proxy(catalogRefs=[{"name": "own"}]))
    now = reconcile(things, LedgerView(), NOW_S)
    assert now.statuses[("ModelRoute", "shop/chat")]["effective"]["tier"] == "Budget"
    assert now.next_change_s == NOW_S + 3600
    then = reconcile(things, LedgerView(), NOW_S + 3600, now)
    assert then.statuses[("ModelRoute", "shop/chat")]["effective"]["tier"] == "Premium"
    (model,) = [shard.models["qwen-dated"] for shard in now.shards.values() if "qwen-dated" in shard.models]
    assert [price.output_pusd for price in model.prices] == [200_000, 2_000_000]
