"""Every manifest, applied server-side to a real API server, as docs/install.md tells people to.

Argo CD's Application alone is not here: its kind is Argo CD's own.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane
from release import helm

MANIFESTS = Path(__file__).parents[2] / "manifests"
INSTALL = MANIFESTS.parent / "docs" / "install.md"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


class Applied:
    """An API server with the CRDs and the operator's objects on it."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.kubectl = cluster.kubectl
        self.kubectl("create", "namespace", helm.NAMESPACE)
        self.kubectl("label", "namespace", helm.NAMESPACE, RESTRICTED)
        self.apply("-k", "crds")
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        self.apply("-k", "base")

    def apply(self, how: str, path: str, *more: str, server_side: bool = True) -> str:
        return self.kubectl("apply", *(["--server-side"] if server_side else []), how, str(MANIFESTS / path), *more)

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return found


@pytest.fixture(scope="module")
def applied() -> Iterator[Applied]:
    """One control plane for all of them: each test has kinds or a namespace of its own."""
    with ControlPlane() as cluster:
        yield Applied(cluster)


def test_applied_again_nothing_changes(applied: Applied) -> None:
    """A field that the API server writes otherwise is a difference for ever: Argo CD would sync without end."""
    for folder in ("crds", "base"):
        said = applied.apply("-k", folder, "--show-managed-fields", "-o", "json")
        before = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in _items(said)}
        again = applied.apply("-k", folder, "--show-managed-fields", "-o", "json")
        assert {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in _items(again)} == before
        assert applied.kubectl("diff", "--server-side", "-k", str(MANIFESTS / folder)) == ""


def test_the_samples_and_the_price_list(applied: Applied) -> None:
    """The first thing that people apply."""
    applied.apply("-f", "argocd/policy/namespace.yaml")
    applied.apply("-k", "samples")
    applied.apply("-f", "catalog/global-apis.yaml")
    assert len(applied.objects("mroute", "-n", "stepdown-demo")) == 3
    assert {each["metadata"]["name"] for each in applied.objects("mcatalog")} == {"example-prices", "global-apis"}
    # As the CRD says it of every object that no operator has looked at.
    (proxy,) = applied.objects("rproxy", "-n", "stepdown-demo")
    assert [(each["type"], each["status"]) for each in proxy["status"]["conditions"]] == [("Ready", "Unknown")]


def test_the_waves_of_argo_cd(applied: Applied) -> None:
    """What Argo CD would apply, in one go."""
    applied.apply("-k", "argocd/policy")
    waves = {
        each["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"] for each in applied.objects("mroute,spend,rproxy", "-A")
    }
    assert waves == {"1", "2"}


def test_a_fleet_in_one_more_namespace(applied: Applied) -> None:
    """`kubectl apply -n shop -k manifests/fleet`."""
    applied.kubectl("create", "namespace", "shop")
    applied.apply("-k", "fleet", "-n", "shop")
    who = f"system:serviceaccount:{helm.NAMESPACE}:stepdown"
    assert applied.kubectl("auth", "can-i", "create", "deployments.apps", "-n", "shop", "--as", who).strip() == "yes"
    assert applied.kubectl("auth", "can-i", "get", "secrets", "-n", "shop", "--as", who, check=False).strip() == "no"


def test_argo_cd_s_own_settings_are_left_alone(applied: Applied) -> None:
    """Its ConfigMap holds the whole of Argo CD's settings: one that was replaced logs everybody out."""
    applied.kubectl("create", "namespace", "argocd")
    applied.kubectl("create", "configmap", "argocd-cm", "-n", "argocd", "--from-literal=url=https://argocd.example.com")
    applied.apply("-f", "argocd/argocd-cm.yaml", "--field-manager=stepdown")
    data = json.loads(applied.kubectl("get", "configmap", "argocd-cm", "-n", "argocd", "-o", "json"))["data"]
    assert data.pop("url") == "https://argocd.example.com"
    assert sorted(data) == sorted(f"resource.customizations.health.stepdown.dev_{kind}" for kind in _KINDS)


def test_the_operator_s_pod_is_admitted_where_the_strictest_profile_is_enforced(applied: Applied) -> None:
    """Otherwise the StatefulSet says so in an Event that nobody reads, and there is no operator."""
    applied.kubectl("wait", "--for=create", "pod/stepdown-0", "-n", helm.NAMESPACE, "--timeout=30s")


def test_a_kustomization_as_the_documentation_has_it(applied: Applied, tmp_path: Path) -> None:
    """People copy it. If the proxies' image is not the one that was set, no proxy ever starts."""
    first, second = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(# mine/.*?)```", INSTALL.read_text(), re.DOTALL))
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(first | second))
    made = list(yaml.safe_load_all(applied.kubectl("kustomize", str(mine))))
    (container,) = next(each for each in made if each["kind"] == "StatefulSet")["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in container["env"]}
    assert container["image"] == "registry.example.com/platform/stepdown:0.1.0"
    assert environment["STEPDOWN_IMAGE"]["value"] == container["image"]
    assert environment["STEPDOWN_FLEET_NAMESPACES"] == {"name": "STEPDOWN_FLEET_NAMESPACES", "value": "shop,search"}
    applied.kubectl("apply", "--server-side", "-k", str(mine))


_KINDS = ("ModelCatalog", "ModelRoute", "RoutingProxy", "SpendBudget")


def _items(said: str) -> list[dict[str, Any]]:
    decoder, found, rest = json.JSONDecoder(), [], said.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found += document["items"] if document["kind"] == "List" else [document]
        rest = rest[end:].strip()
    return found
