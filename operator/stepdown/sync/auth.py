"""Who may sync: a proxy's ServiceAccount token, its pod, its fleet, its instance. `sync.server` asks before it answers.

A token is good when the API server says so (TokenReview, audience `stepdown`); its user must be the ServiceAccount of a live
RoutingProxy, and its pod a pod of that RoutingProxy's Deployment; or of one that went a moment ago (`fleets`). What was found
good is remembered: a token by its SHA-256 for a minute and, while the API server is away, for as long as the fleet's leases
live; a pod by its UID for good. A token that is not good is remembered for a few seconds, so that a flood of one costs one
review.

    AuthError
    ├── Unauthenticated   401  no token, or none that the API server knows: forged, expired, for another audience
    ├── Forbidden         403  a token of somebody else: no proxy's, another fleet's, another pod's
    └── Unverifiable      503  the API server is away, and nothing is known about the token
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from stepdown.budget.serving import Pod
from stepdown.cluster.errors import ClusterError
from stepdown.cluster.kinds import DEPLOYMENT, POD, REPLICA_SET, KindRef
from stepdown.model.sync import SyncRequest, pod_mark
from stepdown.sync.fleets import Fleets, LiveFleet

AUDIENCE = "stepdown"
FRESH_S = 60.0
"""How long the API server's word on a token is taken."""
RENEW_S = 45.0
"""From here on it is asked again, behind the answer: no message waits for a review but a token's first."""
WAIT_S = 1.5
"""How long a message may wait for the API server: less than its sender waits for the answer."""
RETRY_S = 2.0
"""How long after a failed review the next one is tried; until then the API server is away."""
REFUSED_S = 5.0
"""How long a refusal is remembered."""
MAX_AT_ONCE = 8
"""Questions to the API server at the same moment, so that a flood of rubbish does not become one of reviews."""
MAX_WAITING = 256
MAX_REMEMBERED = 4096
MAX_INSTANCES = 65_536
MAX_TOKEN = 16_384

_USER = "system:serviceaccount:"
_CHILD = "stepdown-"
"""What the children of a RoutingProxy are called, before its own name."""

K = TypeVar("K")
V = TypeVar("V")


class AuthError(Exception):
    """The sender is not let in."""


class Unauthenticated(AuthError):
    """Nobody that the API server knows."""


class Forbidden(AuthError):
    """Somebody, but not a proxy that may say this."""


class Unverifiable(AuthError):
    """The API server cannot be asked."""


class Caller(NamedTuple):
    """A pod of a fleet, proved by its token."""

    fleet: str
    """`namespace/name` of the RoutingProxy."""
    pod: Pod
    leaving: bool = False
    """The RoutingProxy went a moment ago: the pod may say what it has spent, and gets nothing."""


class Review(Protocol):
    """What a TokenReview says."""

    @property
    def authenticated(self) -> bool: ...
    @property
    def user(self) -> str: ...
    @property
    def pod_name(self) -> str: ...
    @property
    def pod_uid(self) -> str: ...
    @property
    def error(self) -> str: ...


class Api(Protocol):
    """What is asked of the API server (`cluster.client.Cluster`). Both raise ClusterError."""

    async def review_token(self, token: str, audience: str) -> Review: ...

    async def get(
        self, kind: KindRef, namespace: str, name: str, *, metadata_only: bool = False
    ) -> Mapping[str, Any] | None: ...


class _Identity(NamedTuple):
    namespace: str
    fleet: str
    """`namespace/name`."""
    pod: Pod


class _Known:
    """A token that was good."""

    __slots__ = ("asked_s", "identity", "reviewed_s")

    def __init__(self, identity: _Identity, reviewed_s: float) -> None:
        self.identity, self.reviewed_s = identity, reviewed_s
        self.asked_s: float | None = None
        """When it was last asked about again, without an answer so far."""


class _Recent(OrderedDict[K, V], Generic[K, V]):
    """As much as fits; what was not used for longest goes first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)

    def use(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value


class Authenticator:
    """Judges tokens, and remembers what the API server said of them."""

    def __init__(self, api: Api, fleets: Callable[[str], LiveFleet | None], clock_s: Callable[[], float]) -> None:
        """`fleets`: the live RoutingProxy of a `namespace/name`. `clock_s`: seconds that only grow."""
        self._api, self._fleets, self._clock_s = api, Fleets(fleets, clock_s), clock_s
        self._good: _Recent[bytes, _Known] = _Recent(MAX_REMEMBERED)
        self._refused: _Recent[bytes | str, tuple[float, AuthError]] = _Recent(MAX_REMEMBERED)
        self._pods: _Recent[str, str] = _Recent(MAX_REMEMBERED)
        """By UID of the pod: the RoutingProxy's whose Deployment it is of."""
        self._bound: _Recent[str, str] = _Recent(MAX_INSTANCES)
        """By instance: the UID of the pod that first used it."""
        self._asking: dict[bytes | str, asyncio.Task[AuthError | None]] = {}
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)

    async def authenticate(self, authorization: str) -> Caller:
        """From the Authorization header. Raises Unauthenticated, Forbidden or Unverifiable (the API server is away)."""
        token = _bearer(authorization)
        key = hashlib.sha256(token.encode()).digest()
        if (leaving := self._leaving(key)) is not None:
            return leaving
        identity = await self._identity(key, token)
        fleet = self._live(identity)
        if self._pods.use(identity.pod.uid) != fleet.uid:
            await self._ask(f"{identity.pod.uid} of {fleet.uid}", lambda: self._look_at_pod(identity, fleet))
        return Caller(identity.fleet, identity.pod)

    async def close(self) -> None:
        """Asks nothing any more."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def authorize(self, caller: Caller, request: SyncRequest) -> None:
        """Raises Forbidden where the message is of another fleet, or its instance of another pod."""
        if request.fleet != caller.fleet:
            raise Forbidden(f"the message is of fleet {request.fleet!r}, its token of a proxy of {caller.fleet!r}")
        mark, named, _ = request.instance.partition(".")
        if named and mark != pod_mark(caller.pod.uid):
            raise Forbidden(f"instance {request.instance} is named for another pod than {caller.pod.uid}")
        bound = self._bound.use(request.instance)
        if bound is None:
            self._bound[request.instance] = caller.pod.uid
        elif bound != caller.pod.uid:
            raise Forbidden(f"instance {request.instance} belongs to another pod than {caller.pod.uid}")

    def _leaving(self, key: bytes) -> Caller | None:
        """Its ServiceAccount has gone with its RoutingProxy: what the API server said of both while they were there holds."""
        known = self._good.get(key)
        if known is None:
            return None
        fleet, pod = known.identity.fleet, known.identity.pod
        return Caller(fleet, pod, leaving=True) if self._fleets.left(fleet, self._pods.get(pod.uid, "")) else None

    # Tokens -----------------------------------------------------------------------------------------------------------

    async def _identity(self, key: bytes, token: str) -> _Identity:
        known = self._good.use(key)
        if known is not None:
            await self._renew(key, token, known)
            known = self._good.get(key)
        if known is None:
            await self._ask(key, lambda: self._review(key, token))
            return self._good[key].identity
        age_s = self._clock_s() - known.reviewed_s
        if age_s >= max(FRESH_S, self._live(known.identity).lease_horizon_s):
            raise Unverifiable(f"the API server has not said for {age_s:.0f} s that the token is good")
        return known.identity

    async def _renew(self, key: bytes, token: str, known: _Known) -> None:
        """Has an ageing token reviewed again. Waits for it only once it is old, and not for an API server that is away."""
        now_s = self._clock_s()
        if now_s - known.reviewed_s < RENEW_S:
            return
        away = known.asked_s is not None
        if known.asked_s is None or now_s - known.asked_s >= RETRY_S:
            known.asked_s = now_s
            asking = self._start(key, lambda: self._review(key, token))
            if asking is not None and not away and now_s - known.reviewed_s >= FRESH_S:
                await asyncio.wait([asking], timeout=WAIT_S)

    async def _review(self, key: bytes, token: str) -> None:
        """Once. Whatever the API server says is remembered."""
        review = await self._api.review_token(token, AUDIENCE)
        try:
            self._good[key] = _Known(_identified(review), self._clock_s())
        except AuthError:
            self._good.pop(key, None)
            raise

    def _live(self, identity: _Identity) -> LiveFleet:
        fleet = self._fleets.live(identity.fleet)
        if fleet is None:
            raise Forbidden(f"there is no RoutingProxy {identity.fleet}: its ServiceAccount may not sync")
        return fleet

    # Pods -------------------------------------------------------------------------------------------------------------

    async def _look_at_pod(self, identity: _Identity, fleet: LiveFleet) -> None:
        """From the pod over its ReplicaSet and Deployment to the RoutingProxy, each by UID."""
        namespace, name = identity.namespace, identity.fleet.partition("/")[2]
        where = f"pod {namespace}/{identity.pod.name}"
        pod = await self._found(POD, namespace, *identity.pod, where)
        owner = _controller(pod, "ReplicaSet", where)
        where = f"{where}, ReplicaSet {owner['name']}"
        replicas = await self._found(REPLICA_SET, namespace, owner["name"], owner["uid"], where)
        owner = _controller(replicas, "Deployment", where)
        if owner["name"] != _CHILD + name:
            raise Forbidden(f"{where} is of Deployment {owner['name']}, not of {_CHILD}{name}")
        where = f"{where}, Deployment {owner['name']}"
        deployment = await self._found(DEPLOYMENT, namespace, owner["name"], owner["uid"], where)
        owner = _controller(deployment, "RoutingProxy", where)
        if owner["uid"] != fleet.uid:
            raise Forbidden(f"{where} is of RoutingProxy {owner['name']} with UID {owner['uid']}, not of {fleet.uid}")
        self._pods[identity.pod.uid] = fleet.uid

    async def _found(self, kind: KindRef, namespace: str, name: str, uid: str, where: str) -> Mapping[str, Any]:
        found = await self._api.get(kind, namespace, name, metadata_only=True)
        if found is None or found["metadata"].get("uid") != uid:
            raise Forbidden(f"{where} with UID {uid} is not there")
        return found

    # Asking -----------------------------------------------------------------------------------------------------------

    async def _ask(self, what: bytes | str, ask: Callable[[], Awaitable[None]]) -> None:
        """Asks, shared with whoever asks the same now, and waits. Raises what comes of it, or came of it a moment ago."""
        until_s, refused = self._refused.get(what, (0.0, None))
        if refused is not None and self._clock_s() >= until_s:
            del self._refused[what]
            refused = None
        if refused is None:
            asking = self._start(what, ask)
            if asking is None:
                raise Unverifiable("too many tokens wait for the API server; try again")
            if not (await asyncio.wait([asking], timeout=WAIT_S))[0]:
                raise Unverifiable(f"the API server has not answered within {WAIT_S} s")
            refused = asking.result()
        if refused is not None:
            raise type(refused)(str(refused))

    def _start(self, what: bytes | str, ask: Callable[[], Awaitable[None]]) -> "asyncio.Task[AuthError | None] | None":
        """None: too many ask already."""
        asking = self._asking.get(what)
        if asking is None and len(self._asking) < MAX_WAITING:
            asking = self._asking[what] = asyncio.create_task(self._once(what, ask))
        return asking

    async def _once(self, what: bytes | str, ask: Callable[[], Awaitable[None]]) -> AuthError | None:
        try:
            async with self._at_once:
                await ask()
        except ClusterError as error:
            return Unverifiable(f"the API server cannot be asked: {error}")
        except AuthError as error:
            self._refused[what] = (self._clock_s() + REFUSED_S, error)
            return error
        finally:
            del self._asking[what]
        return None


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("no token was sent: send the pod's projected token of audience stepdown as a bearer token")
    if len(token) > MAX_TOKEN or token.count(".") != 2 or not token.isascii():
        raise Unauthenticated("what was sent is no ServiceAccount token")
    return token


def _identified(review: Review) -> _Identity:
    if not review.authenticated:
        raise Unauthenticated(f"the API server does not know the token: {review.error or 'no reason was given'}")
    namespace, _, account = review.user.removeprefix(_USER).partition(":")
    name = account.removeprefix(_CHILD)
    if not review.user.startswith(_USER) or not account.startswith(_CHILD) or not name:
        raise Forbidden(f"{review.user!r} is not the ServiceAccount of a proxy")
    if not review.pod_name or not review.pod_uid:
        raise Forbidden(f"the token of {review.user!r} is not bound to a pod: only a projected one is")
    return _Identity(namespace, f"{namespace}/{name}", Pod(review.pod_name, review.pod_uid))


def _controller(thing: Mapping[str, Any], kind: str, where: str) -> Mapping[str, Any]:
    for owner in thing["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == kind:
            return dict(owner)
    raise Forbidden(f"{where} is not controlled by a {kind}")
