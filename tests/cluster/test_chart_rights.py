"""The operator at work with the rights that the chart gives it, and no others: the API server's audit log is the witness."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from devcluster import ControlPlane
from release import helm

from stepdown.cluster.kinds import CONFIG_MAP, DEPLOYMENT, SERVICE
from tests.cluster.operator_world import World, until, world

_READING = ("get", "list", "watch")
USER = f"system:serviceaccount:{helm.NAMESPACE}:stepdown"
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    """A cluster on which the chart is installed, with a fleet's namespace that the chart was told of."""
    policy = tmp_path / "audit.yaml"
    policy.write_text(yaml.safe_dump(AUDIT))
    with ControlPlane(audit_policy=policy) as cluster:
        cluster.kubectl("create", "namespace", helm.NAMESPACE)
        with world(cluster, tmp_path) as made:
            # 0: the operator is a process of this test, with the ServiceAccount's token.
            values = {"replicas": 0, "fleetNamespaces": [made.namespace]}
            with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=helm.NAMESPACE) as release:
                release.install(helm.CHART, helm.NAME, values, timeout=60)
            cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            made.own_namespace = helm.NAMESPACE
            yield made


def as_the_operator(cluster: ControlPlane, path: Path) -> Path:
    """A kubeconfig with the token of the chart's ServiceAccount."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", "stepdown", "-n", helm.NAMESPACE).strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    made = path / "operator.kubeconfig"
    made.write_text(yaml.safe_dump(config))
    return made


def requests(here: World) -> list[dict[str, Any]]:
    """What the operator asked, as the API server wrote it down when it answered."""
    lines = here.cluster.audit_log.read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["stage"] == "ResponseComplete"]


def test_they_are_enough_for_all_that_it_does(here: World, tmp_path: Path) -> None:
    """A missing right is found by whoever installs the chart, when a fleet does not come up or a status stays Unknown."""
    kubeconfig = as_the_operator(here.cluster, tmp_path)
    operator = here.operator(kubeconfig, "--fleet-namespaces", here.namespace).start()
    scaled = {"minReplicas": 2, "maxReplicas": 3}
    here.apply(here.proxy(autoscaling=scaled), here.budget(limit="0.0001"), here.route())
    first, second = here.proxies(2)
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("RoutingProxy", "default", "Ready", "True")
    assert (first.chat()[0], second.chat()[0]) == (200, 200)
    until(lambda: (second.chat(), here.events("team"))[1], "an Event: half of the budget is spent")
    # A child that somebody deletes comes back; one that is no longer wanted goes.
    here.cluster.request("DELETE", SERVICE.path(here.namespace, "default"))
    until(lambda: here.get(SERVICE, "default"), "the Service is back")
    here.apply(here.proxy(replicas=1))
    here.delete("ModelRoute", "chat")
    until(lambda: not _shards(here), "the shard of a route that is gone goes")
    assert operator.stop() == 0, operator.text

    asked = requests(here)
    refused = [each for each in asked if each["responseStatus"]["code"] in (401, 403)]
    assert not refused, [(each["verb"], each["requestURI"]) for each in refused]
    written = {_what(each) for each in asked if each["verb"] not in _READING}
    assert {"modelroutes/status", "spendbudgets/status", "deployments", "leases", "events", "tokenreviews"} <= written
    assert "secrets" not in {_what(each) for each in asked}


def test_a_routing_proxy_elsewhere_is_told_so(here: World, tmp_path: Path) -> None:
    """In a namespace that the chart was not told of nothing is written, and the RoutingProxy says why."""
    operator = here.operator(as_the_operator(here.cluster, tmp_path), "--fleet-namespaces", here.namespace).start()
    listed = here.namespace
    with here.cluster.namespace("other") as other:
        here.namespace = other
        here.apply(here.proxy())
        here.until_condition("RoutingProxy", "default", "Accepted", "False", "NotAllowed")
        until(lambda: "InvalidSpec" in here.events("default"), "an Event says so")
        assert here.get(DEPLOYMENT, "stepdown-default") is None
        here.namespace = listed
    assert operator.stop() == 0
    there = [each for each in requests(here) if each.get("objectRef", {}).get("namespace") == other]
    assert {_what(each) for each in there if each["verb"] not in _READING} == {"routingproxies/status", "events"}


def _what(request: dict[str, Any]) -> str:
    found = request.get("objectRef", {})
    return "/".join(each for each in (found.get("resource", request["requestURI"]), found.get("subresource", "")) if each)


def _shards(here: World) -> list[str]:
    names = [each["metadata"]["name"] for each in here.all(CONFIG_MAP, "stepdown.dev/proxy=default")]
    return [name for name in names if "-shard-" in name]
