"""Protocol 1 as it was released: what an older proxy or keeper reads and writes. Never changed, and strict.

It takes no field that protocol 1 did not have, so a message that carries one fails to decode.
"""

from typing import Literal

import msgspec

from stepdown.model.config import MaxTokensField, OutputBound, RequestClass, Tier

PROTOCOL = 1


class PriceFrom(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    from_s: int
    input_pusd: int
    cached_input_pusd: int
    output_pusd: int


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    upstream_id: str
    tier: Tier
    channel: str
    prices: tuple[PriceFrom, ...] = ()
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    max_tokens_field: MaxTokensField = "max_tokens"
    output_bound: OutputBound = "MaxTokens"
    reasoning_tokens: int = 0


class Ladder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    rungs: tuple[str, ...]
    in_force: int = 0
    hidden_by: str = ""
    fallbacks: tuple[str, ...] = ()


class Parameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    temperature: float | None = None
    max_tokens: int | None = None
    timeout_s: float = 600.0


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    ladders: dict[RequestClass, Ladder]
    parameters: Parameters = Parameters()
    premium_max_share_percent: int | None = None
    budgets: tuple[str, ...] = ()
    api_key_sha256: tuple[str, ...] | None = None
    refuse: str = ""
    generation: int = 0


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    id: str
    start_s: int
    end_s: int
    limit_nusd: int


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    hard: bool
    accounts: tuple[Account, ...]


class Shard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    index: int
    routes: dict[str, Route] = {}
    models: dict[str, Model] = {}
    budgets: dict[str, Budget] = {}


class Channel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    model_prefix: str = ""
    requests_per_minute: int | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    namespace: str
    base_url: str
    channels: tuple[Channel, ...]
    lease_horizon_s: float = 600.0
    extra_body_fields: tuple[str, ...] = ()
    wait_s: float = 5.0
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 32 * 1024


class LeaseReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    account: str
    granted: int
    returned: int
    consumed: int
    estimated: int
    reserved: int
    want: int


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: int
    rungs: tuple[dict[str, int], ...]


class Counter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    route: str
    model: str
    request_class: RequestClass
    day: int
    requests: int = 0
    successes: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_nusd: int = 0
    estimated_nusd: int = 0
    unpriced: int = 0


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    protocol: int = PROTOCOL
    instance: str
    fleet: str
    seq: int
    longest_s: float = 0.0
    fleet_digest: str = ""
    digests: dict[int, str] = {}
    acknowledged: dict[int, str] = {}
    leases: tuple[LeaseReport, ...] = ()
    asks: tuple[Ask, ...] = ()
    counters: tuple[Counter, ...] = ()
    closing: bool = False


class LeaseGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    account: str
    granted: int
    recall: int = 0
    limit: int = 0
    committed: int = 0
    spent: int = 0


class AskAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: int
    rung: int
    recoverable: bool = False


class SyncAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    protocol: int = PROTOCOL
    seq: int
    now_s: float
    verdict: Literal["ok", "fenced", "stale"] = "ok"
    leases: tuple[LeaseGrant, ...] = ()
    asks: tuple[AskAnswer, ...] = ()
    fleet: Fleet | None = None
    shards: tuple[Shard, ...] = ()
