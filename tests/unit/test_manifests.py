"""The manifests for those who do not use Helm. If these fail, kubectl and Argo CD install something else than Helm does.

That a real API server takes them is tested in tests/cluster/test_manifests.py.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from release import helm, manifests

MANIFESTS = manifests.MANIFESTS
WAVE = "argocd.argoproj.io/sync-wave"


def documents(folder: str) -> list[dict[str, Any]]:
    return [
        document
        for path in sorted((MANIFESTS / folder).glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


@pytest.mark.parametrize(
    ("folder", "texts"), [("base", manifests.base()), ("fleet", manifests.fleet()), ("crds", manifests.crds())]
)
def test_what_is_committed_is_what_the_chart_says(folder: str, texts: dict[str, str]) -> None:
    """`make generate` writes them."""
    assert {path.name for path in (MANIFESTS / folder).iterdir()} == set(texts)
    for name, text in texts.items():
        assert (MANIFESTS / folder / name).read_text().endswith(text), f"{folder}/{name}: run `make generate`"
    assert (MANIFESTS / "argocd" / "argocd-cm.yaml").read_text() == manifests.argocd_cm()


def test_the_base_is_the_chart_without_what_is_helm_s() -> None:
    """The same operator, whoever installs it."""

    def without(node: Any) -> Any:
        if isinstance(node, dict):
            dropped = ("helm.sh/chart", "app.kubernetes.io/managed-by")
            return {key: without(each) for key, each in node.items() if key not in dropped}
        return [without(each) for each in node] if isinstance(node, list) else node

    wanted = [without(each) for each in helm.objects({"crds": {"install": False}})]
    assert sorted(map(str, documents("base"))) == sorted(map(str, wanted))
    assert "elm" not in "".join(map(str, documents("base") + documents("fleet")))


@pytest.mark.parametrize("folder", ["base", "fleet"])
def test_deleting_it_deletes_no_object_of_a_user(folder: str) -> None:
    """`kubectl delete -k` takes with a CRD all its objects, and with a namespace the volume of the ledger."""
    assert not {each["kind"] for each in documents(folder)} & {"CustomResourceDefinition", "Namespace", "PersistentVolumeClaim"}


def test_a_fleet_s_rights_go_into_the_namespace_that_is_named() -> None:
    """`kubectl apply -n shop -k manifests/fleet`, and the operator of stepdown-system may write there."""
    role, binding = documents("fleet")
    assert role["rules"] == next(each["rules"] for each in documents("base") if each["metadata"]["name"] == "stepdown-fleet")
    assert "namespace" not in role["metadata"] and "namespace" not in binding["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "stepdown", "namespace": helm.NAMESPACE}]


def test_the_waves_of_argo_cd_come_in_order() -> None:
    """A RoutingProxy before its CRD is an error; a route before its proxy is red for no reason."""
    policy = yaml.safe_load((MANIFESTS / "argocd" / "policy" / "kustomization.yaml").read_text())
    waves = {
        kind: int(yaml.safe_load(each["patch"])["metadata"]["annotations"][WAVE])
        for each in policy["patches"]
        for kind in each["target"]["kind"].split("|")
    }
    chart = {int(each["metadata"].get("annotations", {}).get(WAVE, 0)): each["kind"] for each in helm.objects()}
    assert chart[-1] == "CustomResourceDefinition" and set(chart) == {-1, 0}
    assert waves == {"Namespace": -1, "ModelCatalog": 1, "RoutingProxy": 1, "ModelRoute": 2, "SpendBudget": 2}


def test_the_application_installs_the_chart_and_lets_the_fleet_run_where_its_policy_is() -> None:
    """Another release's name breaks selectors where Argo CD tracks by label; another namespace is refused by the operator."""
    application = yaml.safe_load((MANIFESTS / "argocd" / "application.yaml").read_text())
    chart, policy = application["spec"]["sources"]
    assert chart["helm"]["releaseName"] == application["metadata"]["name"] == helm.NAME
    assert application["spec"]["destination"]["namespace"] == helm.NAMESPACE
    for source in (chart, policy):
        assert (manifests.ROOT / source["path"]).is_dir()
    helm.objects(chart["helm"]["valuesObject"])
    fleets = {each["metadata"]["namespace"] for each in documents("samples") if each["kind"] == "RoutingProxy"}
    assert fleets <= set(chart["helm"]["valuesObject"]["fleetNamespaces"])


def test_the_samples_are_all_listed() -> None:
    """A sample that kustomize does not know is applied by nobody."""
    listed = yaml.safe_load((MANIFESTS / "samples" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        path.name for path in Path(MANIFESTS / "samples").glob("*.yaml") if path.name != "kustomization.yaml"
    )
