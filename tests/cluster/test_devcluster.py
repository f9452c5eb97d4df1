"""What the other tests of this folder stand on: a cluster comes in seconds, goes when told, leaves nothing when killed."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from devcluster import Cluster, ControlPlane, StartError, StateError, processes
from devcluster.cluster import ROOT


def eventually(true: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def nothing_left(state: Path) -> bool:
    return not state.exists() and not processes.mentioning(str(state))


def test_each_test_has_a_namespace_that_goes_with_it(cluster: Cluster, namespace: str, kubectl: Callable[..., str]) -> None:
    kubectl("create", "configmap", "one", "--from-literal=a=b", "-n", namespace)
    assert kubectl("get", "configmap", "one", "-n", namespace, "-o", "jsonpath={.data.a}") == "b"

    with cluster.namespace() as other:
        assert cluster.request("GET", f"/api/v1/namespaces/{other}/serviceaccounts/default")[0] == 200
    eventually(lambda: cluster.request("GET", f"/api/v1/namespaces/{other}")[0] == 404, "the namespace is gone")


def test_what_the_api_server_admits_is_judged_by_rbac(cluster: Cluster, namespace: str, kubectl: Callable[..., str]) -> None:
    who = f"system:serviceaccount:{namespace}:default"
    said = kubectl("auth", "can-i", "list", "secrets", "-n", namespace, "--as", who, check=False)
    assert said.strip() == "no"


def test_two_clusters_run_side_by_side(cluster: Cluster, own_cluster: ControlPlane) -> None:
    assert own_cluster.server != cluster.server
    own_cluster.kubectl("create", "namespace", "only-here")
    assert cluster.request("GET", "/api/v1/namespaces/only-here")[0] == 404


def test_its_parts_go_away_hang_and_come_back_as_they_were(own_cluster: ControlPlane) -> None:
    own_cluster.kubectl("create", "configmap", "kept", "-n", "default")
    server = own_cluster.server

    own_cluster.stop_component("kube-apiserver")
    with pytest.raises(ConnectionRefusedError):
        own_cluster.request("GET", "/version")
    own_cluster.start_component("kube-apiserver")
    assert own_cluster.server == server

    own_cluster.pause("kube-apiserver")
    with pytest.raises(TimeoutError):
        own_cluster.request("GET", "/version", timeout_s=0.5)
    own_cluster.resume("kube-apiserver")
    own_cluster.wait_ready()

    own_cluster.stop_component("etcd")
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, _ = own_cluster.request("GET", "/api/v1/namespaces/default/configmaps/kept", timeout_s=2.0)
        assert status != 200, "nothing can be read without etcd"
    own_cluster.start_component("etcd")
    assert own_cluster.request("GET", "/api/v1/namespaces/default/configmaps/kept")[0] == 200


def test_a_part_that_dies_by_itself_is_started_again(own_cluster: ControlPlane) -> None:
    (scheduler,) = (found for found in processes.mentioning(f"{own_cluster.state}/pki/kube-scheduler.kubeconfig"))
    scheduler.end()

    def another() -> bool:
        return any(found != scheduler for found in processes.mentioning(f"{own_cluster.state}/pki/kube-scheduler.kubeconfig"))

    eventually(another, "another scheduler")


def test_an_audit_policy_gives_a_log_of_requests(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n")
    with ControlPlane(audit_policy=policy) as audited:
        audited.kubectl("create", "configmap", "seen", "-n", "default")
        events = [json.loads(line) for line in audited.audit_log.read_text().splitlines()]
    names = {event["objectRef"].get("name") for event in events if event["verb"] == "create" and "objectRef" in event}
    assert "seen" in names


@pytest.mark.parametrize("victim", ["supervisor", "guard"])
def test_killing_it_leaves_nothing(victim: str) -> None:
    own = ControlPlane()
    state = own.state
    found = [process for process in processes.mentioning(str(state)) if f"devcluster.{victim}" in _arguments(process.pid)]
    assert len(found) == 1
    found[0].send(signal.SIGKILL)
    eventually(lambda: nothing_left(state), f"nothing is left of {state}")
    own.release()


def test_killing_who_holds_it_leaves_nothing(tmp_path: Path) -> None:
    held = tmp_path / "held"
    code = (
        "import pathlib, time, devcluster\n"
        "cluster = devcluster.ControlPlane()\n"
        f"pathlib.Path({str(held)!r}).write_text(str(cluster.state))\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as owner:
        eventually(lambda: held.exists() and held.read_text() != "", "the other process has a cluster", 60.0)
        state = Path(held.read_text())
        assert processes.mentioning(str(state))
        owner.kill()
    eventually(lambda: nothing_left(state), f"nothing is left of {state}")


def test_a_start_cleans_up_after_a_cluster_that_was_killed_with_its_guard(tmp_path: Path) -> None:
    own = ControlPlane()
    state = own.state
    ours = [process for process in processes.mentioning(str(state)) if "devcluster." in _arguments(process.pid)]
    for process in sorted(ours, key=lambda process: "devcluster.guard" not in _arguments(process.pid)):
        process.send(signal.SIGKILL)
    eventually(lambda: not processes.mentioning(str(state)), "all of its processes are gone")
    own.release()
    assert state.exists(), "nobody was there to remove it"

    with ControlPlane(state) as again:
        assert again.request("GET", "/readyz")[0] == 200
    eventually(lambda: nothing_left(state), f"nothing is left of {state}")


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StateError, match="other things"):
        ControlPlane(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="unknown flag: --no-such-flag"):
        ControlPlane(tmp_path / "c", apiserver_args=("--no-such-flag",))
    eventually(lambda: nothing_left(tmp_path / "c"), "nothing is left of it")


def test_the_command_keeps_a_cluster_until_it_is_told(tmp_path: Path) -> None:
    def devcluster(*arguments: str) -> str:
        command = [sys.executable, "-m", "devcluster", *arguments, "--state-dir", str(tmp_path / "c")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=90).stdout

    assert devcluster("up") == f"export KUBECONFIG={tmp_path / 'c' / 'kubeconfig'}\n"
    assert "control-plane at https://127.0.0.1:" in devcluster("status")
    assert "kube-system" in devcluster("kubectl", "get", "namespaces")
    devcluster("down")
    eventually(lambda: nothing_left(tmp_path / "c"), "nothing is left of it")


def _arguments(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""
