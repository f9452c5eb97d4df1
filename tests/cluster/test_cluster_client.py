"""The door to a real API server: what a scripted one cannot know. If these fail, the operator misreads its cluster."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from devcluster import Cluster as DevCluster
from devcluster import ControlPlane

from stepdown.cluster.client import Change, Cluster
from stepdown.cluster.errors import AlreadyExists, Conflict, Gone, NotFound, NotServed, Rejected
from stepdown.cluster.events import ObjectRef, Recorder
from stepdown.cluster.kinds import CONFIG_MAP, EVENT, MODEL_CATALOG, POD, ROUTING_PROXY, KindRef
from stepdown.cluster.statuses import Seen, StatusWriter
from stepdown.cluster.wire import Answered
from stepdown.cluster.witness import ConfigMapWitness, WitnessDamaged
from tests.cluster.fleet import PROXY, install, run

Kubectl = Callable[..., str]


def config_map(namespace: str, name: str, data: dict[str, str] | None = None, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data or {}}


def test_a_thousand_objects_are_listed_in_pages_and_without_their_contents(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            names = [f"c-{index:04}" for index in range(1050)]
            await asyncio.gather(*(client.create(config_map(namespace, name, {"a": "b"}, x="y")) for name in names))
            requests: list[Answered] = []
            client.count(requests.append)
            whole = await client.list(CONFIG_MAP, namespace, labels="x=y")
            assert [each["metadata"]["name"] for each in whole.items] == names and len(requests) == 3
            assert {(each["kind"], each["apiVersion"], each["data"]["a"]) for each in whole.items} == {("ConfigMap", "v1", "b")}
            meta = await client.list(CONFIG_MAP, namespace, labels="x=y", metadata_only=True)
            assert [each["metadata"] for each in meta.items] == [each["metadata"] for each in whole.items]
            assert all(set(each) == {"kind", "apiVersion", "metadata"} and each["kind"] == "ConfigMap" for each in meta.items)
            assert (await client.list(CONFIG_MAP, namespace, labels="x=z")).items == []
            assert int(meta.resource_version) >= int(whole.resource_version)

    run(scene())


def test_a_watch_tells_what_came_after_the_list(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            await client.create(config_map(namespace, "before", x="y"))
            listing = await client.list(CONFIG_MAP, namespace, labels="x=y", metadata_only=True)
            await client.create(config_map(namespace, "a", x="y"))
            await client.create(config_map(namespace, "unlabelled"))
            await client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"k": "v" * 100}})
            await client.merge_patch(CONFIG_MAP, namespace, "a", {"metadata": {"labels": {"x": None}}})
            await client.delete(CONFIG_MAP, namespace, "before")
            version, changes = listing.resource_version, []
            watch = client.watch(CONFIG_MAP, namespace, labels="x=y", resource_version=version, metadata_only=True, timeout_s=4)
            async with contextlib.aclosing(watch) as stream:  # type: ignore[type-var]  # an async generator
                async for change in stream:
                    changes.append(change)
            told = [(each.type, each.object["metadata"]["name"]) for each in changes if each.type != "BOOKMARK"]
            assert told == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("DELETED", "before")]
            versions = [int(each.resource_version) for each in changes]
            assert versions == sorted(versions) and versions[0] > int(version)
            assert {each.object["kind"] for each in changes} == {"ConfigMap"}
            assert all("data" not in each.object for each in changes)

    run(scene())


def test_a_history_that_is_gone_says_so(own_cluster: ControlPlane) -> None:
    """After an upgrade of the control plane every watch begins here."""

    async def scene() -> None:
        async with Cluster.connect(own_cluster.kubeconfig) as client:
            old = (await client.list(CONFIG_MAP)).resource_version
            for index in range(20):
                await client.create(config_map("default", f"c-{index}"))
            own_cluster.stop_component("kube-apiserver")
            own_cluster.start_component("kube-apiserver")
            with pytest.raises(Gone):
                async with contextlib.aclosing(client.watch(CONFIG_MAP, resource_version=old, timeout_s=5)) as stream:  # type: ignore[type-var]
                    async for _ in stream:
                        pass

    run(scene())


def test_refusals_are_told_apart(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            made = await client.create(config_map(namespace, "a"))
            with pytest.raises(AlreadyExists):
                await client.create(config_map(namespace, "a"))
            with pytest.raises(NotFound, match="not found"):
                await client.create(config_map("no-such-namespace", "a"))
            await client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"k": "v"}})
            for stale in (
                client.replace(made),
                client.merge_patch(CONFIG_MAP, namespace, "a", {"metadata": {"resourceVersion": "1"}, "data": {}}),
                client.delete(CONFIG_MAP, namespace, "a", uid="another"),
                client.delete(CONFIG_MAP, namespace, "a", resource_version=made["metadata"]["resourceVersion"]),
            ):
                with pytest.raises(Conflict):
                    await stale
            with pytest.raises(Rejected, match="Invalid value"):
                await client.create(config_map(namespace, "A_B"))
            with pytest.raises(Rejected, match="1048576"):
                await client.apply(config_map(namespace, "big", {"k": "x" * 1_200_000}))
            unknown = KindRef("stepdown.dev", "v9", "Nothing", "nothings")
            for ask in (client.list(unknown), client.get(unknown, namespace, "x"), client.delete(unknown, namespace, "x")):
                with pytest.raises(NotServed):
                    await ask
            assert await client.get(CONFIG_MAP, namespace, "b") is None
            assert await client.delete(CONFIG_MAP, namespace, "b") is False
            assert await client.delete(CONFIG_MAP, namespace, "a", uid=made["metadata"]["uid"]) is True

    run(scene())


def test_a_shard_of_the_largest_size_goes_through(cluster: DevCluster, namespace: str) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            data = {"shard-03.json": json.dumps({"ü": "x" * (900 * 1024)})}
            answer = await client.apply(config_map(namespace, "shard", data), metadata_only=True)
            assert set(answer) == {"apiVersion", "kind", "metadata"}
            read = await client.get(CONFIG_MAP, namespace, "shard")
            assert read is not None and read["data"] == data

    run(scene())


# Tokens -------------------------------------------------------------------------------------------------------------------


def test_a_pods_token_says_which_pod(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """What sync lets in, and what it does not."""

    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            container = {"name": "c", "image": "i"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}}
            made = await client.create({**pod, "spec": {"containers": [container]}})
            bound = ("--bound-object-kind=Pod", "--bound-object-name=p")

            def token(*more: str) -> str:
                return kubectl("create", "token", "default", "-n", namespace, *more).strip()

            good = token("--audience=stepdown", *bound)
            review = await client.review_token(good, "stepdown")
            assert review.authenticated and not review.error
            assert review.user == f"system:serviceaccount:{namespace}:default" and review.uid
            assert (review.pod_name, review.pod_uid) == ("p", made["metadata"]["uid"])
            unbound = await client.review_token(token("--audience=stepdown"), "stepdown")
            assert unbound.authenticated and not unbound.pod_name and not unbound.pod_uid
            head, payload, signature = good.split(".")
            claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
            claims["sub"] = "system:serviceaccount:kube-system:default"
            forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
            for bad in (token(*bound), token("--audience=other"), "nonsense", "", f"{head}.{forged}.{signature}"):
                refused = await client.review_token(bad, "stepdown")
                assert not refused.authenticated and refused.error and not refused.user and not refused.pod_uid
            await client.delete(POD, namespace, "p", uid=made["metadata"]["uid"])
            kubectl("delete", "pod", "p", "-n", namespace, "--grace-period=0", "--force", "--ignore-not-found")
            async with asyncio.timeout(30):
                while (await client.review_token(good, "stepdown")).authenticated:  # noqa: ASYNC110  # the API server caches it
                    await asyncio.sleep(0.5)

    run(scene())


def test_the_keys_of_the_clusters_tokens_can_be_read(cluster: DevCluster) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            assert json.loads(await client.raw_get("/openid/v1/jwks"))["keys"]
            access = await client.access()
            assert access.server == client.host and access.ca_file and not access.insecure

    run(scene())


def test_a_refused_token_is_read_again(cluster: DevCluster, namespace: str, kubectl: Kubectl, tmp_path: Any) -> None:
    """A kubeconfig's tokenFile, as a pod's: replaced while we run."""

    async def scene() -> None:
        config = yaml.safe_load(cluster.kubeconfig.read_text(encoding="utf-8"))
        config["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
        (tmp_path / "token").write_text("no.longer.valid", encoding="ascii")
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")
        async with Cluster.connect(tmp_path / "kubeconfig") as client:
            fresh = kubectl("create", "token", "default", "-n", namespace).strip()
            (tmp_path / "token").write_text(fresh + "\n", encoding="ascii")
            assert json.loads(await client.raw_get("/version"))["major"] == "1"

    run(scene())


# Status, Events, the witness ------------------------------------------------------------------------------------------------


def test_a_status_changes_nothing_else_and_is_written_once(cluster: DevCluster, namespace: str) -> None:
    """Git stays the owner: no finalizer, no annotation, no spec, and no write that says nothing new."""

    async def scene() -> None:
        install(cluster)
        async with Cluster.connect(cluster.kubeconfig) as client:
            proxy = await client.create({**PROXY, "metadata": {"name": "web", "namespace": namespace}})
            uid, key = proxy["metadata"]["uid"], f"{namespace}/web"
            writer = StatusWriter(client)
            ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "observedGeneration": 1}
            ready["lastTransitionTime"] = "2026-11-24T00:00:00Z"
            document = {"observedGeneration": 1, "conditions": [ready], "routes": 3}
            assert await writer.write(ROUTING_PROXY, key, uid, document)
            now = await client.get(ROUTING_PROXY, namespace, "web")
            assert now is not None and now["status"] == document and now["spec"] == proxy["spec"]
            own = {"managedFields", "resourceVersion"}
            assert {k: v for k, v in now["metadata"].items() if k not in own} == {
                k: v for k, v in proxy["metadata"].items() if k not in own
            }
            again, version = StatusWriter(client), now["metadata"]["resourceVersion"]
            assert not await again.write(ROUTING_PROXY, key, uid, document, Seen(version, now["status"]))
            assert not await writer.write(ROUTING_PROXY, key, uid, document)
            del document["routes"]
            assert await writer.write(ROUTING_PROXY, key, uid, document)
            now = await client.get(ROUTING_PROXY, namespace, "web")
            assert now is not None and "routes" not in now["status"], "what is not said any more is gone"
            assert not await writer.write(ROUTING_PROXY, key, "another-uid", {"observedGeneration": 9})
            assert not await writer.write(ROUTING_PROXY, f"{namespace}/missing", uid, {"observedGeneration": 9})
            with pytest.raises(Rejected, match="observedGeneration"):
                await writer.write(ROUTING_PROXY, key, uid, {"observedGeneration": "many"})
            assert await client.get(ROUTING_PROXY, namespace, "web") == now

    run(scene())


def test_events_are_shown_by_kubectl(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    async def scene() -> None:
        install(cluster)
        async with Cluster.connect(cluster.kubeconfig) as client:
            proxy = await client.create({**PROXY, "metadata": {"name": "web", "namespace": namespace}})
            now = [1_790_000_000.0]
            recorder = Recorder(client, "stepdown-0", lambda: now[0])
            writing = asyncio.create_task(recorder.run())
            web = ObjectRef(ROUTING_PROXY, namespace, "web", proxy["metadata"]["uid"])
            for _ in range(3):
                recorder.record(web, "Warning", "InvalidSpec", "The upstream ü is not allowed: " + "x" * 2000)
                now[0] += 60
            catalog = ObjectRef(MODEL_CATALOG, "", f"prices-{namespace}", "a-uid")
            recorder.record(catalog, "Normal", "StepReached", "A catalog has no namespace.")
            recorder.record(web._replace(namespace="no-such-namespace"), "Normal", "Lost", "Nowhere to write it.")
            await recorder.flush(20)
            (event,) = json.loads(kubectl("get", "events", "-n", namespace, "-o", "json"))["items"]
            assert (event["count"], event["type"], event["reason"]) == (3, "Warning", "InvalidSpec")
            assert event["firstTimestamp"] < event["lastTimestamp"]
            assert (event["reportingComponent"], event["reportingInstance"]) == ("stepdown", "stepdown-0")
            assert "InvalidSpec" in kubectl("describe", "rproxy", "web", "-n", namespace)
            everywhere = await client.list(EVENT, "default")
            of_catalog = [each for each in everywhere.items if each["involvedObject"]["name"] == catalog.name]
            assert [each["message"] for each in of_catalog] == ["A catalog has no namespace."]
            await client.delete(EVENT, namespace, event["metadata"]["name"])
            recorder.record(web, "Warning", "InvalidSpec", "The upstream ü is not allowed: " + "x" * 2000)
            await recorder.flush(20)
            (event,) = json.loads(kubectl("get", "events", "-n", namespace, "-o", "json"))["items"]
            assert event["count"] == 1
            writing.cancel()

    run(scene())


def test_the_witness_keeps_every_mark(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as one, Cluster.connect(cluster.kubeconfig) as two:
            witnesses = [ConfigMapWitness(one, namespace), ConfigMapWitness(two, namespace)]
            assert await witnesses[0].read() == {}
            long = "n" * 63 + "/" + "b" * 253 + "@1793491200"
            marks = {f"shop/team-{index}@1793491200": index for index in range(200)} | {long: 7, "epoch": 1}
            await asyncio.gather(*(witness.raise_to(marks) for witness in witnesses))
            await asyncio.gather(*(witnesses[at % 2].raise_to({"epoch": at, f"a/{at}@0": at}) for at in range(40)))
            expected = {**marks, "epoch": 39, **{f"a/{at}@0": at for at in range(40)}}
            assert await witnesses[0].read() == expected
            kubectl("delete", "configmap", "stepdown-witness", "-n", namespace)
            await witnesses[0].raise_to({"epoch": 50})
            assert await ConfigMapWitness(two, namespace).read() == {**expected, "epoch": 50}
            assert await witnesses[0].prune(1_793_491_200) == 40
            assert await ConfigMapWitness(two, namespace).read() == {**marks, "epoch": 50}
            patch = json.dumps({"data": {"epoch": "many"}})
            kubectl("patch", "configmap", "stepdown-witness", "-n", namespace, "--type=merge", "-p", patch)
            with pytest.raises(WitnessDamaged):
                await witnesses[1].read()

    run(scene())


def test_changes_are_told_one_by_one() -> None:
    change = Change("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
    assert change.resource_version == "7"
