"""A fleet's children on a real API server: kept, put back, pruned, and left alone where they are not ours."""

import asyncio
import contextlib
import copy
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import Cluster as DevCluster
from devcluster import ControlPlane

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import CONFIG_MAP, DEPLOYMENT, ROUTING_PROXY, SERVICE, SERVICE_ACCOUNT, KindRef
from stepdown.cluster.wire import Limits
from tests.cluster.fleet import Fleet, eventually, fleet, run

Kubectl = Callable[..., str]
FLEET_MAP, SHARD_MAP = "stepdown-web-fleet", "stepdown-web-shard-03"


async def versions(made: Fleet) -> dict[str, str]:
    """By child; not the Deployment's, whose status moves."""
    found = {}
    for kind in (CONFIG_MAP, SERVICE, SERVICE_ACCOUNT):
        for each in (await made.cluster.list(kind, made.namespace, labels="stepdown.dev/proxy=web")).items:
            found[f"{kind.kind} {each['metadata']['name']}"] = each["metadata"]["resourceVersion"]
    return found


async def until(made: Fleet, kind: KindRef, name: str, true: Callable[[Any], bool], what: str, timeout_s: float = 60.0) -> Any:
    """Waits for an object (None while it is not there) to be so."""
    began_s = time.monotonic()
    while True:
        obj = await made.cluster.get(kind, made.namespace, name)
        if true(obj):
            return obj
        assert time.monotonic() < began_s + timeout_s, f"not within {timeout_s:.0f} s: {what}; it is {obj}"
        await asyncio.sleep(0.05)


def test_nothing_is_sent_while_nothing_changed(cluster: DevCluster, namespace: str) -> None:
    """Every needless write wakes every controller that watches, and fills etcd."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            first = await made.sync()
            assert (len(first.applied), first.deleted, first.failed, first.retry_s) == (7, (), {}, None)
            assert [name for _, name in made.writes()][-1] == "stepdown-web", "the Deployment comes after what its pods need"
            before = await versions(made)
            await asyncio.sleep(1)  # the Deployment's status moves, and the watch tells all of it
            made.requests.clear()
            for _ in range(3):
                assert (await made.sync()).applied == ()
            assert made.requests == []
            assert await versions(made) == before

    run(scene())


def test_a_restart_leaves_every_object_as_it_was(cluster: DevCluster, namespace: str) -> None:
    """A rollout of the operator must not be a write to every object of every fleet."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            async with made.watched():
                await made.sync()
                before = await versions(made)
            again = Fleet(made.cluster, namespace, made.uid)
            async with again.watched():
                assert len((await again.sync()).applied) == 7
                assert {method for method, _ in again.writes()} == {"PATCH"}
                assert await versions(made) == before, "applied, and nothing was written"
                assert (await again.sync()).applied == ()

    run(scene())


def test_what_is_edited_by_hand_comes_back(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """Somebody's kubectl edit at night would be in force until the operator's next restart."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            await made.sync()
            async with made.kept():
                edits: list[tuple[KindRef, str, Any, Callable[[Any], bool]]] = [
                    (CONFIG_MAP, FLEET_MAP, {"data": {"fleet.json": "edited"}}, lambda o: o["data"]["fleet.json"] == "{}"),
                    (CONFIG_MAP, FLEET_MAP, {"data": None}, lambda o: o.get("data") == {"fleet.json": "{}"}),
                    (SERVICE, "web", {"spec": {"selector": {"stepdown.dev/proxy": "x"}}}, selects_web),
                    (DEPLOYMENT, "stepdown-web", {"spec": {"replicas": 9}}, lambda o: o["spec"]["replicas"] == 2),
                    # Without the label it is out of the watch's sight, without the reference nobody collects it.
                    (CONFIG_MAP, SHARD_MAP, {"metadata": {"labels": {"stepdown.dev/proxy": None}}}, labelled),
                    (CONFIG_MAP, SHARD_MAP, {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}, labelled),
                    (SERVICE_ACCOUNT, "stepdown-web", {"metadata": {"ownerReferences": None}}, owned),
                ]
                for kind, name, patch, back in edits:
                    made.requests.clear()
                    kubectl("patch", kind.plural, name, "-n", namespace, "--type=merge", "-p", json.dumps(patch))
                    await until(made, kind, name, back, f"{kind.kind} {name} is back after {patch}")
                    await eventually(lambda: "PATCH" in {each.method for each in made.requests}, "the write was answered")
                    assert made.writes() == [("PATCH", name)], "one write puts it back"
                uid = await until(made, CONFIG_MAP, SHARD_MAP, lambda o: o is not None, "it is there")
                kubectl("delete", "configmap", SHARD_MAP, "-n", namespace)
                await until(
                    made,
                    CONFIG_MAP,
                    SHARD_MAP,
                    lambda o: o is not None and o["metadata"]["uid"] != uid["metadata"]["uid"],
                    "what was deleted is made anew",
                )

    run(scene())


def selects_web(obj: Any) -> bool:
    return bool(obj["spec"]["selector"] == {"stepdown.dev/proxy": "web"})


def labelled(obj: Any) -> bool:
    labels = obj["metadata"].get("labels", {})
    return bool(labels.get("stepdown.dev/proxy") == "web" and labels.get("app.kubernetes.io/managed-by") == "stepdown")


def owned(obj: Any) -> bool:
    return len(obj["metadata"].get("ownerReferences", ())) == 1


def test_what_is_not_ours_on_our_objects_stays(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """A mesh's annotations, an injected label, a person's note: an operator that wipes them is switched off."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            await made.sync()
            async with made.kept():
                kubectl("annotate", "service", "web", "-n", namespace, "mesh/inject=true")
                kubectl("label", "deployment", "stepdown-web", "-n", namespace, "team=platform")
                patch = {"data": {"note": "mine"}}
                kubectl("patch", "configmap", FLEET_MAP, "-n", namespace, "--type=merge", "-p", json.dumps(patch))
                patch = {"spec": {"template": {"spec": {"nodeSelector": {"disk": "fast"}}}}}
                kubectl("patch", "deployment", "stepdown-web", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
                await asyncio.sleep(0.5)
                made.requests.clear()
                await made.sync()
                assert made.writes() == []
                made.desired[0]["data"] = {"fleet.json": '{"changed": true}'}
                assert (await made.sync()).applied == (f"ConfigMap {namespace}/{FLEET_MAP}",)
                changed = await made.cluster.get(CONFIG_MAP, namespace, FLEET_MAP)
                assert changed is not None
                assert changed["data"] == {"fleet.json": '{"changed": true}', "note": "mine"}
                service = await made.cluster.get(SERVICE, namespace, "web")
                assert service is not None and service["metadata"]["annotations"] == {"mesh/inject": "true"}

    run(scene())


def test_an_autoscaler_gets_the_replicas_and_keeps_them(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """Two that set one field take turns for ever, and pods start and stop with it."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            await made.sync()
            assert not made.children.scaled_elsewhere(namespace, "stepdown-web")
            kubectl("scale", "deployment", "stepdown-web", "-n", namespace, "--replicas=5")
            await eventually(lambda: made.children.scaled_elsewhere(namespace, "stepdown-web"), "the watch tells who scaled")
            del made.desired[-1]["spec"]["replicas"]  # as `render` does from here on
            assert (await made.sync()).applied == (f"Deployment {namespace}/stepdown-web",)
            deployment = await made.cluster.get(DEPLOYMENT, namespace, "stepdown-web")
            assert deployment is not None and deployment["spec"]["replicas"] == 5
            assert (await made.sync()).applied == ()

    run(scene())


def test_only_what_is_ours_is_pruned(cluster: DevCluster, namespace: str) -> None:
    """A prune that goes by a name or a label alone deletes other people's objects."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            await made.sync()
            labels = made.desired[0]["metadata"]["labels"]
            references = made.desired[0]["metadata"]["ownerReferences"]
            proxy = await made.cluster.get(ROUTING_PROXY, namespace, "web")
            assert proxy is not None
            other = await made.cluster.create({**proxy, "metadata": {"name": "other", "namespace": namespace}})
            of_other = [{**references[0], "name": "other", "uid": other["metadata"]["uid"]}]
            for name, meta in {
                "labelled-alone": {"labels": labels},
                "owned-alone": {"ownerReferences": references},
                "of-another-proxy": {"labels": labels, "ownerReferences": of_other},
                "no-controller": {"labels": labels, "ownerReferences": [{**references[0], "controller": False}]},
            }.items():
                meta = {"name": name, "namespace": namespace, **meta}
                await made.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
            await asyncio.sleep(0.3)
            del made.desired[1]
            outcome = await made.sync()
            assert (outcome.applied, outcome.deleted) == ((), (f"ConfigMap {namespace}/{SHARD_MAP}",))
            assert (await made.sync()).deleted == (), "not twice while the watch has not told of it"
            await until(made, CONFIG_MAP, SHARD_MAP, lambda o: o is None, "it is gone")
            assert (await made.sync()).deleted == ()
            left = {each["metadata"]["name"] for each in (await made.cluster.list(CONFIG_MAP, namespace)).items}
            assert left >= {"labelled-alone", "owned-alone", "of-another-proxy", "no-controller", FLEET_MAP}

    run(scene())


def test_what_an_earlier_operator_left_over_is_pruned(cluster: DevCluster, namespace: str) -> None:
    """A shard that was emptied while the operator was away would be mounted for ever."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            await made.sync()
            again = Fleet(made.cluster, namespace, made.uid)
            del again.desired[1]
            assert (await again.sync()).deleted == (), "nothing has been listed yet"
            async with again.kept():  # the LIST finds it and says so
                await until(made, CONFIG_MAP, SHARD_MAP, lambda o: o is None, "it is pruned")

    run(scene())


def test_a_name_that_is_taken_is_left_to_its_owner(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """A RoutingProxy called `web` must not turn an application's Service `web` into its own."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            kubectl("create", "service", "clusterip", "web", "--tcp=80:9999", "-n", namespace)
            theirs = await made.cluster.get(SERVICE, namespace, "web")
            async with made.kept():
                outcome = await made.sync()
                assert len(outcome.applied) == 6
                assert list(outcome.failed) == [f"Service {namespace}/web"]
                (message,) = outcome.failed.values()
                assert f"is there already and not part of RoutingProxy {namespace}/web" in message
                assert "Delete it, or give the RoutingProxy another name" in message
                assert outcome.retry_s is not None
                assert await made.cluster.get(SERVICE, namespace, "web") == theirs
                kubectl("delete", "service", "web", "-n", namespace)
                await until(made, SERVICE, "web", lambda o: o is not None and selects_web(o), "once it is free it is ours")

    run(scene())


def test_a_child_that_is_being_deleted_is_told_and_made_anew(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """Held by somebody's finalizer it looks like an object that is there, and serves nobody."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            await made.sync()
            async with made.kept():
                hold = json.dumps({"metadata": {"finalizers": ["example.org/hold"]}})
                kubectl("patch", "service", "web", "-n", namespace, "--type=merge", "-p", hold)
                old = json.loads(kubectl("get", "service", "web", "-n", namespace, "-o", "json"))["metadata"]["uid"]
                kubectl("delete", "service", "web", "-n", namespace, "--wait=false")
                await asyncio.sleep(0.5)
                (message,) = (await made.sync()).failed.values()
                assert message.startswith(f"Service {namespace}/web is being deleted: it is made anew once it is gone")
                free = json.dumps({"metadata": {"finalizers": None}})
                kubectl("patch", "service", "web", "-n", namespace, "--type=merge", "-p", free)
                await until(made, SERVICE, "web", lambda o: o is not None and o["metadata"]["uid"] != old, "it is made anew")

    run(scene())


def test_what_stood_in_the_way_need_not_be_waited_for(cluster: DevCluster, namespace: str) -> None:
    """A proxy that is made anew while its predecessor is collected would be without a Service for up to a minute."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as admin:
            made = Fleet(admin.cluster, namespace, admin.uid, clock=lambda: 0.0)  # no wait ever ends by itself
            proxy = await made.cluster.get(ROUTING_PROXY, namespace, "web")
            assert proxy is not None
            other = await made.cluster.create({**proxy, "metadata": {"name": "other", "namespace": namespace}})
            theirs = copy.deepcopy(made.desired[0])
            theirs["metadata"]["ownerReferences"][0] |= {"name": "other", "uid": other["metadata"]["uid"]}
            await made.cluster.create(theirs)
            async with made.kept():
                (message,) = (await made.sync()).failed.values()
                assert message.endswith(
                    "is controlled by RoutingProxy other: it is left as it is. Give the RoutingProxy another name"
                )
                await made.cluster.delete(CONFIG_MAP, namespace, FLEET_MAP)
                await until(made, CONFIG_MAP, FLEET_MAP, lambda o: o is not None, "it is made as soon as the name is free")

    run(scene())


def test_one_child_that_is_refused_stops_no_other(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            made.desired[3]["spec"]["ports"][0]["port"] = 700_000
            outcome = await made.sync()
            assert len(outcome.applied) == 6
            assert list(outcome.failed) == [f"Service {namespace}/web"]
            assert "spec.ports[0].port: Invalid value: 700000" in outcome.failed[f"Service {namespace}/web"]
            made.requests.clear()
            again = await made.sync()
            assert again.failed == outcome.failed and made.requests == [], "what is wrong is not sent again at every pass"
            made.desired[3]["spec"]["ports"][0]["port"] = 80
            assert (await made.sync()).applied == (f"Service {namespace}/web",), "what was mended is, at once"

    run(scene())


def test_a_field_that_cannot_change_says_what_to_do(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            await made.sync()
            selector = {"stepdown.dev/proxy": "web", "another": "label"}
            made.desired[-1]["spec"]["selector"]["matchLabels"] = selector
            made.desired[-1]["spec"]["template"]["metadata"]["labels"] = selector
            (message,) = (await made.sync()).failed.values()
            assert "spec.selector: Invalid value" in message and "field is immutable" in message
            assert f"`kubectl delete deployments -n {namespace} stepdown-web`, and it is made anew" in message

    run(scene())


@contextlib.asynccontextmanager
async def limited(cluster: DevCluster, namespace: str, folder: Path) -> AsyncIterator[Cluster]:
    """As the namespace's default ServiceAccount, which may do what the test grants it."""
    config = yaml.safe_load(cluster.kubeconfig.read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": cluster.kubectl("create", "token", "default", "-n", namespace).strip()}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    async with Cluster.connect(path) as client:
        yield client


def grant(kubectl: Kubectl, namespace: str, *rules: tuple[str, str, str]) -> None:
    """The Role of the namespace's default ServiceAccount: (groups, resources, verbs) each."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "limited", "namespace": namespace},
        "rules": [
            {"apiGroups": [groups], "resources": resources.split(","), "verbs": verbs.split(",")}
            for groups, resources, verbs in rules
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "limited", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "limited"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all([role, binding]))


FULL = "list,watch,get,patch,create,delete"


def test_rights_that_are_missing_are_told_and_heal_by_themselves(
    cluster: DevCluster, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    """Least privilege is edited by hand; a right too few must not stop the rest, nor need a restart when it is given back."""

    async def scene() -> None:
        grant(kubectl, namespace, ("", "configmaps", "get,patch,create,delete"), ("", "services", FULL))
        async with fleet(cluster, namespace) as made, limited(cluster, namespace, tmp_path) as client:
            await made.sync()
            poor = Fleet(client, namespace, made.uid)
            poor.desired = [poor.desired[0], poor.desired[3], poor.desired[-1]]
            watching = asyncio.create_task(poor.children.run())
            try:
                await eventually(lambda: len(poor.children.troubles) == 6, "six kinds may not be listed")
                outcome = await poor.sync()
                assert outcome.applied == (f"ConfigMap {namespace}/{FLEET_MAP}", f"Service {namespace}/web")
                assert outcome.deleted == (), "what could not be listed is not pruned: unknown is never empty"
                (message,) = outcome.failed.values()
                assert 'cannot get resource "deployments" in API group "apps"' in message
                assert await made.cluster.get(CONFIG_MAP, namespace, SHARD_MAP) is not None
                grant(
                    kubectl,
                    namespace,
                    ("", "configmaps,services,serviceaccounts", FULL),
                    ("apps", "deployments", FULL),
                    ("policy", "poddisruptionbudgets", FULL),
                    ("networking.k8s.io", "networkpolicies", FULL),
                    ("autoscaling", "horizontalpodautoscalers", FULL),
                )
                await eventually(lambda: poor.children.listed and not poor.children.troubles, "everything is in sight", 60)
                await eventually(lambda: poor.told, "what is too much has been seen")
                await poor.settle(60)
                await until(made, CONFIG_MAP, SHARD_MAP, lambda o: o is None, "now it is pruned")
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    run(scene())


def test_a_proxy_that_is_deleted_takes_its_children_along_and_may_come_back(cluster: DevCluster, namespace: str) -> None:
    """What is left of a fleet goes on costing money; what is left of the old one must not become part of the new one."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made, made.watched():
            await made.sync()
            proxy = await made.cluster.get(ROUTING_PROXY, namespace, "web")
            assert proxy is not None
            await made.cluster.delete(ROUTING_PROXY, namespace, "web")
            made.children.forget(made.owner)
            new = await made.cluster.create({**proxy, "metadata": {"name": "web", "namespace": namespace}})
            old, made.uid = made.uid, new["metadata"]["uid"]
            made.desired = made.objects()
            await made.settle(60, meanwhile="still belongs to the RoutingProxy")
            for each in (await made.cluster.list(CONFIG_MAP, namespace, labels="stepdown.dev/proxy=web")).items:
                assert [reference["uid"] for reference in each["metadata"]["ownerReferences"]] == [made.uid] != [old]

    run(scene())


def test_an_api_server_that_hangs_or_goes_away_is_waited_for(own_cluster: ControlPlane) -> None:
    """The cluster's upgrade must not end with an operator that looks well and sees nothing."""

    async def scene() -> None:
        own_cluster.kubectl("create", "namespace", "shop")
        async with fleet(own_cluster, "shop") as admin:
            limits = Limits(connect_s=1, total_s=2, silence_s=90)
            async with Cluster.connect(own_cluster.kubeconfig, limits=limits) as client:
                made = Fleet(client, "shop", admin.uid)
                async with made.kept():
                    await made.sync()
                    own_cluster.pause("kube-apiserver")
                    made.desired[0]["data"] = {"fleet.json": '{"hung": true}'}
                    outcome = await made.sync()
                    assert "no whole answer from" in outcome.failed[f"ConfigMap shop/{FLEET_MAP}"]
                    assert outcome.retry_s is not None
                    own_cluster.resume("kube-apiserver")
                    await until(made, CONFIG_MAP, FLEET_MAP, lambda o: "hung" in o["data"]["fleet.json"], "it is applied")

                    own_cluster.stop_component("kube-apiserver")
                    made.desired[0]["data"] = {"fleet.json": '{"away": true}'}
                    outcome = await made.sync()
                    assert any("no answer from" in each or "closed the connection" in each for each in outcome.failed.values())
                    assert outcome.deleted == ()
                    own_cluster.start_component("kube-apiserver")
                    patch = json.dumps({"data": {"shard-03.json": "edited"}})
                    own_cluster.kubectl("patch", "configmap", SHARD_MAP, "-n", "shop", "--type=merge", "-p", patch)
                    await until(
                        made, CONFIG_MAP, SHARD_MAP, lambda o: o["data"]["shard-03.json"] == "{}", "drift is seen again", 60
                    )
                    await until(made, CONFIG_MAP, FLEET_MAP, lambda o: "away" in o["data"]["fleet.json"], "it is applied", 60)

    run(scene())


def test_a_child_that_the_watch_would_never_see_is_refused(cluster: DevCluster, namespace: str) -> None:
    """It would be applied again at every pass, for ever."""

    async def scene() -> None:
        async with fleet(cluster, namespace) as made:
            for spoil in (
                lambda each: each["metadata"]["labels"].pop("app.kubernetes.io/managed-by"),
                lambda each: each["metadata"].pop("ownerReferences"),
                lambda each: each.update(apiVersion="v1", kind="Pod"),
                lambda each: each["metadata"].update(namespace="kube-system"),
            ):
                spoiled = copy.deepcopy(made.desired[0])
                spoil(spoiled)
                with pytest.raises(ValueError, match=r"is no child of RoutingProxy|no fleets in this namespace"):
                    await made.children.sync(made.owner, made.uid, [spoiled])
            assert made.requests == []

    run(scene())
