"""The objects of a fleet: no policy restarts a pod, no replica is lost to a change of owners, no object is anybody else's."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model import mounted
from stepdown.model.config import Fleet, Shard, shard_of
from stepdown.model.quantity import quantity
from stepdown.plan.world import LedgerView
from stepdown.reconcile import Pass, reconcile
from stepdown.render.files import DIGEST_ANNOTATION
from stepdown.render.objects import Object, Observed, Settings, fleet_objects, left_out, observe, pod_selector
from stepdown.render.parts import Names
from tests.unit.policy import CHANNELS, NOW_S, budget, proxy, route, world

SETTINGS = Settings("stepdown:1", "https://stepdown.stepdown-system.svc:8443", "-----BEGIN CERTIFICATE-----\n")
NOTHING = Observed()
NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True)


def judged(*things: Any, before: Pass | None = None, **fields: Any) -> Pass:
    return reconcile(world(*things, **fields), LedgerView(), NOW_S, before)


def objects(made: Pass, observed: Observed = NOTHING, settings: Settings = SETTINGS) -> dict[str, Object]:
    """By kind and name."""
    (key,) = made.configs
    found = fleet_objects(made.plan.fleets[key], made.configs[key], "uid-1", settings, observed)
    return {f"{each['kind']} {each['metadata']['name']}": each for each in found}


def deployment(observed: Observed = NOTHING, **spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = objects(judged(proxy(**spec)), observed)["Deployment stepdown-default"]["spec"]
    return found


# --- what changes with what ----------------------------------------------------------------------------------------------


@given(
    names=st.lists(NAMES, min_size=1, max_size=12, unique=True),
    model=st.sampled_from(["qwen3-8b", "DeepSeek-V3.2"]),
    usd=st.integers(1, 10**6),
)
def test_the_same_is_the_same_to_the_byte(names: list[str], model: str, usd: int) -> None:
    """A pass that changes nothing must write nothing: equal inputs are equal bytes, whatever was made before."""
    things = [*(route(name, model) for name in names), budget(usd=str(usd)), proxy()]
    first = judged(*things)
    again = judged(*reversed(things), before=judged(route("other")))
    assert json.dumps(objects(first)) == json.dumps(objects(again))
    assert json.dumps(objects(first)) == json.dumps(objects(first))


@given(names=st.lists(NAMES, min_size=2, max_size=40, unique=True), data=st.data())
def test_a_route_costs_one_config_map(names: list[str], data: st.DataObject) -> None:
    """One edited route among many: one ConfigMap is written, no pod is replaced, whatever the edit was."""
    edited = data.draw(st.sampled_from(names))
    edit = data.draw(st.sampled_from(["other model", "parameters", "gone", "new"]))
    others = [route(name) for name in names if name != edited or edit == "new"]
    changed = {
        "other model": [route(edited, "qwen3-8b")],
        "parameters": [route(edited, parameters={"maxTokens": 7})],
        "gone": [],
        "new": [route("a-new-one-" + "x" * 40)],
    }[edit]
    before = objects(judged(*others, *([] if edit == "new" else [route(edited)])))
    after = objects(judged(*others, *changed))
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    moved = edited if edit != "new" else "a-new-one-" + "x" * 40
    assert touched == {f"ConfigMap stepdown-default-shard-{shard_of(f'shop/{moved}'):02}"}


def test_what_replaces_pods_and_what_does_not() -> None:
    """Money, horizons and CAs change under running requests; a channel's key needs a new mount, and that needs new pods."""

    def template(settings: Settings = SETTINGS, *things: Any, **spec: Any) -> Any:
        return objects(judged(proxy(**spec), *things), settings=settings)["Deployment stepdown-default"]["spec"]["template"]

    plain = template()
    assert plain == template(SETTINGS, route(), budget(), leaseHorizon="5m", unbudgetedRoutes="Refuse")
    assert plain == template(SETTINGS, allowedRoutes={"namespaces": {"from": "All"}}, extraBodyFields=["logit_bias"])
    assert plain == template(SETTINGS, replicas=7, autoscaling={"maxReplicas": 9})
    assert plain == template(Settings(SETTINGS.image, SETTINGS.sync_url, "another CA\n"))
    assert plain != template(Settings("stepdown:2", SETTINGS.sync_url, SETTINGS.ca_bundle))
    assert plain != template(SETTINGS, upstream={"channels": CHANNELS[:1]})


def test_no_route_no_shard() -> None:
    """A fleet without routes has the fleet's ConfigMap alone; what there will be is mounted all the same."""
    made = objects(judged(proxy()))
    assert [name for name in made if name.startswith("ConfigMap")] == ["ConfigMap stepdown-default-fleet"]
    sources = deployment()["template"]["spec"]["volumes"][0]["projected"]["sources"]
    assert len(sources) == 17 and all(each["configMap"]["optional"] for each in sources)


# --- config ----------------------------------------------------------------------------------------------------------------


def test_a_proxy_reads_back_what_was_rendered() -> None:
    """A pod that starts while the operator is away has the very config that its fleet had."""
    made = judged(*(route(f"r{index}") for index in range(30)), budget())
    config = made.configs["shop/default"]
    found = objects(made)
    fleet = found["ConfigMap stepdown-default-fleet"]["data"]
    assert msgspec.json.decode(fleet[mounted.FLEET_FILE], type=Fleet) == config.fleet
    for index, shard in config.shards.items():
        name = f"ConfigMap stepdown-default-shard-{index:02}"
        assert (name in found) == bool(shard.routes)
        if shard.routes:
            (file,) = found[name]["data"]
            data = mounted.unpack(file, found[name]["data"][file].encode())
            assert msgspec.json.decode(data, type=Shard) == shard
            assert found[name]["metadata"]["annotations"][DIGEST_ANNOTATION] == config.digests[index]


def test_a_large_shard_is_compressed_and_a_larger_one_said() -> None:
    """The API server takes a mebibyte a ConfigMap. More routes than that must not stop the fleet."""
    made = judged(*(route(f"r{index}") for index in range(3000)))
    config = made.configs["shop/default"]
    found = [each for name, each in objects(made).items() if "shard" in name]
    assert len(found) == 16 and left_out(config) == ()
    assert all(len(each["data"][file]) < mounted.MAX_BYTES for each in found for file in each["data"])
    data = mounted.encode(config.shards[0])
    name, packed = mounted.pack("shard-00.json", data, len(data) // 2) or ("", b"")
    assert name == "shard-00.json.gz" and mounted.unpack(name, packed) == data
    assert mounted.pack("shard-00.json", data, 100) is None
    with pytest.raises(ValueError, match="shard-00"):
        mounted.unpack(name, packed[:-3])


# --- who says how many pods there are --------------------------------------------------------------------------------------

BOUNDS = {"minReplicas": 3, "maxReplicas": 10}


@pytest.mark.parametrize(
    ("spec", "observed", "replicas"),
    [
        ({"replicas": 4}, Observed(), 4),
        ({"replicas": 4}, Observed(9), 4),  # a person's `kubectl scale`
        ({"replicas": 4}, Observed(9, replicas_elsewhere=True), None),  # somebody's own autoscaler
        ({"replicas": 4}, Observed(9, replicas_elsewhere=True, autoscaler=True), 4),  # ours, as it goes
        ({"replicas": 0}, Observed(2), 0),
        ({"replicas": 4, "autoscaling": BOUNDS}, Observed(), 4),
        ({"replicas": 1, "autoscaling": BOUNDS}, Observed(), 3),
        ({"replicas": 1, "autoscaling": BOUNDS}, Observed(7), 7),  # what is there, until the autoscaler has written it itself
        ({"replicas": 1, "autoscaling": BOUNDS}, Observed(0), 3),  # an autoscaler leaves 0 alone
        ({"replicas": 1, "autoscaling": BOUNDS}, Observed(50), 10),
        ({"replicas": 1, "autoscaling": BOUNDS}, Observed(7, replicas_elsewhere=True, autoscaler=True), None),
    ],
)
def test_replicas_are_stated_until_somebody_else_does(spec: dict[str, Any], observed: Observed, replicas: int | None) -> None:
    """A number that we drop before another has it becomes 1: a fleet of ten would be one pod."""
    assert deployment(observed, **spec).get("replicas") == replicas


def test_an_autoscaler_is_told_from_a_person() -> None:
    """What a HorizontalPodAutoscaler wrote stays; what somebody typed comes back to what the RoutingProxy says."""

    def seen(*entries: dict[str, Any]) -> Observed:
        return observe({"metadata": {"managedFields": list(entries)}, "spec": {"replicas": 5}}, autoscaler=False)

    scaled = {"subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    assert observe(None, autoscaler=True) == Observed(autoscaler=True)
    assert seen({"manager": "kube-controller-manager", **scaled}) == Observed(5, replicas_elsewhere=True)
    assert seen({"manager": "kubectl", **scaled}) == Observed(5)
    assert seen({"manager": "kubectl-edit", "fieldsV1": {"f:spec": {"f:replicas": {}}}}) == Observed(5)
    assert seen({"manager": "stepdown", "fieldsV1": {"f:spec": {"f:replicas": {}}}}) == Observed(5)


# --- resources -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "requests", "limits"),
    [
        ({}, {"cpu": "250m", "memory": "256Mi"}, {"memory": "512Mi"}),
        ({"limits": {"memory": "128Mi"}}, {"cpu": "250m"}, {"memory": "128Mi"}),
        ({"requests": {"memory": "2Gi"}}, {"cpu": "250m", "memory": "2Gi"}, {}),
        ({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}, {"cpu": "1", "memory": "256Mi"}, {"cpu": "2", "memory": "512Mi"}),
    ],
)
def test_defaults_never_contradict_what_is_stated(
    stated: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    """A default request above a stated limit would be refused by the API server, and the fleet would never start."""
    found = deployment(resources=stated)["template"]["spec"]["containers"][0]["resources"]
    assert found.get("requests", {}) == requests and found.get("limits", {}) == limits
    for name, request in requests.items():
        assert name not in limits or quantity(request) <= quantity(limits[name])


# --- reach -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://global-apis.com/v1", {"ports": [{"protocol": "TCP", "port": 443}]}),
        ("https://global-apis.com:8443/v1", {"ports": [{"protocol": "TCP", "port": 8443}]}),
        ("http://10.0.0.7/v1", {"ports": [{"protocol": "TCP", "port": 80}]}),
        ("http://simulator.demo.svc:8080/v1", {"to": "demo"}),
        ("http://simulator.demo.svc.cluster.local/v1", {"to": "demo"}),
        ("http://simulator:8080/v1", {"to": "shop"}),
    ],
)
def test_the_upstream_can_be_reached_and_little_else(url: str, rule: dict[str, Any]) -> None:
    """A policy that shut out the upstream would stop every request; one that allowed all would be none."""
    made = judged(proxy(upstream={"baseURL": url, "channels": CHANNELS}), allowed_upstreams=("*",))
    spec = objects(made)["NetworkPolicy stepdown-default"]["spec"]
    dns, sync, upstream = spec["egress"]
    if "to" in rule:
        rule = {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": rule["to"]}}}]}
    assert upstream == rule
    assert {(each["protocol"], each["port"]) for each in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert sync == {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "stepdown-system"}}}],
        "ports": [{"protocol": "TCP", "port": 8443}],
    }
    assert spec["policyTypes"] == ["Ingress", "Egress"]


# --- names -----------------------------------------------------------------------------------------------------------------


@given(one=NAMES, other=NAMES)
def test_no_two_fleets_share_an_object(one: str, other: str) -> None:
    """Two RoutingProxies of one namespace whose objects had one name would undo each other for ever."""
    if one == other:
        return
    mine, theirs = Names("shop", one), Names("shop", other)
    maps = [{each.fleet_map, *(each.shard_map(index) for index in range(16))} for each in (mine, theirs)]
    assert not maps[0] & maps[1] and mine.common != theirs.common
    assert max(len(mine.common), len(one)) <= 63


def test_every_object_is_the_fleet_s_own() -> None:
    """What is deleted with the RoutingProxy, and what is pruned, is told by owner and labels: none may lack them."""
    made = objects(judged(route(), proxy(autoscaling={"maxReplicas": 4})))
    assert len(made) == 8
    for each in made.values():
        meta = each["metadata"]
        assert meta["namespace"] == "shop" and meta["labels"]["stepdown.dev/proxy"] == "default"
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("RoutingProxy", "default", "uid-1", True)
        assert owner["blockOwnerDeletion"] is False
    pods = made["Deployment stepdown-default"]["spec"]["template"]["metadata"]["labels"]
    for part in pod_selector("shop", "default").split(","):
        key, _, value = part.partition("=")
        assert pods[key] == value


def test_pods_meet_the_restricted_standard() -> None:
    """A namespace that enforces Pod Security "restricted" takes the pods as they are."""
    pod = deployment()["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    allowed = {"projected", "emptyDir", "name"}
    assert all(set(volume) <= allowed for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
    assert pod["terminationGracePeriodSeconds"] > 660 + 120 + 5
