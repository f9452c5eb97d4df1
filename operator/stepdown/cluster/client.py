"""The API server as verbs over plain dicts. Everything in `cluster` speaks to Kubernetes by this, and so do `watch` and `sync`.

No generated models: they would cost a hundred megabytes and turn every field that a newer API server adds into a lost one.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stepdown.cluster.kinds import KindRef

FIELD_MANAGER = "stepdown"

Object = dict[str, Any]
ChangeType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


class Listing(NamedTuple):
    """A whole LIST: every object there was at `resource_version`."""

    items: list[Object]
    resource_version: str


class Change(NamedTuple):
    """One event of a watch. A BOOKMARK has an object of nothing but its resourceVersion."""

    type: ChangeType
    object: Object

    @property
    def resource_version(self) -> str:
        version: str = self.object["metadata"]["resourceVersion"]
        return version


class TokenReview(NamedTuple):
    """What the API server says of a token."""

    authenticated: bool
    """Valid, and meant for the audience that was asked for."""
    user: str = ""
    uid: str = ""
    pod_name: str = ""
    """The pod that the token is bound to; empty where it is bound to none."""
    pod_uid: str = ""
    error: str = ""
    """Why it is not valid, in the API server's words."""


class Cluster:
    """One API server. Made by `connect`. Every call has a time limit, and raises a ClusterError."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> AsyncIterator["Cluster"]:
        """`async with Cluster.connect(path) as cluster`. Without a path: $KUBECONFIG, else the pod's own ServiceAccount, else
        ~/.kube/config. Nothing is sent yet. Raises NotConfigured."""
        raise NotImplementedError
        yield

    async def list(self, kind: KindRef, namespace: str = "", *, labels: str = "", metadata_only: bool = False) -> Listing:
        """Every object, read in pages."""
        raise NotImplementedError

    async def get(self, kind: KindRef, namespace: str, name: str, *, metadata_only: bool = False) -> Object | None:
        """None: the object is not there. (NotServed: the kind is not.)"""
        raise NotImplementedError

    async def apply(self, obj: Mapping[str, Any], *, metadata_only: bool = False) -> Object:
        """Server-side apply as `stepdown`, by force: what we say is ours. Returns the object as it is now."""
        raise NotImplementedError

    async def apply_status(
        self, kind: KindRef, namespace: str, name: str, uid: str, status: Mapping[str, Any]
    ) -> Object | None:
        """Server-side apply of nothing but the status. None: that object (by UID) is no more."""
        raise NotImplementedError

    async def create(self, obj: Mapping[str, Any]) -> Object:
        """Conflict (reason AlreadyExists) where the name is taken."""
        raise NotImplementedError

    async def replace(self, obj: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """PUT; with metadata.resourceVersion, Conflict where somebody was faster."""
        raise NotImplementedError

    async def merge_patch(
        self, kind: KindRef, namespace: str, name: str, patch: Mapping[str, Any], *, metadata_only: bool = False
    ) -> Object:
        """JSON merge patch; a metadata.resourceVersion in it is a precondition."""
        raise NotImplementedError

    async def delete(self, kind: KindRef, namespace: str, name: str, *, uid: str = "", resource_version: str = "") -> bool:
        """False: it was not there. With `uid` or `resource_version`, Conflict where it is another."""
        raise NotImplementedError

    def watch(
        self,
        kind: KindRef,
        namespace: str = "",
        *,
        labels: str = "",
        resource_version: str,
        metadata_only: bool = False,
        timeout_s: float = 240,
    ) -> AsyncIterator[Change]:
        """What changes after `resource_version`, bookmarks included, until the server ends it (at `timeout_s`); go on from
        the last change's version then. Raises Gone (list again) and Unavailable, also for a stream that is silent."""
        raise NotImplementedError

    async def review_token(self, token: str, audience: str) -> TokenReview:
        raise NotImplementedError

    async def raw_get(self, path: str) -> bytes:
        """Any path, such as `/openid/v1/jwks` or `/version`."""
        raise NotImplementedError
