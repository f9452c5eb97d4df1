"""ModelRoute: what an application calls by name, and the models that may answer. The plan reads it; a team owns it."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StringConstraints

from stepdown.model.base import (
    PATTERNS,
    Api,
    Brief,
    Column,
    Conditions,
    Count,
    Label,
    ModelName,
    Name,
    Provider,
    Resource,
    Rule,
    TierName,
    Time,
    Word,
)
from stepdown.model.money import PRICE_PATTERN, USD_PATTERN, usd_per_mtok_to_pusd
from stepdown.model.quantity import Timeout, duration_s

PATTERNS[USD_PATTERN] = (
    'write a sum in USD as a quoted decimal such as "500.00", at most 9 digits before the point and 9 after it'
)
PATTERNS[PRICE_PATTERN] = 'write a price in USD per million tokens as a quoted decimal such as "0.25", at most 6 decimals'
SHA256_PATTERN = r"^[0-9a-f]{64}$"
PATTERNS[SHA256_PATTERN] = "write the SHA-256 of the key as 64 lower-case hex digits; `stepdown key new` prints it"

Usd = Annotated[str, StringConstraints(min_length=1, max_length=19, pattern=USD_PATTERN)]
"""A sum."""
UsdPerMTok = Annotated[str, StringConstraints(min_length=1, max_length=13, pattern=PRICE_PATTERN)]
"""A price."""
SignedUsd = Annotated[str, StringConstraints(max_length=32, pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,9})?$")]
"""A sum in a status: what remains is below zero where an edit pushed a budget over its limit."""
Month = Annotated[str, StringConstraints(max_length=7, pattern=r"^[0-9]{4}-[0-9]{2}$")]
Percent = Annotated[StrictInt, Field(ge=1, le=100)]
TaskName = Literal["Bandwidth", "Judgment", "Flagship"]


class ProxyRef(Api):
    name: Annotated[Label, Field(max_length=50)] = "default"
    """The RoutingProxy's name."""
    namespace: Label | None = None
    """The RoutingProxy's namespace; absent: the route's own. The RoutingProxy must allow the route's namespace."""


class Models(Api):
    default: ModelName
    """The model that answers while nothing speaks against it: a name or request id of the catalog."""
    fallbacks: Annotated[tuple[ModelName, ...], Field(max_length=8)] = ()
    """Tried in order on an outage: connect error, timeout, 429 or 5xx. The first also serves class background."""
    premium: ModelName | None = None
    """For requests of class critical; absent: they get the default."""


class StepDown(Api):
    models: Annotated[tuple[ModelName, ...], Field(max_length=16)] = ()
    """Cheaper models to step down to, best first, before the catalog's own ladder."""
    floor: TierName = "UltraBudget"
    """Never below this tier: a request is refused instead."""


class ProviderRule(Api):
    allow: Annotated[tuple[Provider, ...], Field(max_length=32)] = ()
    """Only these providers; empty: any. A model that lets the upstream choose the provider never meets it."""
    deny: Annotated[tuple[Provider, ...], Field(max_length=32)] = ()
    """Never these providers. A model that lets the upstream choose the provider never meets it."""


class Requirements(Api):
    context_tokens: Annotated[StrictInt, Field(ge=1, le=100_000_000)] | None = None
    """The context that a model must have at least."""
    capabilities: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    """What a model must be able to do, in the catalog's words, for example vision."""
    providers: ProviderRule = ProviderRule()
    """Which providers may see the data."""
    compliance: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    """What must hold for a model, in the catalog's words: DPA, SOC2, ISO27001."""
    max_output_usd_per_mtok: UsdPerMTok | None = None
    """A target cost: the dearest output price, in USD per million tokens."""

    @property
    def max_output_pusd(self) -> int | None:
        return None if self.max_output_usd_per_mtok is None else usd_per_mtok_to_pusd(self.max_output_usd_per_mtok)


class Parameters(Api):
    temperature: Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)] | None = None
    """For requests that state none."""
    max_tokens: Annotated[StrictInt, Field(ge=1, le=10_000_000)] | None = None
    """For requests that state none, and the most that a request may ask for."""
    timeout: Timeout = "10m"
    """How long one attempt may take, and the most that a request may ask for."""

    @property
    def timeout_s(self) -> float:
        return duration_s(self.timeout)


class Premium(Api):
    max_share_percent: Percent
    """The most of the route's requests, in percent, that models.premium answers; critical ones beyond it get the default."""


class ServiceAccountRef(Api):
    namespace: Label
    """The ServiceAccount's namespace."""
    name: Name
    """The ServiceAccount's name."""


class Caller(Api):
    service_account: ServiceAccountRef | None = None
    """A workload: a projected token of audience `stepdown-proxy` is its API key."""
    api_key_sha256: Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=SHA256_PATTERN)] | None = None
    """The SHA-256 of a 256-bit key that `stepdown key new` makes. The hash may live in Git, the key may not."""

    rules = (
        Rule(
            "state exactly one of serviceAccount and apiKeySHA256; a second caller is a second item",
            "has(self.serviceAccount) != has(self.apiKeySHA256)",
            lambda c: (c.service_account is None) != (c.api_key_sha256 is None),
        ),
    )


class RouteSpec(Api):
    proxy_ref: ProxyRef = ProxyRef()
    """The fleet that serves the route."""
    task: TaskName | None = None
    """Instead of models: the catalog's choice for this kind of work."""
    models: Models | None = None
    """The models that answer, by class of request."""
    step_down: StepDown = StepDown()
    """Where the route goes as the money runs out."""
    requirements: Requirements = Requirements()
    """What holds for every model that this route can ever reach, fallbacks included."""
    parameters: Parameters = Parameters()
    """Defaults and caps for requests."""
    premium: Premium | None = None
    """A cap on the use of models.premium."""
    callers: Annotated[tuple[Caller, ...], Field(max_length=64)] | None = None
    """Who may call. Absent: anyone who reaches the proxy, allowed only in the proxy's own namespace. Empty: nobody."""

    rules = (
        Rule(
            "state exactly one of task and models: task takes the catalog's choice, models.default names your own",
            "has(self.task) != has(self.models)",
            lambda s: (s.task is None) != (s.models is None),
        ),
        Rule(
            "premium caps the use of models.premium, which is absent: name that model, or remove premium",
            "!has(self.premium) || (has(self.models) && has(self.models.premium))",
            lambda s: s.premium is None or (s.models is not None and s.models.premium is not None),
            field="premium",
        ),
    )


class EffectiveRoute(Api):
    default: ModelName | None = None
    """The model that the default class gets now."""
    fallbacks: Annotated[tuple[ModelName, ...], Field(max_length=8)] = ()
    """The fallbacks that no step hides."""
    premium: ModelName | None = None
    """The model that class critical gets now."""
    tier: TierName | None = None
    """The tier of the default."""
    since: Time | None = None
    """Since when this is in force."""
    reason: Annotated[str, StringConstraints(max_length=128)] | None = None
    """Why: Wanted, or StepInForce where a budget's step hides the wanted model."""
    budget: Annotated[str, StringConstraints(max_length=317)] | None = None
    """The budget, as namespace/name, whose step is the strictest."""


class RouteSpend(Api):
    month: Month
    """The calendar month in UTC."""
    usd: SignedUsd
    """What the route has cost in the month."""
    requests: Count = 0
    """Attempts that were sent upstream and have ended."""
    successes: Count = 0
    """Attempts that ended with a complete answer."""
    input_tokens: Count = 0
    """Cached input included."""
    output_tokens: Count = 0
    """Reasoning included."""
    usd_per_success: SignedUsd | None = None
    """What a successful answer has cost on average."""


class ProxyCount(Api):
    ready: Count = 0
    """Proxy pods that are ready."""
    programmed: Count = 0
    """Proxy pods that have this generation in force."""


class RouteSummary(Api):
    spent: Brief | None = None
    """USD in this month in UTC."""
    step: Brief | None = None
    """Where a budget's step hides the wanted model: the share of the limit at which it does."""


class RouteStatus(Api):
    observed_generation: Count | None = None
    """The generation that this status is about."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed, Ready and SteppedDown; Stalled where the route itself must be changed."""
    effective: EffectiveRoute | None = None
    """The route as rewritten by the steps in force."""
    spend: RouteSpend | None = None
    """Coarse: metrics and `stepdown status` are live."""
    proxies: ProxyCount | None = None
    """How far the fleet has the route."""
    summary: RouteSummary | None = None
    """What kubectl get prints."""


class ModelRoute(Resource):
    """A name that applications call, and the models that may answer under it: the wanted one, what it steps down to as its
    budgets run out, what replaces it in an outage.
    """

    kind_name = "ModelRoute"
    plural = "modelroutes"
    short_name = "mroute"
    columns = (
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Tier", ".status.effective.tier", description="The tier in force"),
        Column("Step", ".status.summary.step", description="The budget's step that hides the wanted model; empty: none"),
        Column("Spent", ".status.summary.spent", description="USD in this month; the exact sum is status.spend.usd"),
        Column("Model", ".status.effective.default", description="The model in force"),
        Column("Premium", ".status.effective.premium", wide=True, description="The model that class critical gets"),
        Column("Budget", ".status.effective.budget", wide=True, description="The budget whose step is in force"),
        Column("Programmed", '.status.conditions[?(@.type=="Programmed")].status', wide=True),
        Column("Age", ".metadata.creationTimestamp", "date", wide=True),
    )

    kind: Literal["ModelRoute"] = "ModelRoute"
    spec: RouteSpec
    """What the team wants."""
    status: RouteStatus | None = None
    """What is in force. Written by Stepdown alone."""

    @property
    def proxy_key(self) -> str:
        """`namespace/name` of the RoutingProxy that the route asks for."""
        ref = self.spec.proxy_ref
        return f"{ref.namespace or self.namespace}/{ref.name}"
