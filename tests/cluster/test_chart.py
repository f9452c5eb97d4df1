"""The chart on a real API server, through Helm's own code: install, upgrade, rollback, uninstall, and who may do what after it.

No node here, so no pod ever becomes ready: which is what a bad upgrade looks like, and what a rollback has to cope with. Each
test has a control plane of its own, since CRDs and ClusterRoles are the whole cluster's.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from devcluster import ControlPlane
from release import helm

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / "tests" / "golden" / "chart" / "options.in.yaml"
OPERATOR = f"system:serviceaccount:{helm.NAMESPACE}:stepdown"
CRDS = {"modelcatalogs.stepdown.dev", "modelroutes.stepdown.dev", "routingproxies.stepdown.dev", "spendbudgets.stepdown.dev"}

ROUTE = """
apiVersion: stepdown.dev/v1alpha1
kind: ModelRoute
metadata: {name: analyze, namespace: stepdown-system}
spec:
  models: {default: deepseek-v4-flash}
"""


class Installed:
    """The chart on one control plane. Each call is one run of Helm."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.cluster = cluster
        for namespace in (helm.NAMESPACE, "shop", "search"):
            self.kubectl("create", "namespace", namespace)
        # All of it must be admitted where the strictest profile is enforced.
        self.kubectl("label", "namespace", helm.NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl(*arguments, stdin=stdin, check=check)

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def names(self, *arguments: str) -> set[str]:
        return set(self.kubectl("get", *arguments, "-o", 'jsonpath={range .items[*]}{.metadata.name}{"\\n"}{end}').split())

    def admitted(self) -> int:
        """How many pods of its Deployment there are."""
        found: int = self.get("deployment", "stepdown", "-n", helm.NAMESPACE)["status"].get("updatedReplicas", 0)
        return found

    def install(self, values: dict[str, Any] | None = None, *, namespace: str = helm.NAMESPACE, name: str = helm.NAME) -> None:
        with self._helm(namespace) as config:
            config.install(helm.CHART, name, values or {}, timeout=60)

    def upgrade(self, values: dict[str, Any] | None = None, *, chart: Path = helm.CHART) -> None:
        with self._helm() as config:
            config.upgrade(chart, helm.NAME, values or {}, timeout=60)

    def rollback(self, version: int) -> None:
        with self._helm() as config:
            config.rollback(helm.NAME, version=version, timeout=60)

    def uninstall(self) -> None:
        with self._helm() as config:
            config.uninstall(helm.NAME, timeout=60)

    def _helm(self, namespace: str = helm.NAMESPACE) -> helm_python.Config:
        return helm_python.Config(kubeconfig_path=self.cluster.kubeconfig, namespace=namespace)

    def may(self, who: str, verb: str, what: str, namespace: str = "") -> bool:
        """`what`: plural.group/subresource#name, as far as it goes, or a path. No namespace: in all of them."""
        asked: dict[str, Any] = {"user": who, "groups": ["system:authenticated"]}
        if what.startswith("/"):
            asked["nonResourceAttributes"] = {"verb": verb, "path": what}
        else:
            rest, _, name = what.partition("#")
            rest, _, subresource = rest.partition("/")
            resource, _, group = rest.partition(".")
            asked["resourceAttributes"] = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
            asked["resourceAttributes"] |= {"name": name, "subresource": subresource}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        status, answer = self.cluster.request("POST", path, {"spec": asked})
        assert status == 201, answer
        return bool(answer["status"]["allowed"])


@pytest.fixture
def chart(own_cluster: ControlPlane) -> Iterator[Installed]:
    yield Installed(own_cluster)


def eventually(true: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


def image_of_the_pod(chart: Installed) -> str:
    found = chart.kubectl(
        "get", "pod", "stepdown-0", "-n", helm.NAMESPACE, "-o", "jsonpath={.spec.containers[0].image}", check=False
    )
    return found.strip()


def chart_of_version(folder: Path, version: str) -> Path:
    """The next release: another image, and a CRD with one more field."""
    with helm_python.Chart.load(helm.CHART) as loaded:
        copied = Path(loaded.save_dir(folder))
    declared = copied / "Chart.yaml"
    declared.write_text(re.sub(r"(?m)^(version|appVersion): .*$", rf"\1: {version}", declared.read_text()))
    crd = copied / "templates" / "crds" / "modelroutes.yaml"
    first, text, last = re.split(r"(?m)^(?=# Generated)|^(?=\{\{- end)", crd.read_text())
    document = yaml.safe_load(text)
    spec = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["later"] = {"type": "string", "maxLength": 10}
    crd.write_text(first + yaml.safe_dump(document) + last)
    return copied


def test_a_life_of_a_release(chart: Installed, tmp_path: Path) -> None:
    """Install, a bad upgrade, back, uninstall, install again: no object of a user is lost, and no step gets stuck."""
    chart.install()
    eventually(lambda: image_of_the_pod(chart) == "stepdown:0.1.0", "the operator's pod is admitted")
    chart.kubectl("apply", "-f", "-", stdin=ROUTE)
    claim = chart.get("pvc", "ledger-stepdown-0", "-n", helm.NAMESPACE)["metadata"]["uid"]

    chart.upgrade(chart=chart_of_version(tmp_path, "9.9.9"))
    eventually(lambda: image_of_the_pod(chart) == "stepdown:9.9.9", "a pod that never became ready is replaced by the upgrade")
    chart.kubectl("patch", "mroute", "analyze", "-n", helm.NAMESPACE, "--type=merge", "-p", '{"spec": {"later": "soon"}}')
    assert chart.get("mroute", "analyze", "-n", helm.NAMESPACE)["spec"]["later"] == "soon", (
        "the CRD was upgraded with the chart"
    )

    chart.rollback(1)
    eventually(lambda: image_of_the_pod(chart) == "stepdown:0.1.0", "a pod that never became ready is replaced by the rollback")
    assert chart.get("mroute", "analyze", "-n", helm.NAMESPACE)["spec"]["models"]["default"] == "deepseek-v4-flash"

    chart.uninstall()
    eventually(lambda: image_of_the_pod(chart) == "", "the operator is gone")
    assert chart.names("crd") >= CRDS
    assert chart.names("mroute", "-n", helm.NAMESPACE) == {"analyze"}
    assert not {name for name in chart.names("clusterroles") if name.startswith("stepdown")}

    chart.install()
    eventually(lambda: image_of_the_pod(chart) == "stepdown:0.1.0", "the operator is back")
    assert chart.get("pvc", "ledger-stepdown-0", "-n", helm.NAMESPACE)["metadata"]["uid"] == claim, (
        "with the ledger that it had"
    )


def test_an_api_server_takes_every_option(chart: Installed) -> None:
    """A field that Kubernetes does not know, or not so, would be found by whoever needs the option."""
    values = yaml.safe_load(OPTIONS.read_text())
    # What other projects' CRDs are for is left out: they are not here.
    del values["metrics"], values["tls"]
    chart.install(values)
    pod = chart.get("statefulset", "stepdown", "-n", helm.NAMESPACE)["spec"]["template"]
    assert pod["spec"]["priorityClassName"] == "system-cluster-critical"
    eventually(lambda: image_of_the_pod(chart).startswith("images.internal:5000/"), "the pod is admitted")
    assert chart.names("roles", "-n", "shop") == chart.names("roles", "-n", "search") == {"stepdown-fleet"}


def test_from_the_volume_into_a_database_and_back(chart: Installed) -> None:
    """The one operator becomes several, under the strictest Pod Security; the volume with what was spent stays where it was."""
    chart.install()
    eventually(lambda: image_of_the_pod(chart) == "stepdown:0.1.0", "the operator's pod is admitted")
    claim = chart.get("pvc", "ledger-stepdown-0", "-n", helm.NAMESPACE)["metadata"]["uid"]
    for name in ("postgresql", "postgresql-password"):
        values = yaml.safe_load((OPTIONS.parent / f"{name}.in.yaml").read_text())
        chart.upgrade(values)
        wanted = values.get("replicas", 1)
        eventually(lambda wanted=wanted: chart.admitted() == wanted, f"{wanted} pods are admitted")
        assert (chart.names("deployments", "-n", helm.NAMESPACE), chart.names("statefulsets", "-n", helm.NAMESPACE)) == (
            {"stepdown"},
            set(),
        )
        assert chart.names("pdb", "-n", helm.NAMESPACE) == ({"stepdown"} if wanted > 1 else set())
    chart.rollback(1)
    eventually(lambda: image_of_the_pod(chart) == "stepdown:0.1.0", "the one operator is back")
    assert chart.names("deployments", "-n", helm.NAMESPACE) == set()
    assert chart.get("pvc", "ledger-stepdown-0", "-n", helm.NAMESPACE)["metadata"]["uid"] == claim


def test_a_routing_proxy_comes_with_the_release_once_its_kind_is_there(chart: Installed) -> None:
    """Helm would otherwise stop half way, with "no matches for kind", and what to do next is anybody's guess."""
    with pytest.raises(helm_python.HelmError, match=r"Install without proxy.create, then run `helm upgrade` with it"):
        chart.install({"proxy": {"create": True}})
    assert not chart.names("crd") & CRDS
    chart.install()
    chart.upgrade({"proxy": {"create": True}})
    assert chart.names("rproxy", "-n", helm.NAMESPACE) == {"default"}
    chart.rollback(1)
    assert chart.names("rproxy", "-n", helm.NAMESPACE) == set()
    chart.upgrade({"crds": {"install": False}})
    assert chart.names("crd") >= CRDS, "and leaving the CRDs to somebody else does not delete them"


def test_a_second_operator_is_refused(chart: Installed) -> None:
    """Two of them would write the same statuses, each with a ledger of its own."""
    chart.install()
    with pytest.raises(helm_python.HelmError, match="exists and cannot be imported"):
        chart.install(namespace="shop", name="another")
    assert not chart.names("statefulsets", "-n", "shop")


def test_what_the_operator_may_do(chart: Installed) -> None:
    """As the API server judges it: enough for its work in the fleets' namespaces, nothing in the others, no Secret anywhere."""
    chart.install({"fleetNamespaces": ["shop"]})
    for verb in ("get", "list", "watch", "create", "patch", "delete"):
        assert chart.may(OPERATOR, verb, "deployments.apps", "shop"), verb
        assert not chart.may(OPERATOR, verb, "deployments.apps", "search"), verb
        assert not chart.may(OPERATOR, verb, "deployments.apps", helm.NAMESPACE), verb
        for namespace in ("shop", "search", helm.NAMESPACE, ""):
            assert not chart.may(OPERATOR, verb, "secrets", namespace), f"{verb} secrets in {namespace or 'all'}"
    for verb, resource in (
        ("list", "modelroutes.stepdown.dev"),
        ("patch", "modelroutes.stepdown.dev/status"),
        ("watch", "namespaces"),
        ("create", "events"),
        ("create", "tokenreviews.authentication.k8s.io"),
        ("get", "/openid/v1/jwks"),
    ):
        assert chart.may(OPERATOR, verb, resource), f"{verb} {resource}"
    for verb, resource in (("patch", "modelroutes.stepdown.dev"), ("update", "spendbudgets.stepdown.dev"), ("create", "pods")):
        assert not chart.may(OPERATOR, verb, resource), f"{verb} {resource}"
    for verb, resource, allowed in (
        ("update", "leases.coordination.k8s.io#stepdown", True),
        ("update", "leases.coordination.k8s.io#another", False),
        ("update", "configmaps#stepdown-witness", True),
        ("update", "configmaps#another", False),
        ("create", "leases.coordination.k8s.io", True),
    ):
        assert chart.may(OPERATOR, verb, resource, helm.NAMESPACE) is allowed, f"{verb} {resource}"


def test_what_people_may_do(chart: Installed) -> None:
    """By the roles that Kubernetes has: a developer routes, and cannot give themselves a larger budget."""
    chart.install()
    for who, role in (("dev", "edit"), ("lead", "admin"), ("guest", "view"), ("finance", "stepdown-admin")):
        chart.kubectl("create", "rolebinding", who, f"--clusterrole={role}", f"--user={who}", "-n", "shop")
    eventually(lambda: chart.may("dev", "create", "modelroutes.stepdown.dev", "shop"), "the roles are aggregated")
    eventually(lambda: chart.may("guest", "get", "spendbudgets.stepdown.dev", "shop"), "the roles are aggregated")
    wanted = {
        "dev": {"modelroutes"},
        "lead": {"modelroutes"},
        "guest": set(),
        "finance": {"modelroutes", "spendbudgets", "routingproxies"},
    }
    for who, writes in wanted.items():
        for kind in ("modelroutes", "spendbudgets", "routingproxies"):
            assert chart.may(who, "get", f"{kind}.stepdown.dev", "shop"), f"{who} sees {kind}"
            for verb in ("create", "patch", "delete"):
                assert chart.may(who, verb, f"{kind}.stepdown.dev", "shop") is (kind in writes), f"{who}: {verb} {kind}"
            assert not chart.may(who, "patch", f"{kind}.stepdown.dev/status", "shop"), f"{who} writes no status"
