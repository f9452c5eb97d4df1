"""Who may sync, asked of a real API server: tokens that it issued, and tokens that somebody would like it to have issued.

A pod here is an object without a node: the controllers make it for a real Deployment, and its token comes from the TokenRequest
API, as the kubelet gets it.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from devcluster import Cluster as DevCluster
from devcluster import ControlPlane

from stepdown.cluster.kinds import POD, SERVICE_ACCOUNT
from stepdown.model.sync import SyncAnswer, SyncUnavailable
from stepdown.sync.fleets import LiveFleet
from tests.cluster.fleet import Fleet, fleet, run
from tests.wire.sync_world import CHAT, CONFIG, Operator, Pod, request

Object = dict[str, Any]


class Scene:
    """A fleet with two pods, and the operator that their proxies call."""

    def __init__(self, admin: DevCluster, made: Fleet, operator: Operator, pods: list[Object]) -> None:
        self.admin, self.fleet, self.operator, self.pods = admin, made, operator, pods
        self.namespace = made.namespace

    def token(self, pod: Object | None, account: str = "stepdown-web", audience: str = "stepdown") -> str:
        """From the TokenRequest API, bound to a pod as a projected one is."""
        spec: Object = {"audiences": [audience] if audience else [], "expirationSeconds": 3600}
        if pod is not None:
            meta = pod["metadata"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        path = f"{SERVICE_ACCOUNT.path(self.namespace, account)}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status, answer = self.admin.request("POST", path, body)
        assert status == 201, answer
        token: str = answer["status"]["token"]
        return token

    async def sync(self, path: Path, token: str, instance: str = "a", name: str = "", seq: int = 1) -> SyncAnswer:
        """One message over HTTPS. Raises SyncUnavailable with what was answered."""
        pod = Pod(path, self.operator.port, self.operator.authority.bundle, token)
        try:
            return await pod.sync(request(instance, seq, name or f"{self.namespace}/web", ready=True))
        finally:
            pod.sync.close()

    async def pod(self, name: str, account: str) -> Object:
        """One that no Deployment has made."""
        containers = [{"name": "c", "image": "none"}]
        metadata = {"name": name, "namespace": self.namespace}
        spec = {"serviceAccountName": account, "containers": containers, "automountServiceAccountToken": False}
        return await self.fleet.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


@contextlib.asynccontextmanager
async def scene(admin: DevCluster, namespace: str, path: Path) -> AsyncIterator[Scene]:
    async with fleet(admin, namespace) as made:
        made.desired = [each for each in made.desired if each["kind"] in ("ServiceAccount", "Deployment")]
        for each in made.desired:
            if each["kind"] == "Deployment":
                each["spec"]["template"]["spec"]["serviceAccountName"] = "stepdown-web"
        async with made.watched():
            await made.sync()
        pods: list[Object] = []
        until_s = time.monotonic() + 30.0
        while len(pods) < 2 and time.monotonic() < until_s:
            pods = (await made.cluster.list(POD, namespace)).items
            await asyncio.sleep(0.05)
        operator = Operator(path, api=made.cluster)
        operator.fleets[made.owner] = LiveFleet(made.uid, 600.0)
        async with operator:
            operator.service.publish(msgspec.structs.replace(CONFIG, name=made.owner), {CHAT.index: CHAT})
            yield Scene(admin, made, operator, pods)


def forged(token: str, claims: Object, key: ec.EllipticCurvePrivateKey) -> str:
    """The token with other claims, signed with this key; its header stays."""
    head, body, _ = token.split(".")
    body = _base64(json.dumps({**json.loads(_bytes(body)), **claims}).encode())
    r, s = decode_dss_signature(key.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256())))
    return f"{head}.{body}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def issuers_key(cluster: DevCluster) -> ec.EllipticCurvePrivateKey:
    """What the API server itself signs tokens with: the only way to one that has expired without waiting for ten minutes."""
    key = serialization.load_pem_private_key((cluster.state / "pki" / "service-accounts.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def test_a_pod_of_the_fleet_gets_the_fleets_config(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """The way in for every proxy of every fleet."""

    async def work() -> None:
        async with scene(cluster, namespace, tmp_path) as made:
            for number, pod in enumerate(made.pods):
                answer = await made.sync(tmp_path / "pod", made.token(pod), f"i{number}")
                assert answer.fleet is not None and answer.fleet.name == f"{namespace}/web"
                assert set(answer.shards[0].routes) == {"shop/chat"}
            seen = made.operator.service.proxies(made.operator.clock.now_s())[f"{namespace}/web"]
            assert (seen.pods, seen.ready) == (2, 2)

    run(work())


def test_tokens_that_the_api_server_does_not_know(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """Forged, expired, and for another audience: anyone who can write JSON would have a fleet's leases."""

    async def work() -> None:
        async with scene(cluster, namespace, tmp_path) as made:
            good = made.token(made.pods[0])
            key = issuers_key(cluster)
            now_s = int(made.operator.clock.now_s())
            assert await made.sync(tmp_path / "pod", forged(good, {"exp": now_s + 60}, key)), "the key is the issuer's"
            head, body, signature = good.split(".")
            middle = len(signature) // 2
            changed = signature[:middle] + ("A" if signature[middle] != "A" else "B") + signature[middle + 1 :]
            unsigned = _base64(json.dumps({"alg": "none"}).encode())
            bad = {
                "another signature": f"{head}.{body}.{changed}",
                "another key": forged(good, {}, ec.generate_private_key(ec.SECP256R1())),
                "other claims": f"{head}.{forged(good, {'sub': 'system:serviceaccount:x:y'}, key).split('.')[1]}.{signature}",
                "no signature": f"{unsigned}.{body}.",
                "expired": forged(good, {"iat": now_s - 7200, "nbf": now_s - 7200, "exp": now_s - 3600}, key),
                "not good yet": forged(good, {"nbf": now_s + 3600, "exp": now_s + 7200}, key),
                "another issuer": forged(good, {"iss": "https://elsewhere"}, key),
                "for callers of the proxy": made.token(made.pods[0], audience="stepdown-proxy"),
                "for the API server": made.token(made.pods[0], audience=""),
            }
            for what, token in bad.items():
                with pytest.raises(SyncUnavailable, match=r"answered 401.*does not know the token"):
                    await made.sync(tmp_path / "pod", token)
                    pytest.fail(what)
            assert made.operator.https.answers == {200: 1, 401: len(bad)}

    run(work())


def test_tokens_of_somebody_else(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """Valid, of this cluster, and not a proxy of this fleet's."""

    async def work() -> None:
        async with scene(cluster, namespace, tmp_path) as made:
            account = {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": "stepdown-other", "namespace": namespace},
            }
            await made.fleet.cluster.create(account)
            bare = await made.pod("bare", "stepdown-web")
            other = await made.pod("other", "stepdown-other")
            default = await made.pod("default", "default")
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "none", "uid": made.fleet.uid, "controller": True}
            cases = [
                (made.token(bare), "is not controlled by a ReplicaSet"),
                (made.token(None), "is not bound to a pod"),
                (made.token(default, "default"), "is not the ServiceAccount of a proxy"),
                (made.token(other, "stepdown-other"), f"there is no RoutingProxy {namespace}/other"),
            ]
            for token, says in cases:
                with pytest.raises(SyncUnavailable, match=f"answered 403.*{says}"):
                    await made.sync(tmp_path / "pod", token)
            made.operator.fleets[f"{namespace}/other"] = LiveFleet(owner["uid"] + "-2", 600.0)
            mine = made.token(made.pods[0])
            for token, name in ((mine, f"{namespace}/other"), (mine, "elsewhere/web")):
                with pytest.raises(SyncUnavailable, match=r"answered 403.*its token of a proxy of"):
                    await made.sync(tmp_path / "pod", token, name=name)
            del made.operator.fleets[f"{namespace}/web"]
            with pytest.raises(SyncUnavailable, match=r"answered 403.*there is no RoutingProxy"):
                await made.sync(tmp_path / "pod", made.token(made.pods[1]))
            farewell = await made.sync(tmp_path / "pod", mine)
            assert (farewell.fleet, farewell.shards) == (None, ()), "it may settle up, and gets nothing"

    run(work())


def test_another_pod_of_the_same_fleet_cannot_take_an_instance(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """One proxy that was broken into would spend what the others were granted."""

    async def work() -> None:
        async with scene(cluster, namespace, tmp_path) as made:
            first, second = (made.token(pod) for pod in made.pods)
            await made.sync(tmp_path / "pod", first, "mine")
            with pytest.raises(SyncUnavailable, match=r"answered 403.*instance mine belongs to another pod"):
                await made.sync(tmp_path / "pod", second, "mine", seq=2)
            rotated = made.token(made.pods[0])
            assert rotated != first
            assert (await made.sync(tmp_path / "pod", rotated, "mine", seq=3)).verdict == "ok", "the pod's next token"

    run(work())


def test_the_token_of_a_pod_that_is_gone_is_worth_nothing(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """A token that was copied out of a pod would outlive it by an hour."""

    async def work() -> None:
        async with scene(cluster, namespace, tmp_path) as made:
            pod = made.pods[0]["metadata"]
            token = made.token(made.pods[0])
            path = f"{POD.path(namespace, pod['name'])}?gracePeriodSeconds=0"
            assert cluster.request("DELETE", path)[0] == 200
            with pytest.raises(SyncUnavailable, match="answered 401"):
                await made.sync(tmp_path / "pod", token)

    run(work())


def test_an_outage_of_the_api_server_stops_no_proxy_that_is_known(own_cluster: ControlPlane, tmp_path: Path) -> None:
    """Money does not need the API server: its restart must not be seen by anyone who calls a route."""

    async def work(namespace: str) -> None:
        async with scene(own_cluster, namespace, tmp_path) as made:
            known, unknown = (made.token(pod) for pod in made.pods)
            await made.sync(tmp_path / "pod", known)
            own_cluster.stop_component("kube-apiserver")
            assert (await made.sync(tmp_path / "pod", known, seq=2)).verdict == "ok"
            with pytest.raises(SyncUnavailable, match=r"answered 503.*unverifiable"):
                await made.sync(tmp_path / "pod", unknown, "b")
            own_cluster.start_component("kube-apiserver")
            assert (await made.sync(tmp_path / "pod", unknown, "b", seq=2)).verdict == "ok"

    with own_cluster.namespace() as namespace:
        run(work(namespace))
