"""The operator when the API server is not what it should be: no CRDs, no rights, paused, killed. It says so, and recovers."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane

from stepdown.cluster.kinds import DEPLOYMENT, LEASE, SERVICE
from tests.cluster.gate import gate
from tests.cluster.operator_world import Object, World, install, until, world


@pytest.fixture
def here(own_cluster: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with world(own_cluster, tmp_path) as made:
        yield made


def test_an_operator_that_was_there_before_its_crds_says_so_and_begins_when_they_come(here: World) -> None:
    operator = here.operator().launch()
    line = operator.wait_for("there is no ModelRoute in the API server yet")
    assert "install the CRDs" in line
    assert operator.get("/healthz")[0] == 200
    assert operator.get("/readyz") == (503, "not everything has been listed yet\n")
    assert operator.stop() == 0, "nor does a rollout wait for them"
    operator = here.operator().launch()
    operator.wait_for("there is no ModelRoute in the API server yet")
    install(here.cluster)
    operator.wait_for('"event": "ready"')
    assert operator.get("/readyz")[0] == 200
    here.apply(here.proxy(), here.route())
    here.until_condition("ModelRoute", "chat", "Accepted", "True")
    assert len([each for each in operator.lines if "install the CRDs" in each and "ModelRoute" in each]) == 1


def test_proxies_are_answered_while_the_api_server_hangs_and_what_changed_is_caught_up_with(here: World) -> None:
    """Requests go on, money goes on being leased; and an operator that gave up its Lease would answer nobody."""
    install(here.cluster)
    operator = here.operator().start()
    here.apply(here.proxy(), here.route(), here.budget())
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    assert proxy.chat()[0] == 200  # A budget in use: its witness is ahead of it.
    here.cluster.pause("kube-apiserver")
    operator.wait_for("the lease is not renewed", timeout_s=30)
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s:
        assert proxy.chat()[0] == 200
        time.sleep(0.2)
    assert operator.get("/readyz")[0] == 200
    here.cluster.resume("kube-apiserver")
    operator.wait_for("the lease is renewed", timeout_s=40)
    here.apply(here.route("second", "Qwen3-8B"))
    here.until_condition("ModelRoute", "second", "Ready", "True", timeout_s=60)
    assert proxy.chat("second")[0] == 200


def test_an_api_server_that_was_killed_and_came_back_is_caught_up_with(here: World) -> None:
    install(here.cluster)
    operator = here.operator().start()
    here.apply(here.proxy(), here.route(), here.budget())
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    assert proxy.chat()[0] == 200
    here.cluster.stop_component("kube-apiserver")
    for _ in range(10):
        assert proxy.chat()[0] == 200
        time.sleep(0.2)
    here.cluster.start_component("kube-apiserver")
    here.delete("ModelRoute", "chat")
    here.apply(here.route("second", "Qwen3-8B"))
    here.until_condition("ModelRoute", "second", "Ready", "True", timeout_s=60)
    until(lambda: proxy.chat("chat")[0] == 404, "the deleted route is gone", 60)
    assert operator.process.poll() is None, operator.text


@pytest.mark.parametrize("status", [429, 500])
def test_an_api_server_that_refuses_everything_is_waited_for(here: World, status: int) -> None:
    """A storage that is full, a server that is overloaded: it passes, and nobody should have to restart anything."""
    install(here.cluster)
    with gate(here.cluster) as between:
        operator = here.operator(between.kubeconfig(here.path / "kubeconfig")).start()
        here.apply(here.proxy(), here.route())
        (proxy,) = here.proxies()
        here.until_condition("ModelRoute", "chat", "Ready", "True")
        between.fail(status)
        here.apply(here.route("second", "Qwen3-8B"))
        here.delete("ModelRoute", "chat")
        operator.wait_for("the lease is not renewed")
        assert proxy.chat()[0] == 200
        between.fail(0)
        here.until_condition("ModelRoute", "second", "Ready", "True", timeout_s=60)
        until(lambda: proxy.chat()[0] == 404, "the deleted route is gone", 60)
        assert operator.process.poll() is None, operator.text


def test_an_operator_whose_lease_another_has_ends(here: World) -> None:
    """Two that answer would be fenced by the ledger; two that write would undo each other's work for ever."""
    install(here.cluster)
    operator = here.operator().start()
    status, lease = here.cluster.request("GET", LEASE.path(here.namespace, "stepdown"))
    assert status == 200
    lease["spec"] |= {"holderIdentity": "another", "leaseDurationSeconds": 3600}
    until(lambda: taken(here, lease), "the Lease is another's")
    operator.wait_for("another replica has the lease", timeout_s=40)
    assert operator.process.wait(30) == 1


def taken(here: World, lease: Object) -> bool:
    """Against a holder that renews every two seconds."""
    path = LEASE.path(here.namespace, "stepdown")
    lease["metadata"]["resourceVersion"] = here.cluster.request("GET", path)[1]["metadata"]["resourceVersion"]
    return here.cluster.request("PUT", path, lease)[0] == 200


def test_rights_that_are_taken_away_are_named_and_once_back_all_is_made_up_for(here: World) -> None:
    install(here.cluster)
    rules = json.loads(here.cluster.kubectl("get", "clusterrole", "cluster-admin", "-o", "json"))["rules"]
    user = here.restricted_kubeconfig(rules)
    operator = here.operator(user).start()
    here.apply(here.proxy(), here.route())
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.grant([*READ_ONLY])
    here.cluster.kubectl("-n", here.namespace, "delete", "service/default")
    operator.wait_for("not everything could be applied", timeout_s=30)
    assert proxy.chat()[0] == 200
    here.grant(rules)
    until(lambda: here.get(SERVICE, "default"), "the Service is back", 60)
    until(lambda: here.get(DEPLOYMENT, "stepdown-default"), "the Deployment")
    operator.wait_for("everything is applied", timeout_s=60)


READ_ONLY = (
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["stepdown-witness"], "verbs": ["*"]},
)
