"""What an object's status says, and what a tool makes of it: whoever waits for it must neither hang nor go on too early."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepdown.budget.account import Invoiced
from stepdown.model import conditions
from stepdown.model.crd import UNKNOWN_STATUS
from stepdown.model.fleet import ProxyStatus
from stepdown.plan.world import FleetSeen, Invalid, LedgerView, ProxiesSeen, World
from stepdown.reconcile import Pass, reconcile
from tests.unit.kstatus import kstatus
from tests.unit.policy import NOW_S, budget, catalog, proxy, route, spent, targets, world

GOLDENS = sorted((Path(__file__).parents[1] / "golden").glob("*.out.yaml"))
OK = FleetSeen(2, 2, 2)


def answer(made: Pass, kind: str, key: str, type_: str) -> tuple[str, str, str]:
    """Status, reason and message of one condition."""
    found = {each["type"]: each for each in made.statuses[(kind, key)]["conditions"]}
    each = found.get(type_, {"status": "absent", "reason": "", "message": ""})
    return each["status"], each["reason"], each["message"]


def verdict(made: Pass, kind: str, key: str) -> str:
    plans: Any = {"ModelRoute": made.plan.routes, "SpendBudget": made.plan.budgets, "RoutingProxy": made.plan.fleets}
    plans["ModelCatalog"] = made.plan.catalogs
    return kstatus(plans[kind][key].source.generation, made.statuses[(kind, key)])


def served(things: World, view: LedgerView | None = None, ready: int = 2, there: FleetSeen | None = OK, **fleet: Any) -> Pass:
    """A pass in which every proxy has the config that is rendered."""
    view = view or LedgerView()
    if there is not None:
        things = replace(things, fleets={"shop/default": replace(there, **fleet)})
    first = reconcile(things, view, NOW_S)
    digests = first.configs["shop/default"].digests
    seen = ProxiesSeen(ready, {index: {digest: ready} for index, digest in digests.items()}, pods=ready)
    return reconcile(things, replace(view, proxies={"shop/default": seen}), NOW_S + 1, first)


# --- kstatus -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.name.removesuffix(".out.yaml"))
def test_every_golden_status_is_read_as_meant(golden: Path) -> None:
    """kstatus: Ready is current, what only its owner can mend has failed, everything else may still come right."""
    documents = yaml.safe_load(golden.read_text())["status"]["documents"]
    assert documents
    for name, document in documents.items():
        kind = name.split()[0]
        types = [each["type"] for each in document["conditions"]]
        assert types == [each for each in conditions.TYPES[kind] if each in types], "the order in which they are shown"
        assert set(conditions.TYPES[kind]) - set(types) <= {"Stalled", "Reconciled"}, "every question is answered"
        found = {each["type"]: each for each in document["conditions"]}
        assert all(each["observedGeneration"] == document["observedGeneration"] for each in document["conditions"])
        now = kstatus(document["observedGeneration"], document)
        if "Stalled" in found:
            assert now == "Failed" and found["Ready"]["status"] == found["Accepted"]["status"] == "False"
            assert (found["Stalled"]["reason"], found["Stalled"]["message"]) == (
                found["Accepted"]["reason"],
                found["Accepted"]["message"],
            )
        else:
            assert now == ("Current" if found["Ready"]["status"] == "True" else "InProgress")
        assert kstatus(document["observedGeneration"] + 1, document) == "InProgress"


def test_an_object_that_nobody_looked_at_is_in_progress() -> None:
    """Without the default status kstatus takes an object as current at once, operator or no operator."""
    assert kstatus(1, UNKNOWN_STATUS) == "InProgress" and kstatus(1, None) == "Current"


def test_what_works_is_current() -> None:
    """A healthy fleet, a route that is stepped down and a budget that is spent: none of them may keep a deployment waiting."""
    things = world(route(default="DeepSeek V4 Pro"), budget(), proxy(), catalog("mine"))
    for usd in ("0", "81", "100", "120"):
        made = served(things, spent(things, team=usd))
        assert {verdict(made, *name) for name in made.statuses} == {"Current"}, usd
    assert answer(made, "ModelRoute", "shop/chat", "SteppedDown")[0] == "True"
    assert answer(made, "SpendBudget", "shop/team", "WithinBudget")[0] == "False"


def _invalid(kind: Any, name: str) -> Invalid:
    return Invalid(kind, "shop" if kind != "ModelCatalog" else "", name, "spec.x is 7; remove it", {"spec": {}}, generation=3)


FAILED = [
    (World(proxies=(proxy(),), invalid=(_invalid("ModelRoute", "chat"),)), "ModelRoute", "shop/chat", "Invalid"),
    (World(proxies=(proxy(),), invalid=(_invalid("SpendBudget", "team"),)), "SpendBudget", "shop/team", "Invalid"),
    (World(invalid=(_invalid("RoutingProxy", "default"),)), "RoutingProxy", "shop/default", "Invalid"),
    (World(invalid=(_invalid("ModelCatalog", "mine"),)), "ModelCatalog", "mine", "Invalid"),
    (world(budget(namespaceSelector={})), "SpendBudget", "shop/team", "NotAllowed"),
    (world(proxy(upstream={"baseURL": "https://x.io", "channels": [{"name": "a", "apiKeySecretRef": {"name": "k"}}]})),
     "RoutingProxy", "shop/default", "NotAllowed"),
    (world(proxy(), fleet_namespaces=("llm", "edge")), "RoutingProxy", "shop/default", "NotAllowed"),
    (world(route(proxyRef={"name": "default", "namespace": "shop"}, meta={"namespace": "other"}),
           proxy(allowedRoutes={"namespaces": {"from": "All"}})), "ModelRoute", "other/chat", "NotAllowed"),
]  # fmt: skip


@pytest.mark.parametrize(("things", "kind", "key", "reason"), FAILED)
def test_what_only_its_owner_can_mend_has_failed(things: World, kind: str, key: str, reason: str) -> None:
    """Flux and Argo CD stop waiting and show the message, instead of timing out after minutes."""
    made = reconcile(things, LedgerView(), NOW_S)
    assert verdict(made, kind, key) == "Failed"
    status, said, message = answer(made, kind, key, "Stalled")
    assert (status, said) == ("True", reason) and message == answer(made, kind, key, "Accepted")[2]


IN_PROGRESS = [
    (World(routes=(route(),)), "ModelRoute", "shop/chat", "ResolvedRefs", "ProxyNotFound"),
    (world(route(default="no-such-model")), "ModelRoute", "shop/chat", "ResolvedRefs", "ModelNotFound"),
    (world(proxy(catalogRefs=[{"name": "mine"}])), "RoutingProxy", "shop/default", "ResolvedRefs", "CatalogNotFound"),
    (world(proxy(), secrets={"shop/upstream": False}), "RoutingProxy", "shop/default", "ResolvedRefs", "SecretNotFound"),
    (world(route(proxyRef={"name": "default", "namespace": "shop"}, meta={"namespace": "other"}, callers=[]), proxy()),
     "ModelRoute", "other/chat", "Accepted", "NotAllowed"),
    (world(route(requirements={"capabilities": ["telepathy"]})),
     "ModelRoute", "shop/chat", "Accepted", "NothingMeetsRequirements"),
]  # fmt: skip


@pytest.mark.parametrize(("things", "kind", "key", "type_", "reason"), IN_PROGRESS)
def test_what_another_object_can_mend_is_in_progress(things: World, kind: str, key: str, type_: str, reason: str) -> None:
    """`kubectl apply -f .` brings the route before its fleet: that must not fail a deployment that is fine a second later."""
    made = reconcile(things, LedgerView(), NOW_S)
    assert answer(made, kind, key, type_)[:2] == ("False", reason)
    assert answer(made, kind, key, "Ready")[0] == "False" and verdict(made, kind, key) == "InProgress"


def test_a_mended_object_is_no_longer_stalled() -> None:
    """The condition goes as it came; nobody has to delete it."""
    bad = World(proxies=(proxy(),), invalid=(_invalid("ModelRoute", "chat"),))
    first = reconcile(bad, LedgerView(), NOW_S)
    second = reconcile(world(route(meta={"generation": 4})), LedgerView(), NOW_S + 1, first)
    assert answer(second, "ModelRoute", "shop/chat", "Stalled")[0] == "absent"


# --- fleets ------------------------------------------------------------------------------------------------------------------


def test_a_fleet_where_the_operator_may_not_write() -> None:
    """Whoever creates a RoutingProxy in a namespace that the chart does not list is told which value to set, and where not."""
    view = LedgerView(accepted=dict(reconcile(world(proxy()), LedgerView(), NOW_S).accept))
    made = reconcile(world(route(), proxy(), fleet_namespaces=("llm", "edge")), view, NOW_S)
    status, reason, message = answer(made, "RoutingProxy", "shop/default", "Accepted")
    assert (status, reason) == ("False", "NotAllowed")
    assert "llm, edge" in message and "'shop'" in message and "fleetNamespaces" in message
    assert not made.configs, "nothing of it is in force, not even what was accepted before"
    assert answer(made, "ModelRoute", "shop/chat", "ResolvedRefs")[1] == "ProxyNotFound"
    assert reconcile(world(proxy(), fleet_namespaces=("shop",)), view, NOW_S).configs


def test_a_missing_key_is_named_and_the_rest_serves() -> None:
    """Which Secret, which key, for which channel; models of the other channels answer meanwhile."""
    things = world(route(), proxy(), secrets={"shop/upstream": True, "shop/upstream-pro": False})
    made = served(things)
    status, reason, message = answer(made, "RoutingProxy", "shop/default", "ResolvedRefs")
    assert (status, reason) == ("False", "SecretNotFound")
    assert all(word in message for word in ("channels[1]", "(pro)", "shop/upstream-pro", "'apiKey'"))
    assert answer(made, "ModelRoute", "shop/chat", "Ready")[0] == "True"


@pytest.mark.parametrize(
    ("there", "seen", "status", "reason", "says"),
    [
        (OK, ProxiesSeen(2), "False", "Propagating", "0 of 2 ready proxies"),
        (FleetSeen(4, 4, 4), ProxiesSeen(3), "False", "Propagating", "1 of them have not reported"),
        (FleetSeen(4, 4, 4), None, "False", "Propagating", "4 of them have not reported"),
        (FleetSeen(2, 0, 2), None, "False", "NoProxies", "No proxy of the fleet is ready"),
        (None, None, "Unknown", "Pending", "No proxy of the fleet has reported"),
    ],
)
def test_programmed_counts_every_ready_pod(
    there: FleetSeen | None, seen: ProxiesSeen | None, status: str, reason: str, says: str
) -> None:
    """A pod that is ready and silent may serve by anything: it must not count as served."""
    things = world(route(), fleets={"shop/default": there} if there is not None else {})
    view = LedgerView(proxies={"shop/default": seen} if seen is not None else {})
    made = reconcile(things, view, NOW_S)
    assert answer(made, "ModelRoute", "shop/chat", "Programmed")[:2] == (status, reason)
    assert says in answer(made, "ModelRoute", "shop/chat", "Programmed")[2]


def test_programmed_is_about_the_shard_of_the_route() -> None:
    """Three of four pods have the new config of one shard: its routes wait, and nobody else's do."""
    things = world(route("a"), route("b"), fleets={"shop/default": FleetSeen(4, 4, 4)})
    first = reconcile(things, LedgerView(), NOW_S)
    config = first.configs["shop/default"]
    late = config.placed["shop/a"].shard
    assert late != config.placed["shop/b"].shard
    have = {index: {digest: 3 if index == late else 4} for index, digest in config.digests.items()}
    made = reconcile(things, LedgerView(proxies={"shop/default": ProxiesSeen(4, have)}), NOW_S, first)
    assert answer(made, "ModelRoute", "shop/a", "Programmed")[:2] == ("False", "Propagating")
    assert made.statuses[("ModelRoute", "shop/a")]["proxies"] == {"ready": 4, "programmed": 3}
    assert answer(made, "ModelRoute", "shop/b", "Programmed")[:2] == ("True", "Programmed")
    assert answer(made, "RoutingProxy", "shop/default", "Programmed")[:2] == ("False", "Propagating")


def test_what_could_not_be_applied_is_said_by_the_api_server_s_own_words() -> None:
    """Quota, RBAC, an admission webhook: who owns the fleet sees which object and why without the operator's logs."""
    why = 'deployments.apps "stepdown-default" is forbidden: exceeded quota: pods'
    made = served(world(route()), failures={"Deployment shop/stepdown-default": why})
    status, reason, message = answer(made, "RoutingProxy", "shop/default", "Programmed")
    assert (status, reason) == ("False", "ApplyFailed")
    assert message == f"Deployment shop/stepdown-default could not be applied: {why}. It is tried again."
    assert answer(made, "RoutingProxy", "shop/default", "Ready")[:2] == ("False", "NotProgrammed")
    assert answer(made, "ModelRoute", "shop/chat", "Ready")[0] == "True", "what serves, serves"
    many = served(world(route()), failures={f"ConfigMap shop/{index}": "gone" for index in range(9)})
    assert "6 more objects could not either" in answer(many, "RoutingProxy", "shop/default", "Programmed")[2]


def test_a_rollout_and_a_fleet_of_none() -> None:
    """Pods that are being replaced keep a waiting tool waiting; a fleet that is meant to have none does not."""
    made = served(world(proxy(replicas=2)), there=FleetSeen(3, 2, 1))
    assert answer(made, "RoutingProxy", "shop/default", "Programmed")[:2] == ("False", "RollingOut")
    none = served(world(route(), proxy(replicas=0)), ready=0, there=FleetSeen(0, 0, 0))
    assert answer(none, "RoutingProxy", "shop/default", "Programmed")[:2] == ("True", "NoReplicas")
    assert verdict(none, "RoutingProxy", "shop/default") == "Current"
    assert answer(none, "ModelRoute", "shop/chat", "Programmed")[:2] == ("False", "NoProxies")


def test_a_fleet_tells_its_pods() -> None:
    """`kubectl get rproxy` and `kubectl get pods -l` agree on which pods there are and how many are ready."""
    made = served(world(route()), there=FleetSeen(4, 3, 4), ready=3)
    document = made.statuses[("RoutingProxy", "shop/default")]
    assert (document["replicas"], document["readyReplicas"], document["routes"]) == (4, 3, 1)
    assert document["selector"] == "app.kubernetes.io/name=stepdown-proxy,stepdown.dev/proxy=default"
    assert document["summary"] == {"pods": "3/4"}


# --- Events ------------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_one_event_each() -> None:
    """`kubectl describe` shows what happened once, not what follows from it, and not again with every pass."""
    things = world(route(default="no-such-model"), proxy(catalogRefs=[{"name": "mine"}]))
    things = replace(things, fleets={"shop/default": replace(OK, failures={"Service shop/default": "it is somebody else's"})})
    first = reconcile(things, LedgerView(), NOW_S)
    assert [(each.kind, each.reason) for each in first.events] == [
        ("ModelRoute", "InvalidSpec"),
        ("RoutingProxy", "RefsNotResolved"),
        ("RoutingProxy", "ApplyFailed"),
    ]
    assert all(each.type == "Warning" for each in first.events)
    assert reconcile(things, LedgerView(), NOW_S + 60, first).events == ()
    other = replace(things, fleets={"shop/default": replace(OK, failures={"Service shop/default": "something else"})})
    assert [each.reason for each in reconcile(other, LedgerView(), NOW_S + 61, first).events] == ["ApplyFailed"]


def test_a_month_in_events() -> None:
    """Everything that a budget goes through is told, each thing once."""
    things = world(route(default="DeepSeek V4 Pro"), budget(targetRefs=targets("chat")))
    made, told = None, []
    for hour, usd in enumerate(("0", "49", "50", "80", "95", "100", "100")):
        made = reconcile(things, spent(things, NOW_S + 3600 * hour, made, team=usd), NOW_S + 3600 * hour, made)
        told += [each.reason for each in made.events]
    assert told == ["StepReached", "SteppedDown", "ForecastOverLimit", "SteppedDown", "Exhausted"]
    later_s = NOW_S + 8 * 86_400
    made = reconcile(things, spent(things, later_s, made, team="0"), later_s, made)
    assert [each.reason for each in made.events] == ["PeriodStarted", "Restored"]


def test_an_outage_is_what_half_of_the_proxies_say() -> None:
    """Who is on call sees that it is the upstream, since when, once; and not again because the operator was restarted."""
    a, b = "DeepSeek-V3.2", "qwen3-8b"
    things = world(route(default=a, models={"fallbacks": [b]}))

    def at(now_s: float, before: Pass | None, ready: int = 4, settled: bool = True, **counts: int) -> Pass:
        down = {{"a": a, "b": b}.get(name, name): count for name, count in counts.items()}
        seen = {"shop/default": ProxiesSeen(ready, down=down)} if ready else {}
        return reconcile(things, LedgerView(proxies=seen, settled=settled), now_s, before)

    def out(made: Pass) -> list[tuple[str, str]]:
        document = made.statuses[("RoutingProxy", "shop/default")]
        return [(each["model"], each["since"][11:]) for each in document.get("outages", ())]

    first = at(NOW_S, None, a=1)
    assert out(first) == [] and first.events == ()
    second = at(NOW_S + 60, first, a=2, b=4, nonsense=4)
    assert out(second) == [(a, "12:01:00Z"), (b, "12:01:00Z")]
    assert [(each.kind, each.reason, each.type) for each in second.events] == [
        ("RoutingProxy", "UpstreamOutage", "Warning")
    ] * 2
    third = at(NOW_S + 120, second, a=1, b=3)
    assert out(third) == [(b, "12:01:00Z")] and third.events == ()
    stored = proxy().model_copy(update={"status": ProxyStatus.model_validate(third.statuses[("RoutingProxy", "shop/default")])})
    things = world(*things.routes, stored)
    again = at(NOW_S + 180, None, ready=0, settled=False)
    assert out(again) == [(b, "12:01:00Z")] and again.events == ()
    heard = at(NOW_S + 190, again, b=4)
    assert out(heard) == [(b, "12:01:00Z")] and heard.events == ()
    assert out(at(NOW_S + 200, heard)) == []


# --- what an invoice has come to --------------------------------------------------------------------------------------------


INVOICE = Invoiced(
    month="2026-10",
    through="2026-10-31",
    billed_nusd=130_000_000_000,
    metered_nusd=100_000_000_000,
    excess_nusd=0,
    short_nusd=0,
    slack_nusd=5_000_000,
    charged_nusd=30_000_000_000,
    kept_nusd=0,
    released_nusd=70_000_000_000,
)


@pytest.mark.parametrize(
    ("said", "held_nusd", "status", "reason", "words"),
    [
        (
            {},
            5_000_000,
            "True",
            "Reconciled",
            "$130.00 was billed to all, $100.00 was metered. Of what this budget held, $30.00",
        ),
        ({"excess_nusd": 5_000_001}, 0, "False", "Difference", "$0.005000001 is more than all that was metered or held"),
        ({"short_nusd": 1}, 0, "False", "Difference", "$0.000000001 was metered and not billed"),
        ({}, 5_000_001, "Unknown", "Pending", "$0.005000001 stays unreconciled"),
    ],
)
def test_a_budget_says_what_its_last_invoice_has_come_to(
    said: dict[str, int], held_nusd: int, status: str, reason: str, words: str
) -> None:
    """Finance waits for the condition; whoever is to settle the difference has to know how much it is."""
    things = world(route("chat"), budget())
    view = spent(things)
    (now, _) = view.balances.values()
    before = replace(now, account="shop/team@0", start_s=now.start_s - 31 * 86_400, end_s=now.start_s)
    before = replace(before, unreconciled_nusd=held_nusd, invoice=replace(INVOICE, **said))
    assert answer(reconcile(things, view, NOW_S), "SpendBudget", "shop/team", "Reconciled")[0] == "absent"
    made = reconcile(things, replace(view, balances={**view.balances, before.account: before}), NOW_S)
    found = answer(made, "SpendBudget", "shop/team", "Reconciled")
    assert found[:2] == (status, reason) and words in found[2]
    assert answer(made, "SpendBudget", "shop/team", "Ready")[0] == "True", "the budget works as told"
