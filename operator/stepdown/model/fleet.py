"""RoutingProxy: one fleet of proxy pods and its upstream. plan/ and render/ read it; the platform team owns it."""

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
    LabelSelector,
    ModelName,
    Name,
    Resource,
    Rule,
    Time,
)
from stepdown.model.quantity import Horizon, Quantity, duration_s

URL_PATTERN = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*$"
KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
BODY_FIELD_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
PATTERNS[URL_PATTERN] = "write the upstream's base URL without a slash at its end, such as https://global-apis.com/v1"
PATTERNS[KEY_PATTERN] = "write a key of the Secret: letters, digits, '-', '_' and '.'"
PATTERNS[BODY_FIELD_PATTERN] = "write the name of a top-level field of the request's body, such as logit_bias"

DEFAULT_BASE_URL = "https://global-apis.com/v1"
DEFAULT_SECRET_KEY = "apiKey"
"""The key of a channel's Secret where apiKeySecretRef.key is absent. Not a schema default: it would lie inside a list item."""


class Autoscaling(Api):
    min_replicas: Annotated[StrictInt, Field(ge=1, le=1000)] = 2
    """The fewest pods."""
    max_replicas: Annotated[StrictInt, Field(ge=1, le=1000)]
    """The most pods."""
    target_cpu_percent: Annotated[StrictInt, Field(ge=1, le=100)] = 70
    """The CPU use, in percent of what is requested, that the fleet is scaled to."""

    rules = (
        Rule(
            "minReplicas is above maxReplicas: raise maxReplicas or lower minReplicas",
            "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            lambda a: a.min_replicas <= a.max_replicas,
            field="minReplicas",
        ),
    )


ResourceName = Annotated[str, StringConstraints(max_length=63)]


class Resources(Api):
    requests: Annotated[dict[ResourceName, Quantity], Field(max_length=8)] = Field(default_factory=dict)
    """What each pod is promised."""
    limits: Annotated[dict[ResourceName, Quantity], Field(max_length=8)] = Field(default_factory=dict)
    """What each pod may use at most."""


class SecretRef(Api):
    name: Name
    """The Secret's name, in the RoutingProxy's own namespace."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=KEY_PATTERN)] | None = None
    """The key in the Secret; absent: apiKey."""

    @property
    def key_or_default(self) -> str:
        return self.key or DEFAULT_SECRET_KEY


class UpstreamChannel(Api):
    name: Label
    """The channel's name, in metrics and messages."""
    model_prefix: ModelName | None = None
    """A model goes through the channel with the longest prefix that its request id begins with; absent: all others."""
    api_key_secret_ref: SecretRef
    """The Secret that holds the channel's API key. It is mounted into the proxies; the operator never reads it."""
    requests_per_minute: Annotated[StrictInt, Field(ge=1, le=10_000_000)] | None = None
    """The channel's rate limit for the whole fleet; absent: none."""


class Upstream(Api):
    base_url: Annotated[str, StringConstraints(min_length=8, max_length=253, pattern=URL_PATTERN)] = DEFAULT_BASE_URL
    """Where requests go. Must match the operator's allowedUpstreams."""
    channels: Annotated[
        tuple[UpstreamChannel, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """The upstream's channels, each with a key of its own."""

    rules = (
        Rule(
            "exactly one channel must be without modelPrefix: it takes the models that no prefix matches",
            "self.channels.exists_one(c, !has(c.modelPrefix))",
            lambda u: sum(c.model_prefix is None for c in u.channels) == 1,
            field="channels",
        ),
        Rule(
            "two channels have the same modelPrefix: give each channel a prefix of its own",
            "self.channels.all(c, !has(c.modelPrefix)"
            " || self.channels.exists_one(d, has(d.modelPrefix) && d.modelPrefix == c.modelPrefix))",
            lambda u: len(p := [c.model_prefix for c in u.channels if c.model_prefix is not None]) == len(set(p)),
            field="channels",
        ),
        Rule(
            "two channels have the same name: give each channel a name of its own",
            "self.channels.all(c, self.channels.exists_one(d, d.name == c.name))",
            lambda u: len({c.name for c in u.channels}) == len(u.channels),
            field="channels",
        ),
    )


class CatalogRef(Api):
    name: Name
    """The ModelCatalog's name."""


class RouteNamespaces(Api):
    from_: Annotated[Literal["Same", "All", "Selector"], Field(alias="from")] = "Same"
    """Same: the RoutingProxy's own. All: any. Selector: those that match selector."""
    selector: LabelSelector | None = None
    """For Selector: the labels of the namespaces."""

    rules = (
        Rule(
            "from Selector needs selector, and only Selector takes one: add it, or remove it",
            "(self.from == 'Selector') == has(self.selector)",
            lambda n: (n.from_ == "Selector") == (n.selector is not None),
            field="selector",
        ),
    )


class AllowedRoutes(Api):
    namespaces: RouteNamespaces = RouteNamespaces()
    """The namespaces whose routes may use this fleet."""


class ProxySpec(Api):
    replicas: Annotated[StrictInt, Field(ge=0, le=1000)] = 2
    """Pods of the fleet; given up once an autoscaler owns the number."""
    autoscaling: Autoscaling | None = None
    """Bounds for a HorizontalPodAutoscaler; absent: none is made."""
    resources: Resources = Resources()
    """CPU and memory of each pod."""
    upstream: Upstream
    """Where requests go, and with which keys."""
    catalog_refs: Annotated[tuple[CatalogRef, ...], Field(max_length=16)] = ()
    """Catalogs over the built-in global-apis; a later one overrides, by model, the fields that it states."""
    allowed_routes: AllowedRoutes = AllowedRoutes()
    """Whose routes the fleet serves."""
    lease_horizon: Horizon = "10m"
    """A lease's life: how long the fleet can serve under Hard budgets while the operator is away."""
    unbudgeted_routes: Literal["Allow", "Refuse"] = "Allow"
    """Whether a route that no budget binds is served."""
    extra_body_fields: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=BODY_FIELD_PATTERN)], ...],
        Field(max_length=64),
    ] = ()
    """Fields of the request's body that pass under a Hard budget beyond the allow-list: those that cost nothing."""

    @property
    def lease_horizon_s(self) -> float:
        return duration_s(self.lease_horizon)


class FleetSummary(Api):
    pods: Brief | None = None
    """Ready pods, and pods that exist."""


class Outage(Api):
    model: ModelName
    """As the upstream is asked for it."""
    since: Time
    """Since when half of the ready proxies or more leave it alone."""


class ProxyStatus(Api):
    observed_generation: Count | None = None
    """The generation that this status is about."""
    conditions: Conditions = ()
    """Accepted, ResolvedRefs, Programmed and Ready; Stalled where the RoutingProxy itself must be changed."""
    replicas: Count | None = None
    """Pods that exist."""
    ready_replicas: Count | None = None
    """Pods that are ready."""
    selector: Annotated[str, StringConstraints(max_length=512)] | None = None
    """The pods, as a label selector."""
    routes: Count | None = None
    """Routes that the fleet serves."""
    outages: Annotated[tuple[Outage, ...], Field(max_length=32)] = ()
    """Models that cannot be reached; routes answer by their fallbacks."""
    summary: FleetSummary | None = None
    """What kubectl get prints."""


class RoutingProxy(Resource):
    """A fleet of proxy pods in front of one upstream. Applications call it; ModelRoutes say what it answers."""

    kind_name = "RoutingProxy"
    plural = "routingproxies"
    short_name = "rproxy"
    columns = (
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Programmed", '.status.conditions[?(@.type=="Programmed")].status'),
        Column("Pods", ".status.summary.pods", description="Ready pods, and pods that exist"),
        Column("Routes", ".status.routes", "integer"),
        Column("Upstream", ".spec.upstream.baseURL", wide=True),
        Column("Age", ".metadata.creationTimestamp", "date"),
    )
    rules = (
        Rule(
            "metadata.name names the Service: use at most 50 lower-case letters, digits and '-', beginning with a letter",
            "size(self.metadata.name) <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            lambda p: len(p.name) <= 50 and "." not in p.name and p.name[0].isalpha(),
        ),
    )

    kind: Literal["RoutingProxy"] = "RoutingProxy"
    spec: ProxySpec
    """What the platform team wants."""
    status: ProxyStatus | None = None
    """How the fleet is. Written by Stepdown alone."""
