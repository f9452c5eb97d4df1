"""Which budget binds which route, and what is in force while an object is invalid. One left out has no ceiling."""

from dataclasses import replace
from typing import Any

import pytest

from stepdown.model import conditions
from stepdown.plan.plan import make_plan
from stepdown.plan.world import AcceptedSpec, Invalid, LedgerView
from tests.unit.policy import NOW_S, balance, budget, catalog, proxy, route, spent, targets, world

NOTHING = LedgerView()


def _invalid(kind: Any, name: str, spec: dict[str, Any], namespace: str = "shop") -> Invalid:
    return Invalid(kind=kind, namespace=namespace, name=name, message="spec is wrong", raw={"spec": spec}, generation=2)


@pytest.mark.parametrize(
    ("spec", "bound"),
    [
        ({}, {"shop/a", "shop/b"}),
        ({"targetRefs": targets("b")}, {"shop/b"}),
        ({"routeSelector": {"matchLabels": {"team": "x"}}}, {"shop/a"}),
        ({"routeSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, {"shop/b"}),
        ({"routeSelector": {"matchLabels": {"team": "nobody"}}}, set()),
    ],
)
def test_targets(spec: dict[str, Any], bound: set[str]) -> None:
    """By name, by label, or the whole namespace; never another namespace's routes."""
    things = world(
        route("a", meta={"labels": {"team": "x"}}),
        route("b"),
        route("c", meta={"namespace": "other", "labels": {"team": "x"}}),
        budget(**spec),
    )
    assert make_plan(things, NOTHING, NOW_S).budgets["shop/team"].members == bound


def test_a_budget_for_the_whole_cluster() -> None:
    """A namespaceSelector reaches other namespaces from the operator's own, and binds nothing from anywhere else."""
    spec = {"namespaceSelector": {"matchLabels": {"tier": "prod"}}}
    things = world(
        route("a"),
        route("b", meta={"namespace": "other"}),
        budget("own", meta={"namespace": "stepdown-system"}, **spec),
        budget("foreign", **spec),
        namespace_labels={"shop": {"tier": "prod"}, "other": {"tier": "test"}},
    )
    plan = make_plan(things, NOTHING, NOW_S)
    assert plan.budgets["stepdown-system/own"].members == {"shop/a"}
    foreign = plan.budgets["shop/foreign"]
    assert foreign.accepted.reason == conditions.NOT_ALLOWED and foreign.force is None and not foreign.members
    assert [force.budget for force in plan.routes["shop/a"].forces] == ["stepdown-system/own"]


def test_a_target_that_is_not_there_yet() -> None:
    """Git applies in any order: a budget may come before its route, and binds it as soon as it is there."""
    early = budget(targetRefs=targets("a", "late"))
    plan = make_plan(world(route("a"), early), NOTHING, NOW_S)
    assert plan.budgets["shop/team"].accepted.holds and plan.budgets["shop/team"].missing == ("late",)
    plan = make_plan(world(route("a"), route("late"), early), NOTHING, NOW_S, plan)
    assert plan.budgets["shop/team"].members == {"shop/a", "shop/late"}


def test_a_route_that_gains_a_label_is_bound_at_once() -> None:
    """Relabelling a route moves it under the other team's budget in the same pass."""
    mine = budget(routeSelector={"matchLabels": {"team": "x"}})
    before = make_plan(world(route("a"), mine), NOTHING, NOW_S)
    assert not before.routes["shop/a"].forces
    after = make_plan(world(route("a", meta={"labels": {"team": "x"}}), mine), NOTHING, NOW_S, before)
    assert [force.budget for force in after.routes["shop/a"].forces] == ["shop/team"]


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"targetRefs": [{"name": "a"}]}, {"a"}),
        ({"routeSelector": {"matchLabels": {"team": "x"}}}, {"b"}),
        ({"routeSelector": 7}, {"a", "b"}),
        ({"targetRefs": "a"}, {"a", "b"}),
        ({}, {"a", "b"}),
    ],
)
def test_a_budget_never_valid_refuses_its_own_targets(spec: dict[str, Any], refused: set[str]) -> None:
    """A typo in a first budget must not mean "no budget"; and must not stop anyone else's routes."""
    things = replace(
        world(route("a"), route("b", meta={"labels": {"team": "x"}}), route("c", meta={"namespace": "other"})),
        invalid=(_invalid("SpendBudget", "team", spec),),
    )
    plan = make_plan(things, NOTHING, NOW_S)
    assert {key for key in ("a", "b") if plan.routes[f"shop/{key}"].refuse} == refused
    assert not any(force.refuses for force in plan.routes["other/c"].forces)


def test_an_invalid_update_leaves_the_last_accepted_budget() -> None:
    """A broken edit of a budget neither lifts the ceiling nor stops its routes."""
    good = world(route("a"), budget(usd="7.00"))
    accepted = dict(make_plan(good, NOTHING, NOW_S).accept)
    bad = replace(world(route("a")), invalid=(_invalid("SpendBudget", "team", {}),))
    plan = make_plan(bad, LedgerView(accepted=accepted), NOW_S)
    team = plan.budgets["shop/team"]
    assert team.in_force == "LastAccepted" and team.limit_nusd == 7_000_000_000 and not plan.routes["shop/a"].refuse
    assert {binding.limit_nusd for binding in plan.bindings} == {7_000_000_000}


def test_what_another_version_kept_is_no_spec() -> None:
    """A last accepted spec that this build cannot read is treated as none: it fails closed, not with a crash."""
    bad = replace(world(route("a")), invalid=(_invalid("SpendBudget", "team", {}),))
    kept = LedgerView(accepted={"SpendBudget/shop/team": AcceptedSpec("SpendBudget/shop/team", 1, '{"of":"the future"}')})
    plan = make_plan(bad, kept, NOW_S)
    assert plan.budgets["shop/team"].in_force == "Nothing" and plan.routes["shop/a"].refuse


def test_several_budgets_the_strictest_tier() -> None:
    """The route obeys all of its budgets: the strictest step, and an account in each."""
    things = world(route("a"), budget("one"), budget("two"))
    plan = make_plan(things, spent(things, one="81.00", two="96.00"), NOW_S)
    default = plan.routes["shop/a"].classes["default"]
    assert (default.hidden_by, default.served_by.tier) == ("shop/two", "UltraBudget")
    assert {binding.budget for binding in plan.bindings} == {"shop/one", "shop/two"}


def test_lowering_the_limit_steps_down_at_once() -> None:
    """The share is of the limit in force, not of the one that the ledger last heard of."""
    before = world(route("a"), budget(usd="100.00"))
    view = spent(before, team="50.00")
    after = make_plan(world(route("a"), budget(usd="52.00")), view, NOW_S)
    assert after.routes["shop/a"].classes["default"].served_by.tier == "UltraBudget"


def test_an_override_lasts_to_its_second() -> None:
    """Extra money is in the limit until it ends, and the plan says when to look again."""
    things = world(route("a"), budget(override={"addUSD": "50.00", "until": "2026-11-23T12:00:01Z"}))
    plan = make_plan(things, NOTHING, NOW_S)
    assert plan.budgets["shop/team"].limit_nusd == 150_000_000_000 and plan.next_change_s(NOW_S) == NOW_S + 1
    assert [binding.limit_nusd for binding in plan.bindings] == [150_000_000_000, 100_000_000_000]
    assert make_plan(things, NOTHING, NOW_S + 1, plan).budgets["shop/team"].limit_nusd == 100_000_000_000


def test_a_changed_zone_keeps_the_account() -> None:
    """Changing the time zone neither opens a second account in the month nor leaves an hour without one."""
    berlin = make_plan(world(budget(timeZone="Europe/Berlin")), NOTHING, NOW_S)
    current, following = berlin.bindings
    view = LedgerView({each.account: balance(each, "1.00") for each in (current, following)})
    plan = make_plan(world(budget(timeZone="America/New_York")), view, NOW_S, berlin)
    again, after = plan.bindings
    assert (again.account, again.end_s) == (current.account, current.end_s)
    assert after.account == following.account and after.end_s == following.end_s + 6 * 3600


def test_two_routes_of_one_name() -> None:
    """Nobody can know which is meant: both are refused by name, and a route that was accepted goes on."""
    plan = make_plan(world(route("a"), route("a", "qwen3-8b"), route("b")), NOTHING, NOW_S)
    assert plan.routes["shop/a"].accepted.reason == conditions.CONFLICT and plan.routes["shop/a"].refuse
    assert not plan.routes["shop/b"].refuse
    accepted = dict(make_plan(world(route("a")), NOTHING, NOW_S).accept)
    plan = make_plan(world(route("a"), route("a", "qwen3-8b")), LedgerView(accepted=accepted), NOW_S)
    assert plan.routes["shop/a"].in_force == "LastAccepted" and not plan.routes["shop/a"].refuse


def test_two_budgets_of_one_name_fail_closed() -> None:
    """Two budgets of one name refuse what they mean to bind, and no more."""
    plan = make_plan(
        world(route("a"), route("b"), budget(targetRefs=targets("a")), budget(usd="2.00", targetRefs=targets("a"))),
        NOTHING,
        NOW_S,
    )
    assert plan.routes["shop/a"].refuse and not plan.routes["shop/b"].refuse


def test_a_vanished_catalog_stays_in_force() -> None:
    """Deleting a price list does not take the price, and with it the route, away from under a Hard budget."""
    prices = catalog("own", {"name": "DeepSeek-R1", "inputUSDPerMTok": "0.55"})
    fleet = proxy(catalogRefs=[{"name": "own"}])
    things = world(route("a", "Pro/deepseek-ai/DeepSeek-R1"), budget(), fleet, prices)
    plan = make_plan(things, NOTHING, NOW_S)
    assert plan.routes["shop/a"].in_force == "Current"
    gone = replace(things, catalogs=())
    after = make_plan(gone, LedgerView(accepted=dict(plan.accept)), NOW_S)
    assert after.routes["shop/a"].in_force == "Current" and not after.routes["shop/a"].refuse
    assert after.fleets["shop/default"].resolved.reason == conditions.CATALOG_NOT_FOUND
    never = make_plan(gone, NOTHING, NOW_S)
    assert never.routes["shop/a"].accepted.reason == conditions.UNPRICED


def test_a_hard_budget_over_a_running_unpriced_route() -> None:
    """Where a Hard budget comes over a route whose model has no price, the priced rungs answer and the route says so."""
    free = world(route("a", "Pro/deepseek-ai/DeepSeek-R1"))
    before = make_plan(free, NOTHING, NOW_S)
    plan = make_plan(replace(free, budgets=(budget(),)), LedgerView(accepted=dict(before.accept)), NOW_S, before)
    mine = plan.routes["shop/a"]
    assert mine.accepted.reason == conditions.UNPRICED and mine.in_force == "LastAccepted"
    assert all(rung.model.is_priced for rung in mine.classes["default"].rungs) and not mine.refuse


def test_a_foreign_route_needs_callers_and_leave() -> None:
    """A route of another namespace is served only where the fleet allows it, and never to just anyone."""
    fleet = proxy(allowedRoutes={"namespaces": {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}})
    ref = {"proxyRef": {"name": "default", "namespace": "shop"}}
    things = world(
        fleet,
        route("open", meta={"namespace": "other"}, **ref),
        route("closed", meta={"namespace": "other"}, callers=[{"apiKeySHA256": "a" * 64}], **ref),
        route("stranger", meta={"namespace": "third"}, callers=[], **ref),
        namespace_labels={"other": {"llm": "yes"}},
    )
    plan = make_plan(things, NOTHING, NOW_S)
    assert plan.routes["other/open"].accepted.reason == conditions.NOT_ALLOWED
    assert plan.routes["other/closed"].fleet == "shop/default" and not plan.routes["other/closed"].refuse
    assert plan.routes["third/stranger"].accepted.reason == conditions.NOT_ALLOWED and not plan.routes["third/stranger"].fleet


def test_an_upstream_that_is_not_allowed() -> None:
    """Whoever may create a RoutingProxy cannot thereby send the key to a host of their own."""
    evil = proxy(upstream={"baseURL": "https://evil.example/v1", "channels": [{"name": "s", "apiKeySecretRef": {"name": "k"}}]})
    plan = make_plan(world(route("a"), evil), NOTHING, NOW_S)
    assert plan.fleets["shop/default"].accepted.reason == conditions.NOT_ALLOWED
    assert plan.fleets["shop/default"].market is None and plan.routes["shop/a"].fleet == ""


def test_one_bad_object_stops_no_other() -> None:
    """Every kind broken at once: the one good route is served as if it were alone."""
    bad = tuple(
        _invalid(kind, "bad", {"targetRefs": [{"name": "x"}]}) for kind in ("ModelRoute", "SpendBudget", "RoutingProxy")
    )
    plan = make_plan(replace(world(route("a"), budget(), route("b", "no-such-model")), invalid=bad), NOTHING, NOW_S)
    assert plan.routes["shop/a"].in_force == "Current" and not plan.routes["shop/a"].refuse
    assert plan.routes["shop/a"].classes["default"].served_by.model.name == "DeepSeek-V3.2"
