"""`kubectl stepdown` as people call it: kubectl finds it on PATH, and it reads a real API server with the caller's own rights.

There is no pod network at this size, so the operator's Service leads to this machine's own address.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, ControlPlane, binaries
from release import helm

from stepdown.model.money import nusd_to_usd
from tests.cluster.operator_world import Operator, World, free_port, install, until, world

BIN = Path(sys.executable).parent
VIEW, SPEND = "stepdown-view", "stepdown-view-spend"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as own:
        install(own)
        apply(own, [each for each in helm.objects() if each["metadata"]["name"] == VIEW])
        yield own


@pytest.fixture
def here(plane: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with world(plane, tmp_path) as made:
        yield made


def apply(plane: ControlPlane, objects: list[dict[str, Any]]) -> None:
    plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def own_address() -> str:
    """Of this machine, and not the loopback: the API server's proxy leads to none of those."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address: str = probe.getsockname()[0]
        return address


def reachable_operator(here: World) -> Operator:
    """Started, and behind the chart's Service as a pod is: the API server asks for one, with that address."""
    port, address, namespace = free_port(), own_address(), here.own_namespace
    service, role = (
        next(each for each in helm.objects() if (each["kind"], each["metadata"]["name"]) == wanted)
        for wanted in (("Service", "stepdown"), ("Role", SPEND))
    )
    del service["spec"]["selector"]
    for each in (service, role):
        each["metadata"]["namespace"] = namespace
    container = {"name": "operator", "image": "registry.example/stepdown:test"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stepdown-0", "namespace": namespace}}
    apply(here.cluster, [service, role, {**pod, "spec": {"containers": [container]}}])
    status = json.dumps({"status": {"podIP": address, "podIPs": [{"ip": address}]}})
    here.cluster.kubectl("patch", "pod/stepdown-0", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
    uid = here.cluster.kubectl("get", "pod/stepdown-0", "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    target = {"kind": "Pod", "name": "stepdown-0", "namespace": namespace, "uid": uid}
    subset = {"addresses": [{"ip": address, "targetRef": target}], "ports": [{"name": "http", "port": port}]}
    metadata = {"name": "stepdown", "namespace": namespace}
    apply(here.cluster, [{"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]}])
    return here.operator(None, "--http", f"0.0.0.0:{port}").start()


def run(cluster: Cluster, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`kubectl …`, with the plugin on PATH."""
    environment = cluster.environment() | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    if kubeconfig is not None:
        environment["KUBECONFIG"] = str(kubeconfig)
    command = [str(binaries.kubectl()), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def plugin(here: World, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`kubectl stepdown …` in the test's namespace."""
    where = ("-n", here.namespace, "--operator-namespace", here.own_namespace)
    return run(here.cluster, "stepdown", *arguments, *where, kubeconfig=kubeconfig)


def told(here: World, *arguments: str, kubeconfig: Path | None = None) -> Any:
    """What it prints with -o json, and nothing on stderr."""
    done = plugin(here, *arguments, "-o", "json", kubeconfig=kubeconfig)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def status_of(here: World, kind: str) -> dict[str, Any]:
    (found,) = (each for each in told(here, "status")["items"] if each["kind"] == kind)
    status: dict[str, Any] = found["status"]
    return status


def test_it_tells_the_money_of_this_moment_to_the_nano_dollar(here: World) -> None:
    """A budget's status may be ten seconds old, a route's a minute: too old for who watches a budget run out."""
    reachable_operator(here)
    here.apply(here.proxy(), here.budget(limit="0.05"), here.route())
    (proxy,) = here.proxies()
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    for _ in range(5):
        status, _, answer = proxy.chat(messages=[{"role": "user", "content": "word " * 1500}])
        assert status == 200, answer
    bill = nusd_to_usd(here.simulator.final_bill()["total_nusd"])
    until(lambda: status_of(here, "SpendBudget")["spentUSD"] == bill, "the live figure is the upstream's bill", 10)
    assert status_of(here, "ModelRoute")["spend"]["usd"] == bill
    (row,) = told(here, "report", "month")["rows"]
    assert (row["route"], row["requests"], row["costUSD"]) == (f"{here.namespace}/chat", 5, bill)
    assert told(here, "report", "savings", "--baseline", "GPT-4o")["total"]["costUSD"] == bill
    here.cluster.kubectl("label", "mroute", "chat", "stepdown.dev/purchase-order=4711", "-n", here.namespace)
    until(lambda: told(here, "statement")["lines"][0]["purchaseOrder"] == "4711", "the label is booked", 10)
    statement = told(here, "statement", "--by", "route")
    assert (statement["totalUSD"], [each["differenceUSD"] for each in statement["budgets"]]) == (bill, ["0.00"])
    table = plugin(here, "status").stdout
    assert "Money, now" in table and bill in table
    default = told(here, "explain", "chat")["classes"]["default"]
    assert (default["inForce"]["upstreamId"], default["reason"]) == ("Qwen3-14B", "Wanted")


def test_it_explains_the_step_in_force(here: World) -> None:
    """Why did my request get this model? The answer is the one that the proxy gave."""
    reachable_operator(here)
    here.apply(here.proxy(), here.budget(limit="0.02"), here.route())
    (proxy,) = here.proxies()
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    wordy = [{"role": "user", "content": "word " * 1500}]
    until(lambda: proxy.chat(messages=wordy)[1].get("x-stepdown-reason") == "StepInForce", "the step is in force")
    found = told(here, "explain", "chat")
    default = found["classes"]["default"]
    assert default["reason"] == "StepInForce" and default["budget"] == f"{here.namespace}/team"
    assert default["inForce"]["upstreamId"] == proxy.chat(messages=wordy)[1]["x-stepdown-model"]
    here.until_condition("ModelRoute", "chat", "SteppedDown", "True")
    assert status_of(here, "ModelRoute")["effective"]["default"] == default["inForce"]["upstreamId"]


def test_it_reads_with_the_caller_s_own_rights(here: World) -> None:
    """Who may see a namespace sees it, coarsely; the live figures are a right of their own, and no more than that."""
    reachable_operator(here)
    here.apply(here.proxy(), here.budget(), here.route())
    here.until_condition("SpendBudget", "team", "Accepted", "True")
    dana = person(here, "dana")
    stranger = plugin(here, "status", kubeconfig=dana)
    assert stranger.returncode == 5 and "have somebody bind the ClusterRole stepdown-view to you" in stranger.stderr
    bind(here, "dana", f"clusterrole={VIEW}")
    coarse = until(lambda: _ok(plugin(here, "status", kubeconfig=dana)), "dana may see the namespace")
    assert "Money, as last written" in coarse.stdout and f"have the Role {SPEND} in {here.own_namespace} bound" in coarse.stderr
    explained = plugin(here, "explain", "chat", kubeconfig=dana)
    assert explained.returncode == 0 and "you may not list ModelCatalogs" in explained.stderr, explained.stderr
    assert plugin(here, "report", "month", kubeconfig=dana).returncode == 5
    bind(here, "dana", f"role={SPEND}")
    until(lambda: "Money, now" in plugin(here, "status", kubeconfig=dana).stdout, "dana may ask the operator")
    assert plugin(here, "report", "month", kubeconfig=dana).returncode == 0
    everything = plugin(here, "status", "-A", kubeconfig=dana)
    assert everything.returncode == 2, "-n and -A exclude each other"
    raw = f"/api/v1/namespaces/{here.own_namespace}/services/stepdown:sync/proxy/"
    assert "forbidden" in run(here.cluster, "get", "--raw", raw, kubeconfig=dana).stderr.lower()


def test_it_goes_on_without_the_operator_and_says_so(here: World) -> None:
    """That is when people ask most."""
    operator = reachable_operator(here)
    here.apply(here.proxy(), here.budget(), here.route())
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    operator.stop()
    done = plugin(here, "status")
    assert done.returncode == 0 and "Money, as last written" in done.stdout
    assert f"the operator in {here.own_namespace} does not answer" in done.stderr
    explained = plugin(here, "explain", "chat")
    assert explained.returncode == 0 and "Class default: Qwen3-14B" in explained.stdout, explained.stderr
    report = plugin(here, "report", "month")
    assert report.returncode == 5 and "a report is made of the operator's ledger" in report.stderr


def test_kubectl_finds_it_completes_it_and_hands_on_its_exit_code(here: World) -> None:
    here.apply(here.route())
    assert "kubectl-stepdown" in run(here.cluster, "plugin", "list").stdout
    assert run(here.cluster, "stepdown", "status", "--help").stdout.startswith("Usage: kubectl stepdown status")
    offered = run(here.cluster, "__complete", "stepdown", "explain", "-n", here.namespace, "").stdout
    assert offered.splitlines() == ["chat", ":4"]
    typo = plugin(here, "explain", "caht")
    assert typo.returncode == 1 and f"the nearest: {here.namespace}/chat" in typo.stderr


def test_a_cluster_without_the_kinds(own_cluster: ControlPlane) -> None:
    """What a new user sees who forgot the chart."""
    done = run(own_cluster, "stepdown", "status")
    assert done.returncode == 5 and "Stepdown's kinds are not in this cluster" in done.stderr, done.stderr


def _ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    return done if done.returncode == 0 else None


def person(here: World, name: str) -> Path:
    """A kubeconfig of somebody without any right."""
    here.cluster.kubectl("create", "serviceaccount", name, "-n", here.namespace)
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": name, "namespace": here.namespace}}],
        "clusters": [{"name": "c", "cluster": {"server": here.cluster.server, "certificate-authority": str(here.cluster.ca)}}],
        "users": [
            {"name": name, "user": {"token": here.cluster.kubectl("create", "token", name, "-n", here.namespace).strip()}}
        ],
    }
    path = here.path / f"{name}.kubeconfig"
    path.write_text(json.dumps(content))
    return path


def bind(here: World, name: str, role: str) -> None:
    """`role`: `role=NAME` or `clusterrole=NAME`, in the test's namespace alone."""
    subject = f"--serviceaccount={here.namespace}:{name}"
    binding = f"{name}-{role.partition('=')[2]}"
    here.cluster.kubectl("create", "rolebinding", binding, f"--{role}", subject, "-n", here.namespace)
