"""An API server in memory, at the seam where `sync.auth` asks one: tokens, and the objects from a pod to its RoutingProxy."""

import asyncio
from typing import Any, NamedTuple

from stepdown.cluster.kinds import DEPLOYMENT, POD, REPLICA_SET, KindRef

USER = "system:serviceaccount:shop:stepdown-web"
FLEET = "shop/web"
TOKEN = "t.o.1"
"""Of pod web-1, UID pod-1, of fleet shop/web, UID fleet-1."""


class Review(NamedTuple):
    authenticated: bool = True
    user: str = USER
    pod_name: str = "web-1"
    pod_uid: str = "pod-1"
    error: str = ""


def owned(name: str, uid: str, kind: str = "", owner: str = "", owner_uid: str = "") -> dict[str, Any]:
    owners = [{"kind": kind, "name": owner, "uid": owner_uid, "controller": True}] if kind else []
    return {"metadata": {"name": name, "uid": uid, "ownerReferences": owners}}


class FakeApi:
    """Tokens and objects; every question is noted. It can be away, or hang."""

    def __init__(self) -> None:
        self.tokens: dict[str, Review] = {TOKEN: Review()}
        self.objects: dict[tuple[KindRef, str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.latency_s = 0.001
        self.at_once = self.most_at_once = 0
        self.put(POD, owned("web-1", "pod-1", "ReplicaSet", "stepdown-web-5d", "rs-1"))
        self.put(REPLICA_SET, owned("stepdown-web-5d", "rs-1", "Deployment", "stepdown-web", "deploy-1"))
        self.put(DEPLOYMENT, owned("stepdown-web", "deploy-1", "RoutingProxy", "web", "fleet-1"))

    def put(self, kind: KindRef, thing: dict[str, Any], namespace: str = "shop") -> None:
        self.objects[kind, namespace, thing["metadata"]["name"]] = thing

    async def review_token(self, token: str, audience: str) -> Review:
        assert audience == "stepdown"
        await self._ask("review")
        return self.tokens.get(token, Review(authenticated=False, error="invalid bearer token"))

    async def get(self, kind: KindRef, namespace: str, name: str, *, metadata_only: bool = False) -> dict[str, Any] | None:
        await self._ask(kind.kind)
        return self.objects.get((kind, namespace, name))

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.latency_s)
            if self.error is not None:
                raise self.error
        finally:
            self.at_once -= 1
