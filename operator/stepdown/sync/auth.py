"""Who may sync: a proxy's ServiceAccount token, its pod, its fleet, its instance. `sync.server` asks before it answers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from stepdown.model.sync import SyncRequest


class LiveFleet(NamedTuple):
    """A RoutingProxy that is there."""

    uid: str
    lease_horizon_s: float
    """While the API server is away, a token that was good is good for so long."""


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
    """What is asked of the API server (`cluster.client.Cluster`)."""

    async def review_token(self, token: str, audience: str) -> Review: ...

    async def get(self, kind: Any, namespace: str, name: str) -> dict[str, Any] | None: ...


class Caller(NamedTuple):
    """A pod of a live fleet, proved by its token."""

    fleet: str
    """`namespace/name` of the RoutingProxy."""
    pod_uid: str


class Authenticator:
    """Judges tokens, and remembers what the API server said of them."""

    def __init__(self, api: Api, fleets: Callable[[str], LiveFleet | None], clock_s: Callable[[], float]) -> None:
        """`fleets`: the live RoutingProxy of a `namespace/name`. `clock_s`: seconds that only grow."""

    async def authenticate(self, authorization: str) -> Caller:
        """From the Authorization header. Raises Unauthenticated, Forbidden or Unverifiable (the API server is away)."""
        raise NotImplementedError

    def authorize(self, caller: Caller, request: SyncRequest) -> None:
        """Raises Forbidden where the message is of another fleet, or its instance of another pod."""
        raise NotImplementedError
