"""The operator when the API server is not what it should be: no CRDs, no rights, paused, killed. It says so, and recovers."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane

from stepdown.cluster.kinds import DEPLOYMENT, SERVICE
from tests.cluster.operator_world import World, install, until, world


@pytest.fixture
def here(own_cluster: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with world(own_cluster, tmp_path) as made:
        yield made


def test_an_operator_that_was_there_before_its_crds_says_so_and_begins_when_they_come(here: World) -> None:
    operator = here.operator().launch()
    line = operator.wait_for("install the CRDs")
    assert "there is no ModelRoute in the API server yet" in line
    assert operator.get("/healthz")[0] == 200
    assert operator.get("/readyz") == (503, "not everything has been listed yet\n")
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
