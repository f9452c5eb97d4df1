"""The proxy's config: a typed contract of its own, free of Kubernetes and of pydantic. `render` writes it, `proxy` reads it.

A fleet's config is one `Fleet` and up to `SHARDS` shards. A route lives in the shard `shard_of(name)` for ever, so a change of
one route costs one shard. A shard is self-contained: it carries the models and budgets that its routes name.
Encoded as JSON with sorted keys, its SHA-256 is its digest (`digest`).
"""

import hashlib
import zlib
from typing import Literal

import msgspec

SHARDS = 16
"""Shards for ever: a change of this number would move every route (docs/design.md, Sync)."""

Tier = Literal["UltraBudget", "Budget", "MidRange", "Premium", "Flagship"]
TIERS: tuple[Tier, ...] = ("UltraBudget", "Budget", "MidRange", "Premium", "Flagship")
"""Cheapest first; the order is the ladder's."""

RequestClass = Literal["default", "critical", "background"]
CLASSES: tuple[RequestClass, ...] = ("default", "critical", "background")

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
OutputBound = Literal["MaxTokens", "MaxTokensPlusReasoning", "Context"]

CALLER_AUDIENCE = "stepdown-proxy"
"""Whom a caller's ServiceAccount token must be meant for."""

Reason = Literal["Wanted", "StepInForce", "BudgetFit", "Outage", "PremiumShare"]
"""Why an answer came from its model (header `x-stepdown-reason`):

* `Wanted`: the route's own model for the request's class;
* `StepInForce`: a budget's step hides the wanted model (`SpendBudget.spec.steps`);
* `BudgetFit`: the wanted model's worst case did not fit what is left, this one's does;
* `Outage`: a better model could not be reached, timed out, or answered 429 or 5xx;
* `PremiumShare`: a critical request beyond the route's share of premium, served by the default model.
"""


class PriceFrom(msgspec.Struct, frozen=True, array_like=True):
    """Prices in pUSD a token, in force from a moment (Unix seconds, inclusive) until the next entry's."""

    from_s: int
    input_pusd: int
    cached_input_pusd: int
    output_pusd: int


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of the catalog as the proxy needs it. `prices` empty: Unpriced, never under a Hard budget."""

    name: str
    upstream_id: str
    """The `model` that the upstream is asked for."""
    tier: Tier
    channel: str
    prices: tuple[PriceFrom, ...] = ()
    """Ascending by `from_s`; the first entry's is 0 when the model has always had a price."""
    context_tokens: int | None = None
    """None: unknown ("Auto"); then input that is not text cannot be bounded, and is refused under a Hard budget."""
    max_output_tokens: int | None = None
    max_tokens_field: MaxTokensField = "max_tokens"
    output_bound: OutputBound = "MaxTokens"
    reasoning_tokens: int = 0
    """With `MaxTokensPlusReasoning`: how many tokens may come on top of max_tokens."""
    overrun_nusd: int = 0
    """By how much a request has been seen to cost more than all that: so much more is reserved for each."""


class Ladder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one class of a route may be served by, best first. Every name is a key of the shard's `models`."""

    rungs: tuple[str, ...]
    """The wanted model first, hidden rungs included: the fit never serves a rung dearer than a hidden one for that request."""
    in_force: int = 0
    """Index of the first rung that no budget's step hides."""
    hidden_by: str = ""
    """The budget (`namespace/name`) whose step is the strictest, where `in_force` > 0."""
    fallbacks: tuple[str, ...] = ()
    """Tried in order on an outage; those that a step hides are left out already."""


class Parameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Defaults for what a request leaves out. A request may ask for fewer tokens and less time, never for more."""

    temperature: float | None = None
    max_tokens: int | None = None
    timeout_s: float = 600.0


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ModelRoute as rewritten by the plan."""

    name: str
    """`namespace/name`."""
    ladders: dict[RequestClass, Ladder]
    """`default` is always there; an absent `critical` or `background` is served as `default`."""
    parameters: Parameters = Parameters()
    premium_max_share_percent: int | None = None
    budgets: tuple[str, ...] = ()
    """Every SpendBudget that binds the route: keys of the shard's `budgets`."""
    api_key_sha256: tuple[str, ...] | None = None
    """Lower-case hex of the SHA-256 of each caller's key. None: anyone who reaches the proxy; (): nobody by a key."""
    service_accounts: tuple[str, ...] = ()
    """`namespace/name` of each ServiceAccount that may call, by a token of audience `CALLER_AUDIENCE`."""
    refuse: str = ""
    """Not empty: the route is known but answers 403 with this sentence (no budget under `Refuse`, a budget never valid)."""
    generation: int = 0


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One period of one budget: what money is leased from. A new period is a new account."""

    id: str
    """`account_id(budget, start_s)`."""
    start_s: int
    end_s: int
    """Exclusive; also when the budget resets."""
    limit_nusd: int
    """In force at rendering, override included. For messages only: the ledger's limit is the one that holds."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One SpendBudget: its account now and the next one, so that a proxy can cross a month's edge by itself."""

    name: str
    """`namespace/name`."""
    hard: bool
    """False (Soft): consumption is recorded, nothing is ever refused or leased."""
    accounts: tuple[Account, ...]
    """Ascending, without gaps: the current period and the next."""


class Shard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sixteenth of a fleet's routes, with all that they name."""

    index: int
    routes: dict[str, Route] = {}
    models: dict[str, Model] = {}
    budgets: dict[str, Budget] = {}


class Channel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One channel of the upstream: a model goes through the channel with the longest `model_prefix` that its id begins with."""

    name: str
    model_prefix: str = ""
    requests_per_minute: int | None = None


class TokenKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One public key of the cluster's ServiceAccount tokens, in the words of its JWKS (RFC 7517)."""

    kid: str
    kty: Literal["RSA", "EC"]
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs ServiceAccount tokens in this cluster: callers' tokens are verified against this, without a question."""

    url: str
    keys: tuple[TokenKey, ...]


class Fleet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What holds for the whole fleet. Keys of the upstream are not here: a proxy reads them from its mounted Secrets."""

    name: str
    """`namespace/name` of the RoutingProxy."""
    namespace: str
    """Routes of this namespace may be named without it."""
    base_url: str
    channels: tuple[Channel, ...]
    lease_horizon_s: float = 600.0
    extra_body_fields: tuple[str, ...] = ()
    """Body fields beyond the endpoint's allow-list that pass under a Hard budget, by the administrator's word."""
    wait_s: float = 5.0
    """How long a request may wait for money in flight before it is refused."""
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    issuer: Issuer | None = None
    """None: callers can be told by their keys only."""


def shard_of(route: str) -> int:
    """The shard of a route, from its `namespace/name`. Stable across processes and versions (CRC-32)."""
    return zlib.crc32(route.encode()) % SHARDS


def account_id(budget: str, start_s: int) -> str:
    """`shop/team`, 1793491200 → `shop/team@1793491200`."""
    return f"{budget}@{start_s}"


def digest(config: Shard | Fleet) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON: equal configs have equal digests in every process."""
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()[:16]
