"""The sync contract between a proxy and the ledger's keeper: what goes up, what comes down. `proxy` and `sync` speak it.

Every number that goes up is cumulative over the life of an instance and only grows, so a message may be lost, repeated or
reordered; `seq` tells the keeper which of two is the newer. An instance is one proxy process with one write-ahead log.
For each account and instance: ``available = granted - returned - consumed - reserved`` is what the proxy may still reserve.

Both ends speak two versions and the lower of theirs wins. A message of a version carries nothing that the version does not
know (what is new has a default, and a default is not written), and a field that is not known is passed over.

* 1: numbers, tickets, config;
* 2: with `ready`, `keys` and `down`, what a proxy says of itself, and `whole`, by which a keeper that cannot be sure of its
  ledger hears everything once more; with `proxies`, how many share what is rationed to the fleet; and with `overrun_nusd`, by
  how much an upstream did not keep to its bound.

    SyncError
    ├── SyncUnavailable   no answer: the keeper is away, or its ledger cannot write. Nothing has changed; another follows
    └── SyncRefused       this message is not acceptable, now or later
"""

import hashlib
from typing import Literal

import msgspec

from stepdown.model.config import Fleet, RequestClass, Shard

PROTOCOL = 2
SPOKEN = (1, 2)
"""Versions of this protocol that this build speaks, ascending."""


class SyncError(Exception):
    """There is no answer to this message."""


class SyncUnavailable(SyncError):
    """The keeper did not answer, or its ledger could not be read or written; nothing was granted."""


class SyncRefused(SyncError):
    """The message says what cannot be, or speaks a protocol that the other end does not."""


def pod_mark(pod_uid: str) -> str:
    """What the id of an instance in a pod begins with, before a dot: another pod cannot take it for its own."""
    return hashlib.sha256(pod_uid.encode()).hexdigest()[:12]


def _newest() -> int:
    """A default that is written all the same: msgspec leaves out constants only."""
    return PROTOCOL


class LeaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's side of one lease, in nUSD."""

    account: str
    granted: int
    """The largest cumulative grant that the proxy has seen and logged."""
    returned: int
    """Cumulative; logged before it is sent."""
    consumed: int
    """Cumulative cost of settled requests, estimates included."""
    estimated: int
    """The part of `consumed` that was charged at the reservation for want of usage."""
    reserved: int
    """Worst cases of requests in flight, not cumulative."""
    want: int
    """Idle headroom that the proxy would like to hold beyond what it has reserved; 0 = nothing."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket: money for one request. Idempotent by (instance, id); kept in every message until it has been answered."""

    id: int
    """Ascending in an instance."""
    rungs: tuple[dict[str, int], ...]
    """Best rung first: what each account would have to grant, in nUSD, beyond what the instance has reserved.
    All accounts of a rung or none; answered with the first rung that can be granted."""


class Counter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Cumulative traffic of one instance by route × model × class × UTC day of admission."""

    route: str
    model: str
    request_class: RequestClass
    day: int
    """Days since 1970-01-01 UTC."""
    requests: int = 0
    """Attempts that were sent upstream and have ended."""
    successes: int = 0
    """Attempts that ended with a complete 2xx answer."""
    input_tokens: int = 0
    """Uncached input; the three token counts are disjoint."""
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_nusd: int = 0
    estimated_nusd: int = 0
    """The part of `cost_nusd` that was charged at the reservation for want of usage."""
    unpriced: int = 0
    """Requests served by a model without a price: their cost is not known and counted as 0."""
    overrun_nusd: int = 0
    """Protocol 2. Not a sum: the most by which one request has cost more than its worst case by the catalog."""


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    protocol: int = msgspec.field(default_factory=_newest)
    instance: str
    fleet: str
    """`namespace/name` of the RoutingProxy."""
    seq: int
    """Ascending by message; an answer to an older one than the newest applied changes nothing."""
    longest_s: float = 0.0
    """How long the instance's longest request in flight may still take."""
    fleet_digest: str = ""
    digests: dict[int, str] = {}
    """By shard: the digest of the config that the proxy has; what is missing or different comes down."""
    acknowledged: dict[int, str] = {}
    """By shard: the digests of all configs by which requests are in flight, and of the current one, joined by commas. All,
    since a config that comes again has the digest that it had: the oldest alone may be taken for the newest."""
    leases: tuple[LeaseReport, ...] = ()
    asks: tuple[Ask, ...] = ()
    counters: tuple[Counter, ...] = ()
    """Those that have changed since the last acknowledged message."""
    closing: bool = False
    """The instance has drained and will not come back: its leases close at what is consumed."""
    ready: bool = False
    """Protocol 2: what the proxy's /readyz answers."""
    keys: dict[str, bool] = {}
    """Protocol 2. By channel of the upstream: whether its key is there and can be used."""
    down: tuple[str, ...] = ()
    """Protocol 2. Models, as the upstream is asked for them, that failed several times in a row and have not answered since."""
    whole: bool = False
    """Protocol 2. `leases` and `counters` are all that the instance has, not only those that have changed."""


class LeaseGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The keeper's side of one lease, in nUSD."""

    account: str
    granted: int
    """Cumulative; persisted before it is sent. The proxy takes the larger of this and its own."""
    recall: int = 0
    """The keeper asks for this much back, of what no request has reserved."""
    limit: int = 0
    committed: int = 0
    """Over all instances, this one included."""
    spent: int = 0
    """Settled and estimated, over all instances."""


class AskAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    rung: int
    """Index into `Ask.rungs`, already inside the `granted` of the same message; -1: none can be granted now."""
    recoverable: bool = False
    """With -1: what is reserved in flight or idle elsewhere could still make the cheapest rung fit; worth a wait."""


class SyncAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    protocol: int = msgspec.field(default_factory=_newest)
    seq: int
    """Of the request that this answers."""
    now_s: float
    """The ledger's clock, Unix seconds."""
    verdict: Literal["ok", "fenced", "stale"] = "ok"
    """`fenced`: the instance is closed, take a new id. `stale`: a newer message was applied before; nothing changed."""
    leases: tuple[LeaseGrant, ...] = ()
    asks: tuple[AskAnswer, ...] = ()
    fleet: Fleet | None = None
    shards: tuple[Shard, ...] = ()
    proxies: int = 1
    """Protocol 2. Proxies of the fleet that were heard in the last seconds: each sends its part of a channel's
    `requestsPerMinute`."""
    whole: bool = False
    """Protocol 2. The keeper's ledger may be older than what it has acknowledged: the next message shall be `whole`, and go at
    once."""
