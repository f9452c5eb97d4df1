"""The API server as verbs over plain dicts. Everything in `cluster` speaks to Kubernetes by this, and so do `watch` and `sync`.

No generated models: they would cost a hundred megabytes and turn every field that a newer API server adds into a lost one.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepdown.cluster import config
from stepdown.cluster.errors import Conflict, Gone, NotFound, NotServed, Unavailable
from stepdown.cluster.kinds import TOKEN_REVIEW, KindRef, kind_of, named, reference_of
from stepdown.cluster.watching import ChangeType, lines, parse
from stepdown.cluster.wire import LIMITS, Answered, Limits, Request, Silent, Wire, decode

FIELD_MANAGER = "stepdown"
PAGE = 500
"""Objects in one answer to a LIST."""
ATTEMPTS = 5
"""To write a status while others write the object."""

_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"

Object = dict[str, Any]


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


class Access(NamedTuple):
    """What another client (kopf's) needs to speak to the same API server as the same user."""

    server: str
    authorization: str
    """The header; empty where a certificate says who we are."""
    ca_file: str | None
    cert_file: str | None
    key_file: str | None
    insecure: bool


class Cluster:
    """One API server. Made by `connect`. Every call has a time limit, and raises a ClusterError."""

    def __init__(self, wire: Wire, namespace: str = "default") -> None:
        self._wire = wire
        self.namespace = namespace
        """Of the context in use, or the pod's own."""

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, kubeconfig: Path | None = None, context: str | None = None, *, limits: Limits = LIMITS
    ) -> AsyncIterator["Cluster"]:
        """`async with Cluster.connect(path) as cluster`. Without a path: $KUBECONFIG, else the pod's own ServiceAccount, else
        ~/.kube/config. Nothing is sent yet. Raises NotConfigured."""
        configuration, credentials = await config.load(kubeconfig, context)
        wire = Wire(configuration, credentials, limits)
        try:
            yield cls(wire, credentials.namespace)
        finally:
            await wire.close()

    @property
    def host(self) -> str:
        """The API server's URL."""
        return self._wire.host

    async def access(self, *, renewed: bool = False) -> Access:
        """`renewed`: what was said before has been refused, so that it is read again."""
        return Access(*await self._wire.access(renewed))

    def count(self, answered: Callable[[Answered], None]) -> None:
        """Calls `answered` after every request from now on."""
        self._wire.answered = answered

    # Reading ----------------------------------------------------------------------------------------------------------

    async def list(
        self, kind: KindRef, namespace: str = "", *, labels: str = "", metadata_only: bool = False, owned: bool = True
    ) -> Listing:
        """Every object, read in pages. Pages that expire while they are read are begun anew, then asked for in one.

        `owned`: with metadata.managedFields, which may be the larger part of an object."""
        for page in (PAGE, PAGE, 0):
            try:
                return await self._list(kind, namespace, labels, metadata_only, owned, page)
            except Gone:
                if not page:
                    raise
        raise AssertionError("the loop returns or raises")

    async def _list(self, kind: KindRef, namespace: str, labels: str, metadata_only: bool, owned: bool, page: int) -> Listing:
        what = f"list {kind.plural}" + (f" in {namespace}" if namespace else "")
        query = [("labelSelector", labels)] if labels else []
        if page:
            query.append(("limit", str(page)))
        items: list[Object] = []
        token = ""
        while True:
            paged = [*query, ("continue", token)] if token else query
            accept = _METADATA_LIST if metadata_only else _JSON
            answer = decode(await self._wire.request(Request("GET", kind.path(namespace), what, paged, accept=accept)), what)
            found, meta = answer.get("items"), answer.get("metadata")
            # Unknown is never empty: an answer that is no list must not read as "there are none".
            if not isinstance(meta, dict) or not isinstance(meta.get("resourceVersion"), str) or "items" not in answer:
                raise Unavailable(f"{what}: the answer is not a list of {kind.plural}")
            for item in found or ():
                items.append(_typed(item, kind, what))
                if not owned:
                    items[-1]["metadata"].pop("managedFields", None)
            token = meta.get("continue") or ""
            if not token:
                return Listing(items, meta["resourceVersion"])

    async def get(
        self, kind: KindRef, namespace: str, name: str, *, metadata_only: bool = False, timeout_s: float | None = None
    ) -> Object | None:
        """None: the object is not there. (NotServed: the kind is not.)"""
        what = f"get {named(kind, namespace, name)}"
        try:
            accept = _METADATA if metadata_only else _JSON
            request = Request("GET", kind.path(namespace, name), what, accept=accept)
            body = await self._wire.request(request, timeout_s=timeout_s)
        except NotServed:
            raise
        except NotFound:
            return None
        return _typed(decode(body, what), kind, what)

    async def watch(
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
        the last change's version then. It ends too when nothing has come for a minute. Raises Gone (list again), Unavailable.

        Whoever leaves the loop early closes it: `async with contextlib.aclosing(cluster.watch(…)) as changes`."""
        what = f"watch {kind.plural}" + (f" in {namespace}" if namespace else "")
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(max(1, round(timeout_s)))),
        ]
        if labels:
            query.append(("labelSelector", labels))
        accept = _METADATA if metadata_only else _JSON
        request = Request("GET", kind.path(namespace), what, query, accept=accept)
        with contextlib.suppress(Silent):
            async with self._wire.stream(request, timeout_s=timeout_s) as body:
                async for line in lines(body, what):
                    yield Change(*parse(line, kind, what))

    # Writing ----------------------------------------------------------------------------------------------------------

    async def apply(self, obj: Mapping[str, Any], *, metadata_only: bool = False) -> Object:
        """Server-side apply as `stepdown`, by force: what we say is ours. Returns the object as it is now."""
        kind, meta = kind_of(obj), obj["metadata"]
        path = kind.path(meta.get("namespace", ""), meta["name"])
        what = f"apply {reference_of(obj)}"
        return await self._write("PATCH", path, obj, kind, what, _APPLY, metadata_only=metadata_only, force=True)

    async def apply_status(
        self, kind: KindRef, namespace: str, name: str, uid: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object | None:
        """Server-side apply of nothing but the status. None: that object (by UID) is no more. The answer is metadata only.

        For a custom resource's status the API server ignores a UID (as of 1.34), but no resourceVersion: so a version that the
        object of that UID had is the precondition. `resource_version`: the newest that is known; else it is asked for."""
        what = f"apply the status of {named(kind, namespace, name)}"
        path = kind.path(namespace, name, "status")
        version = resource_version
        for attempt in range(ATTEMPTS):
            if not version:
                there = await self.get(kind, namespace, name, metadata_only=True)
                if there is None or there["metadata"].get("uid") != uid:
                    return None
                version = there["metadata"]["resourceVersion"]
            metadata = {"name": name, "resourceVersion": version, **({"namespace": namespace} if kind.namespaced else {})}
            obj = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
            try:
                return await self._write("PATCH", path, obj, kind, what, _APPLY, metadata_only=True, force=True)
            except NotServed:
                raise
            except NotFound:
                return None
            except Conflict:  # it has changed, or is another one by now
                if attempt + 1 == ATTEMPTS:
                    raise
                version = ""
        raise AssertionError("the loop returns or raises")

    async def create(self, obj: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """AlreadyExists where the name is taken."""
        kind = kind_of(obj)
        path = kind.path(obj["metadata"].get("namespace", ""))
        return await self._write("POST", path, obj, kind, f"create {reference_of(obj)}", _JSON, timeout_s=timeout_s)

    async def replace(self, obj: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """PUT; with metadata.resourceVersion, Conflict where somebody was faster."""
        kind, meta = kind_of(obj), obj["metadata"]
        path = kind.path(meta.get("namespace", ""), meta["name"])
        return await self._write("PUT", path, obj, kind, f"replace {reference_of(obj)}", _JSON, timeout_s=timeout_s)

    async def merge_patch(
        self, kind: KindRef, namespace: str, name: str, patch: Mapping[str, Any], *, metadata_only: bool = False
    ) -> Object:
        """JSON merge patch; a metadata.resourceVersion in it is a precondition."""
        path = kind.path(namespace, name)
        what = f"patch {named(kind, namespace, name)}"
        return await self._write("PATCH", path, patch, kind, what, _MERGE, metadata_only=metadata_only)

    async def delete(self, kind: KindRef, namespace: str, name: str, *, uid: str = "", resource_version: str = "") -> bool:
        """False: it was not there. With `uid` or `resource_version`, Conflict where it is another."""
        wanted = {"uid": uid, "resourceVersion": resource_version}
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {key: value for key, value in wanted.items() if value},
        }
        what = f"delete {named(kind, namespace, name)}"
        try:
            await self._wire.request(Request("DELETE", kind.path(namespace, name), what, body=options))
        except NotServed:
            raise
        except NotFound:
            return False
        return True

    async def _write(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        kind: KindRef,
        what: str,
        content_type: str,
        *,
        metadata_only: bool = False,
        force: bool = False,
        timeout_s: float | None = None,
    ) -> Object:
        query = [("fieldManager", FIELD_MANAGER), *([("force", "true")] if force else [])]
        request = Request(method, path, what, query, body, content_type, _METADATA if metadata_only else _JSON)
        return _typed(decode(await self._wire.request(request, timeout_s=timeout_s), what), kind, what)

    # Others -----------------------------------------------------------------------------------------------------------

    async def review_token(self, token: str, audience: str) -> TokenReview:
        """Whether a token is valid for the audience, and whose it is."""
        if not token:
            return TokenReview(False, error="there is no token")
        review = {
            "apiVersion": TOKEN_REVIEW.api_version,
            "kind": TOKEN_REVIEW.kind,
            "spec": {"token": token, "audiences": [audience]},
        }
        what = "review a token"
        answer = decode(await self._wire.request(Request("POST", TOKEN_REVIEW.path(), what, body=review)), what)
        status = answer.get("status")
        if not isinstance(status, dict):
            raise Unavailable(f"{what}: the answer has no status")
        # An API server that knows nothing of audiences names none: then the token was not proved to be meant for us.
        if not status.get("authenticated") or audience not in (status.get("audiences") or ()):
            return TokenReview(False, error=str(status.get("error") or f"not valid for the audience {audience}"))
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        return TokenReview(
            True,
            user=user.get("username", ""),
            uid=user.get("uid", ""),
            pod_name=next(iter(extra.get(_POD_NAME) or ()), ""),
            pod_uid=next(iter(extra.get(_POD_UID) or ()), ""),
        )

    async def raw_get(self, path: str) -> bytes:
        """Any path, such as `/openid/v1/jwks` or `/version`."""
        return await self._wire.request(Request("GET", path, f"get {path}", accept="*/*"))


def _typed(obj: Any, kind: KindRef, what: str) -> Object:
    """With its apiVersion and kind: items of a list come without, and metadata alone under a name of its own."""
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict):
        raise Unavailable(f"{what}: the API server answered something else than a {kind.kind}")
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
    return obj
