"""The operator on a real API server, from `kubectl apply` to an answer, a bill and a status: what a platform team sees."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane

from stepdown.cluster.kinds import CONFIG_MAP, DEPLOYMENT, NETWORK_POLICY, POD_DISRUPTION_BUDGET, SERVICE, SERVICE_ACCOUNT
from tests.cluster.gate import gate
from tests.cluster.operator_world import World, bare, free_port, install, until, world


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """An operator sees every namespace, so these tests have an API server of their own."""
    with ControlPlane() as own:
        install(own)
        yield own


@pytest.fixture
def here(plane: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with world(plane, tmp_path) as made:
        yield made


def test_from_apply_to_an_answer(here: World) -> None:
    here.operator().start()
    here.apply(here.proxy(), here.budget(), here.route())
    for kind, name in (
        (DEPLOYMENT, "stepdown-default"),
        (SERVICE, "default"),
        (SERVICE_ACCOUNT, "stepdown-default"),
        (POD_DISRUPTION_BUDGET, "stepdown-default"),
        (NETWORK_POLICY, "stepdown-default"),
        (CONFIG_MAP, "stepdown-default-fleet"),
    ):
        child = until(lambda kind=kind, name=name: here.get(kind, name), f"{kind.kind} {name}\n{here.said()}")
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("RoutingProxy", "default", True)
    here.until_condition("ModelRoute", "chat", "Accepted", "True")
    here.until_condition("ModelRoute", "chat", "Programmed", "False", "NoProxies")
    first, second = here.proxies(2)
    here.until_condition("ModelRoute", "chat", "Programmed", "True")
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("RoutingProxy", "default", "Ready", "True")
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    for proxy in (first, second):
        status, headers, answer = proxy.chat()
        assert status == 200, answer
        assert (headers["x-stepdown-route"], headers["x-stepdown-reason"]) == (f"{here.namespace}/chat", "Wanted")


def test_a_spent_budget_steps_its_routes_down_and_says_so(here: World) -> None:
    """The point of the whole thing: the answer still comes, from a cheaper model, and kubectl says why."""
    here.operator().start()
    here.apply(here.proxy(), here.budget(limit="0.02"), here.route(), here.route("untouched", "Qwen3-8B"))
    (proxy,) = here.proxies()
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    wordy = [{"role": "user", "content": "word " * 1500}]
    for _ in range(100):
        status, headers, answer = proxy.chat(messages=wordy)
        assert status == 200, answer
        if headers["x-stepdown-reason"] != "Wanted":
            break
    until(lambda: proxy.chat()[1]["x-stepdown-reason"] == "StepInForce", f"the step is in force\n{here.said()}")
    here.until_condition("ModelRoute", "chat", "SteppedDown", "True", "StepInForce")
    budget = here.get("SpendBudget", "team")
    assert budget is not None
    assert int(budget["status"]["step"]["atPercent"]) >= 80
    assert budget["status"]["routes"] == {"matched": 2, "steppedDown": 1}
    until(lambda: "SteppedDown" in here.events("team"), "an Event SteppedDown")
    assert here.condition("ModelRoute", "untouched", "SteppedDown")[0] == "False"


def test_nothing_of_a_users_object_is_written_but_its_status(here: World) -> None:
    """Promise 3: Git stays the owner. Argo CD would show a difference, or fight for it."""
    here.apply(here.proxy(), here.budget(), here.route(), here.object("ModelCatalog", "own", {"models": []}))
    kinds = (("RoutingProxy", "default"), ("SpendBudget", "team"), ("ModelRoute", "chat"), ("ModelCatalog", "own"))
    before = {kind: bare(here.get(kind, name) or {}) for kind, name in kinds}
    here.operator().start()
    here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("SpendBudget", "team", "Ready", "True")
    here.until_condition("ModelCatalog", "own", "Ready", "True")
    after = {kind: bare(here.get(kind, name) or {}) for kind, name in kinds}
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)
    for kind, name in kinds:
        entries = (here.get(kind, name) or {})["metadata"]["managedFields"]
        ours = [each for each in entries if each["manager"] == "stepdown"]
        assert [(each["subresource"], list(each["fieldsV1"])) for each in ours] == [("status", ["f:status"])]


def test_a_child_that_somebody_changed_or_removed_comes_back(here: World) -> None:
    here.operator().start()
    here.apply(here.proxy(), here.route())
    until(lambda: here.get(CONFIG_MAP, "stepdown-default-fleet") and here.get(SERVICE, "default"), "the fleet's objects")
    deployment = until(lambda: here.get(DEPLOYMENT, "stepdown-default"), "the Deployment")
    here.cluster.kubectl("-n", here.namespace, "set", "image", "deployment/stepdown-default", "*=evil.example/image")
    here.cluster.kubectl("-n", here.namespace, "delete", "service/default", "configmap/stepdown-default-fleet")
    here.cluster.kubectl("-n", here.namespace, "annotate", "deployment/stepdown-default", "team=support")

    def image() -> str:
        found = here.get(DEPLOYMENT, "stepdown-default") or deployment
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    until(lambda: here.get(CONFIG_MAP, "stepdown-default-fleet") and here.get(SERVICE, "default"), "both come back")
    until(lambda: image() == "registry.example/stepdown:test", "the image is ours again")
    found = here.get(DEPLOYMENT, "stepdown-default")
    assert found is not None
    assert found["metadata"]["annotations"]["team"] == "support", "what is not ours is left alone"


def test_what_was_deleted_while_the_operator_was_away_is_gone_from_everywhere(here: World) -> None:
    """A route that nobody can see any more would go on being served, and a budget would go on binding."""
    first = here.operator().start()
    here.apply(here.proxy(), here.budget(), here.route(), here.route("search"))
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "search", "Ready", "True")
    assert proxy.chat("search")[0] == 200
    first.stop()
    here.delete("ModelRoute", "search")
    here.delete("SpendBudget", "team")
    here.operator().start()
    until(lambda: proxy.chat("search")[0] == 404, "the route is not served any more")
    assert proxy.chat()[0] == 200

    def routes() -> set[str]:
        files = here.mounted("default")
        return {route for name, text in files.items() if name.startswith("shard") for route in json.loads(text)["routes"]}

    until(lambda: routes() == {f"{here.namespace}/chat"}, "the mounted config follows")


def test_what_is_wrong_is_said_and_touches_nothing_else(here: World) -> None:
    here.operator().start()
    here.apply(here.proxy(), here.route(), here.budget())
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.apply(
        here.route("typo", "Qwen3-14"),
        here.object("ModelRoute", "lost", {"models": {"default": "Qwen3-14B"}, "proxyRef": {"name": "nowhere"}}),
        here.budget("mars", timeZone="Mars/Olympus"),
        here.object(
            "RoutingProxy",
            "thief",
            {
                "upstream": {
                    "baseURL": "https://thief.example/v1",
                    "channels": [{"name": "standard", "apiKeySecretRef": {"name": "upstream"}}],
                }
            },
        ),
    )
    here.until_condition("ModelRoute", "typo", "ResolvedRefs", "False", "ModelNotFound")
    here.until_condition("ModelRoute", "lost", "ResolvedRefs", "False", "ProxyNotFound")
    here.until_condition("SpendBudget", "mars", "Accepted", "False", "Invalid")
    here.until_condition("RoutingProxy", "thief", "Accepted", "False", "NotAllowed")
    until(lambda: "InvalidSpec" in here.events("mars"), "an Event InvalidSpec")
    assert here.get(DEPLOYMENT, "stepdown-thief") is None
    status, _, answer = proxy.chat("typo")
    assert status == 403, answer


def test_an_update_that_is_invalid_leaves_the_last_one_in_force(here: World) -> None:
    """Across a restart of the operator, too: what was in force is in the ledger."""
    first = here.operator().start()
    here.apply(here.proxy(), here.route(), here.budget(limit="5.00"))
    (proxy,) = here.proxies()
    here.until_condition("SpendBudget", "team", "Ready", "True")
    first.stop()
    here.apply(here.budget(limit="7.00", timeZone="Mars/Olympus"))
    here.operator().start()
    here.until_condition("SpendBudget", "team", "Accepted", "False", "Invalid")
    budget = here.get("SpendBudget", "team")
    assert budget is not None
    assert budget["status"]["limitUSD"] == "5.00"
    assert proxy.chat()[0] in (200, 403)


def test_a_callers_service_account_token_is_its_key(here: World) -> None:
    """Without the cluster's keys a proxy would refuse every caller that has no other key."""
    here.operator().start()
    account = {"serviceAccount": {"namespace": here.namespace, "name": "default"}}
    here.apply(here.proxy(), here.route(callers=[account]))
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    token = here.cluster.kubectl("-n", here.namespace, "create", "token", "default", "--audience=stepdown-proxy").strip()
    assert proxy.chat()[0] == 401
    status, _, answer = proxy.chat(key=token)
    assert status == 200, answer


def test_a_fleet_that_was_deleted_leaves_nothing_and_its_routes_say_why(here: World) -> None:
    """The garbage collector takes the children; an operator that made them again would fight with it for ever."""
    here.operator().start()
    here.apply(here.proxy(), here.route())
    until(lambda: here.get(DEPLOYMENT, "stepdown-default"), "the Deployment")
    here.until_condition("ModelRoute", "chat", "Accepted", "True")
    here.delete("RoutingProxy", "default")
    here.until_condition("ModelRoute", "chat", "ResolvedRefs", "False", "ProxyNotFound")
    kinds = (DEPLOYMENT, SERVICE_ACCOUNT, NETWORK_POLICY, POD_DISRUPTION_BUDGET, CONFIG_MAP)

    def left() -> int:
        return sum(len(here.all(kind, "app.kubernetes.io/name=stepdown-proxy")) for kind in kinds)

    until(lambda: left() == 0, "the children are gone", 60)
    here.apply(here.proxy())
    until(lambda: here.get(DEPLOYMENT, "stepdown-default"), "one of the same name gets its own")
    here.until_condition("ModelRoute", "chat", "ResolvedRefs", "True")


def test_the_next_replica_takes_over_with_the_ledger_as_it_is(here: World) -> None:
    """A rollout: proxies that reach the one that does not lead are sent on, and no request notices."""
    first = here.operator(None, "--address", f"https://127.0.0.1:{here.sync_port}").start()
    here.apply(here.proxy(), here.route(), here.budget())
    (proxy,) = here.proxies()
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    assert proxy.chat()[0] == 200
    other = free_port()
    second = here.operator(None, "--listen", f"127.0.0.1:{other}", "--address", f"https://127.0.0.1:{other}").launch()
    second.wait_for("waiting for the lease")
    until(lambda: second.get("/readyz")[0] == 200, "a follower is ready too")
    assert "stepdown_leader 0.0" in second.get("/metrics")[1]
    assert first.stop() == 0
    second.wait_for('"event": "ready"')
    assert "stepdown_leader 1.0" in second.get("/metrics")[1]
    assert proxy.chat()[0] == 200
    spent = [line for line in second.get("/metrics")[1].splitlines() if line.startswith("stepdown_budget_limit_usd")]
    assert spent == [f'stepdown_budget_limit_usd{{budget="team",namespace="{here.namespace}"}} 5.0']


def test_a_status_that_somebody_wrote_over_comes_back(here: World) -> None:
    here.operator().start()
    here.apply(here.proxy(), here.route(), here.budget())
    here.until_condition("SpendBudget", "team", "Accepted", "True")
    here.until_condition("ModelRoute", "chat", "Programmed", "False", "NoProxies")
    patch = json.dumps({"status": {"effective": {"default": "gpt-9"}}})
    here.cluster.kubectl(
        "-n", here.namespace, "patch", "modelroute", "chat", "--subresource=status", "--type=merge", "-p", patch
    )

    def model() -> str:
        return str((here.get("ModelRoute", "chat") or {})["status"]["effective"]["default"])

    until(lambda: model() == "Qwen3-14B", "it says what is in force again")


def test_nothing_is_written_while_nothing_happens(here: World) -> None:
    """Writes that say nothing fill the API server's storage, and everybody's watches with it."""
    with gate(here.cluster) as between:
        here.operator(between.kubeconfig(here.path / "kubeconfig")).start()
        here.apply(here.proxy(), here.route(), here.budget())
        (proxy,) = here.proxies()
        here.until_condition("ModelRoute", "chat", "Ready", "True")
        assert proxy.chat()[0] == 200
        until(lambda: between.rests(15.0), f"nothing is written for 15 s; last were {between.writes[-5:]}", 90)


GUARDED = {"group": "stepdown.dev", "kind": "ModelRoute", "name": "guarded"}


def test_the_rights_that_are_shipped_are_enough(here: World) -> None:
    """All that an operator does, by a ServiceAccount with the roles of the chart: one right too few shows in production."""
    operator = here.operator(here.shipped_kubeconfig(), "--fleet-namespaces", here.namespace).start()
    account = {"serviceAccount": {"namespace": here.namespace, "name": "default"}}
    here.apply(here.proxy(), here.budget(limit="0.02"), here.route(), here.route("guarded", callers=[account]))
    here.apply(here.budget("mars", timeZone="Mars/Olympus", targetRefs=[GUARDED]))
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    until(lambda: "InvalidSpec" in here.events("mars"), "an Event")
    assert proxy.chat()[0] == 200
    here.cluster.kubectl("-n", here.namespace, "delete", "service/default")
    until(lambda: here.get(SERVICE, "default"), "the Service comes back")
    here.delete("ModelRoute", "guarded")
    until(lambda: len(here.shards()) == 1 or proxy.chat("guarded")[0] == 404, "the route is gone")
    assert not [line for line in operator.lines if "forbidden" in line.lower()], operator.text
