"""The chart as Helm reads it. If these fail, `helm install` gives rights that nobody meant, or an operator that does not start.

Helm's own code renders and judges (as a library); a real API server takes the result in tests/cluster/test_chart.py.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
import yaml
from click.testing import CliRunner
from release import helm
from release.lock import project_version

from stepdown.cli.live import LIVE_SERVICE
from stepdown.cli.operator import operator
from stepdown.cluster import children, kinds
from stepdown.model.errors import parse
from stepdown.model.resources import KINDS, RoutingProxy

GOLDENS = Path(__file__).parents[1] / "golden" / "chart"
CASES = {path.name.removesuffix(".in.yaml"): yaml.safe_load(path.read_text()) for path in sorted(GOLDENS.glob("*.in.yaml"))}
FLEETS: dict[str, list[str]] = {"own": [], "listed": ["shop", "search"], "everywhere": ["*"]}

Object = dict[str, Any]


def of_kind(objects: list[Object], *names: str) -> list[Object]:
    return [each for each in objects if each["kind"] in names]


def one(objects: list[Object], kind: str, name: str = "stepdown") -> Object:
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def workload(objects: list[Object]) -> Object:
    """The operator: a StatefulSet, or a Deployment where its ledger is a database."""
    (found,) = of_kind(objects, "StatefulSet", "Deployment")
    return found


def container(objects: list[Object]) -> Object:
    (found,) = workload(objects)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def rights(role: Object) -> Iterator[tuple[str, str, str]]:
    """Each (verb, group, resource) of a role."""
    for rule in role["rules"]:
        for verb in rule["verbs"]:
            for resource in rule.get("resources", rule.get("nonResourceURLs", ())):
                yield from ((verb, group, resource) for group in rule.get("apiGroups", ["-"]))


# Helm ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_lint(values: Object) -> None:
    """What `helm lint --strict` complains of, an administrator is shown in a pipeline."""
    report = helm_python.lint(helm.CHART, values, strict=True, namespace=helm.NAMESPACE)
    complaints = [each for each in report["messages"] if each["error"] != "icon is recommended"]
    assert (complaints, report["errors"]) == ([], [])


def test_the_chart_s_version_is_the_project_s() -> None:
    """The default image's tag is the chart's appVersion: another one names an image that was never built."""
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project_version()


def test_every_value_is_in_the_schema_and_explained() -> None:
    """The chart would refuse a default that its schema does not know, and a setting without words is found by nobody."""
    schema = json.loads((helm.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text())

    def walk(node: Object, given: Object, path: str) -> None:
        assert node["additionalProperties"] is False, f"{path} takes anything"
        assert node["properties"].keys() - {"global"} == given.keys(), path
        for name, each in node["properties"].items():
            assert each["description"], f"{path}.{name} is not explained"
            if each["type"] == "object" and "properties" in each:
                walk(each, given[name], f"{path}.{name}")

    walk(schema, values, "")


def database(type_: str, **postgresql: Any) -> Object:
    return {"ledger": {"type": type_, "postgresql": postgresql}}


REFUSED = {
    "a misspelt setting": ({"image": {"tagg": "1.0"}}, r"at '/image'.*'tagg' not allowed"),
    "a setting of another chart": ({"replicaCount": 2}, r"'replicaCount' not allowed"),
    "a second replica": ({"replicas": 2}, r"replicas is 2: the ledger is a SQLite file on one volume.*ledger.type=postgresql"),
    "a database that is nowhere": ({"ledger": {"type": "postgresql"}}, r"say where it is.*CLUSTER-app, with the key uri"),
    "a database that is not used": (database("sqlite", url="postgresql://me@db/x"), r"the database would not be used"),
    "two addresses": (
        database("postgresql", url="postgresql://me@db/x", urlSecretRef={"name": "a"}),
        r"url and urlSecretRef exclude each other",
    ),
    "a password in the release": (database("postgresql", url="postgresql://me:pw@db/x"), r"has a password in it"),
    "a password behind the address": (database("postgresql", url="postgresql://db/x?password=pw"), r"has a password in it"),
    "two passwords": (
        database("postgresql", urlSecretRef={"name": "a"}, passwordSecretRef={"name": "b"}),
        r"passwordSecretRef would not be used",
    ),
    "another database": ({"ledger": {"type": "mysql"}}, r"'/ledger/type'"),
    "an address of another database": (database("postgresql", url="mysql://db/x"), r"'/ledger/postgresql/url'"),
    "a shared volume": ({"persistence": {"accessMode": "ReadWriteMany"}}, r"'/persistence/accessMode'.*'ReadWriteOncePod'"),
    "a size without a unit's name": ({"persistence": {"size": "10GB"}}, r"'/persistence/size'"),
    "everywhere and somewhere": ({"fleetNamespaces": ["*", "shop"]}, r"stands alone: write \[\"\*\"\]"),
    "no namespace's name": ({"fleetNamespaces": ["Shop"]}, r"'/fleetNamespaces/0'.*'Shop'"),
    "no upstream at all": ({"allowedUpstreams": []}, r"'/allowedUpstreams'"),
    "an upstream without a scheme": ({"allowedUpstreams": ["global-apis.com/v1"]}, r"'/allowedUpstreams/0'"),
    "two certificates": (
        {"tls": {"secretName": "a", "certManager": {"enabled": True, "issuerRef": {"name": "b"}}}},
        r"tls: secretName and certManager.enabled exclude each other",
    ),
    "a certificate that nobody signs": ({"tls": {"certManager": {"enabled": True}}}, r"issuerRef.name: name the Issuer"),
    "a digest that is none": ({"image": {"digest": "latest"}}, r"'/image/digest'"),
    "a RoutingProxy before its CRD": ({"proxy": {"create": True}}, r"Install without proxy.create, then run `helm upgrade`"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_with_a_reason(values: Object, message: str) -> None:
    """Otherwise it is found out later, by a pod that does not start or by money that is not held."""
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=re.compile(message, re.DOTALL)):
        helm.objects(values)


# Rights --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fleets", FLEETS.values(), ids=FLEETS)
def test_no_role_touches_a_secret_or_a_wildcard(fleets: list[str]) -> None:
    """The promise to whoever installs it: the operator can read no key."""
    roles = of_kind(helm.objects({"fleetNamespaces": fleets}), "Role", "ClusterRole")
    assert len(roles) >= 5
    for role in roles:
        for verb, group, resource in rights(role):
            assert "*" not in (verb, group, resource), role["metadata"]["name"]
            assert not resource.startswith("secrets") and verb not in ("bind", "escalate", "impersonate")
    rendered = helm.render({"fleetNamespaces": fleets})
    text = rendered["rbac.yaml"] + rendered["roles.yaml"]
    assert "secret" not in re.sub(r"#.*", "", text).lower()


def test_in_the_whole_cluster_it_writes_statuses_events_and_token_reviews_alone() -> None:
    """More would let whoever takes over the operator's pod take over the cluster."""
    found = {(verb, resource) for verb, _, resource in rights(one(helm.objects(), "ClusterRole"))}
    writes = {(verb, resource) for verb, resource in found if verb not in ("get", "list", "watch")}
    statuses = {("patch", f"{kind.plural}/status") for kind in KINDS.values()}
    assert writes == statuses | {("create", "events"), ("patch", "events"), ("create", "tokenreviews")}


@pytest.mark.parametrize(("fleets", "wanted"), [([], {"stepdown-system"}), (["shop", "search"], {"shop", "search"})])
def test_it_may_write_where_fleets_run_and_nowhere_else(fleets: list[str], wanted: set[str]) -> None:
    """A namespace that is not listed is another team's."""
    objects = helm.objects({"fleetNamespaces": fleets})
    for kind in ("Role", "RoleBinding"):
        found = [each["metadata"] for each in of_kind(objects, kind)]
        assert {each["namespace"] for each in found if each["name"] == "stepdown-fleet"} == wanted
    assert not [each for each in of_kind(objects, "ClusterRole") if each["metadata"]["name"] == "stepdown-fleet"]


def test_everywhere_is_a_binding_of_the_whole_cluster_and_the_notes_say_so() -> None:
    """Broad rights that nobody noticed."""
    values = {"fleetNamespaces": ["*"]}
    objects = helm.objects(values)
    assert one(objects, "ClusterRoleBinding", "stepdown-fleet")["roleRef"]["name"] == "stepdown-fleet"
    assert not [each for each in of_kind(objects, "Role") if each["metadata"]["name"] == "stepdown-fleet"]
    assert "may write Deployments in every namespace" in helm.render(values)["NOTES.txt"]


def test_it_may_write_every_child_of_a_routing_proxy() -> None:
    """A kind that was forgotten is a fleet that never comes up, with Forbidden in the log."""
    role = one(helm.objects(), "Role", "stepdown-fleet")
    for kind in children.KINDS:
        for verb in ("get", "list", "watch", "create", "patch", "delete"):
            assert (verb, kind.group, kind.plural) in set(rights(role)), f"{verb} {kind.plural}"
    assert {("get", "", "pods"), ("get", "apps", "replicasets")} <= set(rights(role))


def test_in_its_own_namespace_it_may_change_its_lease_and_its_witness_by_name() -> None:
    """A Lease or a ConfigMap of somebody else is not its business."""
    role = one(helm.objects(), "Role")
    for rule in role["rules"]:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] in (["stepdown"], ["stepdown-witness"])
    assert {resource for _, _, resource in rights(role)} == {kinds.LEASE.plural, kinds.CONFIG_MAP.plural}


def test_who_routes_does_not_thereby_set_budgets() -> None:
    """`edit` is what developers have. A developer who could raise a SpendBudget has none."""
    roles = {each["metadata"]["name"]: each for each in of_kind(helm.objects(), "ClusterRole")}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    to = {
        name: {key.removeprefix(prefix) for key in each["metadata"]["labels"] if key.startswith(prefix)}
        for name, each in roles.items()
    }
    assert to == {"stepdown": set(), "stepdown-edit": {"edit"}, "stepdown-view": {"view"}, "stepdown-admin": set()}
    assert {resource for _, _, resource in rights(roles["stepdown-edit"])} == {"modelroutes"}
    assert {verb for verb, _, _ in rights(roles["stepdown-view"])} == {"get", "list", "watch"}
    for name in ("stepdown-view", "stepdown-admin"):
        assert {resource for _, _, resource in rights(roles[name])} == {kind.plural for kind in KINDS.values()}


def test_who_may_see_the_live_figures_may_read_them_and_nothing_else() -> None:
    """`services/proxy` without a name would open every Service of the namespace; with more verbs, whatever takes a POST."""
    role = one(helm.objects(), "Role", "stepdown-view-spend")
    assert role["metadata"]["namespace"] == helm.NAMESPACE
    wanted = {"apiGroups": [""], "resources": ["services/proxy"], "resourceNames": [LIVE_SERVICE], "verbs": ["get"]}
    assert role["rules"] == [wanted]
    service = one(helm.objects(), "Service")
    assert LIVE_SERVICE in {f"{service['metadata']['name']}:{port['name']}" for port in service["spec"]["ports"]}
    assert not [each for each in of_kind(helm.objects(), "RoleBinding") if each["roleRef"]["name"] == "stepdown-view-spend"]


# The operator's pod --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_operator_understands_what_the_chart_tells_it(values: Object) -> None:
    """A renamed option would leave the pod with its default: another upstream allowed, other namespaces written to."""
    environment = {each["name"]: each.get("value", helm.NAMESPACE) for each in container(helm.objects(values))["env"]}
    known = {option.envvar for option in operator.params}
    assert {name for name in environment if name.startswith("STEPDOWN_")} <= known
    told: Object = {}
    probe = click.Command("operator", params=operator.params, callback=told.update)
    result = CliRunner().invoke(probe, env=environment, standalone_mode=False)
    assert result.exception is None
    assert told["image"] == container(helm.objects(values))["image"]
    assert told["allowed_upstreams"] == ",".join(values.get("allowedUpstreams", ["https://global-apis.com/v1"]))
    assert told["fleet_namespaces"] == (",".join(values.get("fleetNamespaces", [])) or helm.NAMESPACE)
    assert told["namespace"] == helm.NAMESPACE
    assert (told["listen"], told["http"]) == (("0.0.0.0", 8443), ("0.0.0.0", 9090))


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_ledger_lies_on_the_volume(values: Object) -> None:
    """A ledger in the container's own layer is lost at every restart, and nothing is granted after it."""
    objects = helm.objects(values)
    spec = workload(objects)["spec"]
    volumes = {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", ())}
    volumes |= {each["name"] for each in spec["template"]["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container(objects)["volumeMounts"]}
    assert set(mounts.values()) == volumes
    (ledger,) = (option.default for option in operator.params if option.name == "ledger_place")
    shared = values.get("ledger", {}).get("type") == "postgresql"
    assert mounts[str(Path(str(ledger)).parent)] == ("state" if shared else "ledger")


@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_replicas_of_one_database_are_a_deployment_that_tells_each_its_own_address(replicas: int) -> None:
    """A follower that does not know its address cannot be named by the next; a volume would tie each to its node."""
    objects = helm.objects(
        {"replicas": replicas, "ledger": {"type": "postgresql", "postgresql": {"urlSecretRef": {"name": "a"}}}}
    )
    made = workload(objects)
    assert (made["kind"], made["spec"]["replicas"]) == ("Deployment", replicas)
    assert len(of_kind(objects, "PodDisruptionBudget")) == (replicas > 1)
    environment = {each["name"]: each.get("valueFrom") for each in container(objects)["env"]}
    assert environment["STEPDOWN_ADDRESS"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert environment["STEPDOWN_LEDGER"] == {"secretKeyRef": {"name": "a", "key": "uri"}}
    assert not [each for each in made["spec"]["template"]["spec"]["volumes"] if "persistentVolumeClaim" in each]


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_no_object_of_the_release_has_a_password_in_it(values: Object) -> None:
    """Whoever may read a Deployment may not thereby read a Secret."""
    text = json.dumps(helm.objects(values))
    assert not re.search(r"postgresql://[^/@\s]*:[^/@\s]*@", text)
    assert "PGPASSWORD" not in text


def test_an_upgrade_changes_nothing_that_cannot_be_changed(tmp_path: Path) -> None:
    """A StatefulSet's selector and claims are immutable: a version in them makes every `helm upgrade` fail."""
    later = _chart_of_version(tmp_path, "9.9.9")
    old, new = (one(helm.objects(chart=chart), "StatefulSet")["spec"] for chart in (helm.CHART, later))
    changeable = {"replicas", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds"}
    assert {key: each for key, each in old.items() if key not in changeable} == {
        key: each for key, each in new.items() if key not in changeable
    }
    assert new["template"]["spec"]["containers"][0]["image"] == "stepdown:9.9.9"


def test_a_rollback_reaches_a_pod_that_never_became_ready() -> None:
    """With OrderedReady it waits for that very pod, for ever."""
    assert one(helm.objects(), "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


def test_the_service_leads_to_the_ports_that_the_pod_has() -> None:
    """Proxies find the operator by this name and port."""
    objects = helm.objects()
    service, pod = one(objects, "Service")["spec"], one(objects, "StatefulSet")["spec"]["template"]
    assert {port["name"]: port["port"] for port in service["ports"]} == {"sync": 8443, "http": 9090}
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert {port["name"] for port in container(objects)["ports"]} == {port["targetPort"] for port in service["ports"]}


# The rest ------------------------------------------------------------------------------------------------------------------


def test_the_default_routing_proxy_is_valid() -> None:
    """`proxy.create=true` without more would be refused by the API server."""
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text())
    document = {
        "apiVersion": "stepdown.dev/v1alpha1",
        "kind": "RoutingProxy",
        "metadata": {"name": "default", "namespace": "a"},
    }
    assert RoutingProxy.model_validate({**document, "spec": values["proxy"]["spec"]}).spec.replicas == 2


@pytest.mark.parametrize("fleets", FLEETS.values(), ids=FLEETS)
def test_what_the_notes_tell_to_apply_is_valid_and_in_a_fleet_s_namespace(fleets: list[str]) -> None:
    """People paste it. In a namespace that is no fleet's it would be refused."""
    notes = helm.render({"fleetNamespaces": fleets})["NOTES.txt"]
    (block,) = re.findall(r"<<EOF\n(.*?)\n +EOF", notes, re.DOTALL)
    found = [parse(document) for document in yaml.safe_load_all(re.sub(r"^   ", "", block, flags=re.MULTILINE))]
    assert [each.kind_name for each in found] == ["RoutingProxy", "ModelRoute", "SpendBudget"]
    allowed = fleets if fleets and "*" not in fleets else [helm.NAMESPACE]
    assert {each.metadata.namespace for each in found} <= set(allowed)


def test_crds_can_be_left_out() -> None:
    """Whoever applies crds/ by another way would have two owners of one object."""
    assert len(of_kind(helm.objects(), "CustomResourceDefinition")) == len(KINDS)
    assert not of_kind(helm.objects({"crds": {"install": False}}), "CustomResourceDefinition")


def _chart_of_version(folder: Path, version: str) -> Path:
    with helm_python.Chart.load(helm.CHART) as chart:
        copied = Path(chart.save_dir(folder))
    declared = copied / "Chart.yaml"
    declared.write_text(re.sub(r"(?m)^(version|appVersion): .*$", rf"\1: {version}", declared.read_text()))
    return copied
