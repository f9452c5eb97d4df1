"""The CRDs and a fleet's objects before the real API server: what it refuses, what it fills in, what kubectl prints of it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import Cluster

from stepdown.model.crd import UNKNOWN_STATUS
from stepdown.model.money import usd_to_nusd
from stepdown.model.resources import KINDS
from stepdown.plan.world import FleetSeen, ProxiesSeen, RouteTotals
from stepdown.reconcile import Pass, reconcile
from stepdown.render.objects import Object, Observed, Settings, fleet_objects, observe
from tests.cluster.fleet import install
from tests.golden.objects.test_objects import CASES, rendered
from tests.unit.model_refused import REFUSED
from tests.unit.policy import NOW_S, budget, catalog, proxy, route, spent, world

Kubectl = Callable[..., str]
MANAGER = ("--server-side", "--force-conflicts", "--field-manager=stepdown")
STATUS = (*MANAGER, "--subresource=status", "--validate=false")  # kubectl itself misses the spec, the API server does not
WIDTH = 80


@pytest.fixture(scope="module", autouse=True)
def crds(cluster: Cluster) -> None:
    install(cluster)


def listed(*documents: Any) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def plain(thing: Any, namespace: str) -> dict[str, Any]:
    """An object of the tests' as somebody would apply it."""
    document: dict[str, Any] = thing.model_dump(mode="json", by_alias=True, exclude_unset=True)
    meta = {"name": thing.name, "labels": dict(thing.metadata.labels)}
    if thing.namespaced:
        meta["namespace"] = namespace
    return {"apiVersion": thing.api_version, "kind": thing.kind_name, "metadata": meta, "spec": document["spec"]}


# --- what is refused, and what is filled in ----------------------------------------------------------------------------------


def test_the_schemas_are_structural_and_accepted(kubectl: Kubectl) -> None:
    """A CRD that the API server finds fault with serves its kind all the same, without validation or pruning."""
    for kind in KINDS.values():
        found = json.loads(kubectl("get", "crd", f"{kind.plural}.stepdown.dev", "-o", "json"))
        answers = {each["type"]: each["status"] for each in found["status"]["conditions"]}
        assert answers["Established"] == answers["NamesAccepted"] == "True"
        assert "NonStructuralSchema" not in answers
        assert found["status"]["acceptedNames"]["categories"] == ["stepdown"]


@pytest.mark.parametrize(("document", "field", "message"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_what_breaks_a_rule_is_refused_in_our_words(
    document: dict[str, Any], field: str, message: str, cluster: Cluster, namespace: str
) -> None:
    """`kubectl apply` says what to write instead; nothing that we would refuse gets past it."""
    document = {**document, "metadata": {**document["metadata"]}}
    if "namespace" in document["metadata"]:
        document["metadata"]["namespace"] = namespace
    kind = KINDS[document["kind"]]
    where = f"/namespaces/{namespace}" if kind.namespaced else ""
    status, answer = cluster.request("POST", f"/apis/stepdown.dev/v1alpha1{where}/{kind.plural}?dryRun=All", document)
    assert status == 422, answer
    causes = answer["details"]["causes"]
    found = [each for each in causes if message in each["message"]]
    assert found, causes
    assert any(each["field"].startswith(field) for each in found), found


def test_what_is_not_a_field_is_refused(kubectl: Kubectl, namespace: str) -> None:
    """A field that is spelt wrong must not silently mean nothing."""
    document = plain(budget(), namespace)
    document["spec"]["monthlyLimitUsd"] = "5"
    with pytest.raises(AssertionError, match="monthlyLimitUsd"):
        kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(document))


def test_defaults_are_what_the_schema_says(kubectl: Kubectl, namespace: str) -> None:
    """What nobody wrote is filled in once and visibly, never inside a list, and the status says that nobody looked."""
    kubectl("apply", "-f", "-", stdin=listed(*(plain(each, namespace) for each in (route(), budget(), proxy()))))
    found = json.loads(kubectl("get", "mroute,spend,rproxy", "-n", namespace, "-o", "json"))["items"]
    by_kind = {each["kind"]: each for each in found}
    assert all(each["status"] == UNKNOWN_STATUS for each in found)
    assert by_kind["ModelRoute"]["spec"] == {
        "models": {"default": "DeepSeek-V3.2"},
        "parameters": {"timeout": "10m"},
        "proxyRef": {"name": "default"},
        "stepDown": {"floor": "UltraBudget"},
    }
    spec = by_kind["SpendBudget"]["spec"]
    assert (spec["enforcement"], spec["protectCritical"], spec["timeZone"]) == ("Hard", True, "UTC")
    assert [step["atPercent"] for step in spec["steps"]] == [50, 80, 95]
    spec = by_kind["RoutingProxy"]["spec"]
    assert (spec["replicas"], spec["leaseHorizon"], spec["upstream"]["baseURL"]) == (2, "10m", "https://global-apis.com/v1")
    assert spec["upstream"]["channels"][0] == {"name": "standard", "apiKeySecretRef": {"name": "upstream"}}


# --- status ------------------------------------------------------------------------------------------------------------------


def _pass(usd: str, namespace: str) -> Pass:
    """A fleet at work: a route that is stepped down, one that is not, one that is wrong, budgets near their ceilings."""
    meta = {"namespace": namespace}
    things = world(
        route("support-chat", "DeepSeek V4 Pro", meta=meta),
        route("a-name-of-20-letters", "DeepSeek V4 Flash", meta=meta),
        route("wrong", "no-such-model", meta=meta),
        budget("team-support", "500.00", meta=meta),
        budget("a-name-of-20-letters", "250000.00", meta=meta),
        proxy(meta=meta),
        catalog(f"prices-{namespace}"),
    )
    things = replace(things, fleets={f"{namespace}/default": FleetSeen(4, 4, 4)})
    view = spent(things, **{"team-support": usd})
    totals = {f"{namespace}/support-chat": RouteTotals(1000, 990, 10**6, 10**5, usd_to_nusd(usd))}
    first = reconcile(things, replace(view, totals=totals), NOW_S)
    have = {index: {digest: 4} for index, digest in first.configs[f"{namespace}/default"].digests.items()}
    view = replace(view, totals=totals, proxies={f"{namespace}/default": ProxiesSeen(4, have)})
    return reconcile(things, view, NOW_S, first)


def _write(kubectl: Kubectl, made: Pass, namespace: str) -> list[dict[str, Any]]:
    """The statuses as the operator writes them: by server-side apply."""
    documents = []
    for (kind, key), document in made.statuses.items():
        meta = {"name": key.rpartition("/")[2], **({"namespace": namespace} if "/" in key else {})}
        documents.append({"apiVersion": "stepdown.dev/v1alpha1", "kind": kind, "metadata": meta, "status": document})
    kubectl("apply", *STATUS, "-f", "-", stdin=listed(*documents))
    return documents


def test_every_status_is_one_that_the_schema_takes(kubectl: Kubectl, namespace: str) -> None:
    """A status that the API server refuses, or from which it drops a field, is one that nobody ever sees."""
    made = _pass("412.345678901", namespace)
    things = (*made.plan.world.routes, *made.plan.world.budgets, *made.plan.world.proxies, *made.plan.world.catalogs)
    kubectl("apply", *MANAGER, "-f", "-", stdin=listed(*(plain(each, namespace) for each in things)))
    try:
        for document in _write(kubectl, made, namespace):
            meta = document["metadata"]
            where = ["-n", meta["namespace"]] if "namespace" in meta else []
            stored = json.loads(kubectl("get", f"{document['kind']}.stepdown.dev", meta["name"], *where, "-o", "json"))[
                "status"
            ]
            wanted = document["status"]
            by_type = {each["type"]: each for each in stored.pop("conditions")}
            assert by_type == {each["type"]: each for each in wanted["conditions"]}
            assert stored == {name: each for name, each in wanted.items() if name != "conditions"}
        _shown_in_eighty_columns(kubectl, namespace)
    finally:
        kubectl("delete", "mcatalog", f"prices-{namespace}", "--ignore-not-found")


def _shown_in_eighty_columns(kubectl: Kubectl, namespace: str) -> None:
    for kind in KINDS.values():
        text = kubectl("get", kind.short_name, *(["-n", namespace] if kind.namespaced else []))
        assert max(len(line.rstrip()) for line in text.splitlines()) <= WIDTH, text
    spend = kubectl("get", "spend", "team-support", "-n", namespace).splitlines()
    assert [line.split() for line in spend] == [
        ["NAME", "READY", "TIER", "SPENT", "LIMIT", "%", "RESET"],
        ["team-support", "True", "MidRange", "412", "500", "82", "1-Dec"],
    ]
    chat = kubectl("get", "mroute", "support-chat", "-n", namespace).splitlines()
    assert chat[1].split() == ["support-chat", "True", "MidRange", "80%", "412", "Hunyuan-Turbo"]
    fleet = kubectl("get", "rproxy", "default", "-n", namespace).splitlines()
    assert fleet[1].split()[:5] == ["default", "True", "True", "4/4", "3"]
    everything = kubectl("get", "stepdown", "-n", namespace)
    assert all(f"{kind.kind_name.lower()}.stepdown.dev/" in everything for kind in KINDS.values())
    everywhere = kubectl("get", "stepdown", "-A")
    headers = [line.split() for line in everywhere.splitlines() if "READY" in line]
    assert len(headers) == len(KINDS), "each kind has its own table"


def test_a_condition_that_is_no_longer_said_is_gone(kubectl: Kubectl, namespace: str) -> None:
    """Stalled and a step leave with what caused them: server-side apply removes what its manager no longer states."""
    kubectl("apply", "-f", "-", stdin=json.dumps(plain(budget("team"), namespace)))
    head = {"apiVersion": "stepdown.dev/v1alpha1", "kind": "SpendBudget", "metadata": {"name": "team", "namespace": namespace}}
    before = reconcile(world(budget(namespaceSelector={})), spent(world()), NOW_S).statuses[("SpendBudget", "shop/team")]
    after = reconcile(world(budget(), route()), spent(world(budget())), NOW_S).statuses[("SpendBudget", "shop/team")]
    assert "Stalled" in [each["type"] for each in before["conditions"]]
    for document in (before, after):
        text = json.dumps({**head, "status": document})
        kubectl("apply", *STATUS, "-f", "-", stdin=text)
    stored = json.loads(kubectl("get", "spend", "team", "-n", namespace, "-o", "json"))["status"]
    assert sorted(each["type"] for each in stored["conditions"]) == ["Accepted", "Enforced", "Ready", "WithinBudget"]


# --- the objects of a fleet --------------------------------------------------------------------------------------------------


def _here(objects: tuple[Object, ...], namespace: str, uid: str) -> list[Object]:
    """Golden objects moved to the test's namespace, under its RoutingProxy."""
    moved = json.loads(json.dumps(objects))
    for each in moved:
        each["metadata"]["namespace"] = namespace
        each["metadata"]["ownerReferences"][0]["uid"] = uid
    return list(moved)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_a_fleet_s_objects_are_taken(case: Path, cluster: Cluster, kubectl: Kubectl) -> None:
    """Every object of the goldens is accepted under Pod Security "restricted", and a second apply changes nothing."""
    content = yaml.safe_load(case.read_text())
    with cluster.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"}) as namespace:
        (mine,) = [each for each in content["objects"] if each["kind"] == "RoutingProxy"]
        mine = {**mine, "metadata": {"name": mine["metadata"]["name"], "namespace": namespace}}
        stored = json.loads(kubectl("apply", *MANAGER, "-o", "json", "-f", "-", stdin=json.dumps(mine)))
        objects = _here(rendered(content), namespace, stored["metadata"]["uid"])
        text = listed(*objects)
        assert kubectl("apply", *MANAGER, "--dry-run=server", "-f", "-", stdin=text).count("dry run") == len(objects)
        first = json.loads(kubectl("apply", *MANAGER, "-o", "json", "-f", "-", stdin=text))["items"]
        again = json.loads(kubectl("apply", *MANAGER, "-o", "json", "-f", "-", stdin=text))["items"]
        for one, other in zip(first, again, strict=True):
            assert one["metadata"].get("generation") == other["metadata"].get("generation"), one["kind"]
            if "status" not in one:  # which moves by itself
                assert one["metadata"]["resourceVersion"] == other["metadata"]["resourceVersion"], one["kind"]
        (template,) = (each["spec"]["template"] for each in objects if each["kind"] == "Deployment")
        meta = {**template["metadata"], "name": "pod", "namespace": namespace}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        assert "created" in kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def _stored(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    text = kubectl("get", "deployment", "stepdown-default", "-n", namespace, "-o", "json", "--show-managed-fields")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_number_of_pods_is_never_lost_on_the_way_to_an_autoscaler(kubectl: Kubectl, namespace: str) -> None:
    """From seven pods by hand to an autoscaler and back: at no moment does the API server fill in 1."""
    settings = Settings("stepdown:1", "https://stepdown.stepdown-system.svc:8443", "CA\n")
    kubectl("apply", "-f", "-", stdin=json.dumps(plain(proxy(), namespace)))
    uid = kubectl("get", "rproxy", "default", "-n", namespace, "-o", "jsonpath={.metadata.uid}")

    def apply(observed: Observed, **spec: Any) -> int:
        made = reconcile(world(proxy(meta={"namespace": namespace}, **spec)), spent(world()), NOW_S)
        key = f"{namespace}/default"
        objects = fleet_objects(made.plan.fleets[key], made.configs[key], uid, settings, observed)
        (deployment,) = (each for each in objects if each["kind"] == "Deployment")
        kubectl("apply", *MANAGER, "-f", "-", stdin=json.dumps(deployment))
        return int(_stored(kubectl, namespace)["spec"]["replicas"])

    bounds = {"minReplicas": 2, "maxReplicas": 9}
    assert apply(Observed(), replicas=7) == 7
    kubectl("scale", "deployment", "stepdown-default", "--replicas=3", "-n", namespace)
    seen = observe(_stored(kubectl, namespace), autoscaler=False)
    assert seen == Observed(3) and apply(seen, replicas=7) == 7, "what a person typed comes back"
    seen = observe(_stored(kubectl, namespace), autoscaler=False)
    assert apply(seen, replicas=2, autoscaling=bounds) == 7, "what is there stays until the autoscaler says otherwise"
    _scale_as_an_autoscaler(kubectl, namespace, 5)
    seen = observe(_stored(kubectl, namespace), autoscaler=True)
    assert seen == Observed(5, replicas_elsewhere=True, autoscaler=True)
    assert apply(seen, replicas=2, autoscaling=bounds) == 5, "its number is its own"
    assert apply(seen, replicas=6) == 6, "without autoscaling it is taken back while the autoscaler is still there"
    assert observe(_stored(kubectl, namespace), autoscaler=False) == Observed(6)


def _scale_as_an_autoscaler(kubectl: Kubectl, namespace: str, replicas: int) -> None:
    """Through the scale subresource, as the controller does it, under its name."""
    patch = json.dumps({"spec": {"replicas": replicas}})
    until_s = time.monotonic() + 10
    while True:
        kubectl(
            "patch", "deployment", "stepdown-default", "-n", namespace, "--subresource=scale", "--type=merge",
            "--field-manager=kube-controller-manager", "-p", patch,
        )  # fmt: skip
        if _stored(kubectl, namespace)["spec"]["replicas"] == replicas or time.monotonic() > until_s:
            return
