"""What a pass is made from: every object as it was last seen, and what the ledger knows. The shells gather it (`local`, later
the operator); the plan only judges. A pass compares with the one before by identity first: keep objects that did not change.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stepdown.budget.account import Balance
from stepdown.budget.months import day_of
from stepdown.model.config import Issuer
from stepdown.model.resources import ModelCatalog, ModelRoute, RoutingProxy, SpendBudget

OVERRUN_DAYS = 31
"""How long it is held against a model that the upstream did not keep to its bound."""

Kind = Literal["ModelRoute", "SpendBudget", "RoutingProxy", "ModelCatalog"]
ObjectKey = tuple[str, str]
"""Kind, and `namespace/name` (`name` of a ModelCatalog)."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """An object of ours that could be read but is not what its kind allows: its last accepted spec stays in force."""

    kind: Kind
    namespace: str
    """Empty for a ModelCatalog."""
    name: str
    message: str
    """Field, value seen, what would be valid; several joined."""
    raw: Mapping[str, Any]
    """The object as read: a budget that was never valid still says whom it meant to bind."""
    uid: str = ""
    generation: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    conflict: bool = False
    """Nothing is wrong with the object but that another has its name."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """What the cluster has of one fleet: its Deployment's status, and what of the fleet could not be applied."""

    replicas: int = 0
    """Pods that exist."""
    ready_replicas: int = 0
    """Pods that are ready."""
    updated_replicas: int = 0
    """Pods by the Deployment's newest template."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """By object, as `Deployment shop/stepdown-default`: what the API server said instead of applying it."""


@dataclass(frozen=True, slots=True)
class World:
    """Every object of ours, as listed with success. (Unknown is never empty: a shell that could not list makes no World.)"""

    routes: tuple[ModelRoute, ...] = ()
    budgets: tuple[SpendBudget, ...] = ()
    proxies: tuple[RoutingProxy, ...] = ()
    catalogs: tuple[ModelCatalog, ...] = ()
    """The user's; `global-apis` comes with the product."""
    invalid: tuple[Invalid, ...] = ()
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels of namespaces; one that is missing here has none but `kubernetes.io/metadata.name`."""
    secrets: Mapping[str, bool | None] = field(default_factory=dict)
    """`namespace/name` → whether the proxies see the Secret; None or missing: not known."""
    operator_namespace: str = "stepdown-system"
    """Where a budget may use namespaceSelector."""
    allowed_upstreams: tuple[str, ...] = ("https://global-apis.com/v1",)
    """Base URLs that a RoutingProxy may name; `*` allows any (`stepdown run`: the person at the machine decides)."""
    fleet_namespaces: tuple[str, ...] = ("*",)
    """Where the operator may make the objects of a RoutingProxy; `*`: everywhere."""
    fleets: Mapping[str, FleetSeen] = field(default_factory=dict)
    """By RoutingProxy (`namespace/name`): what the cluster has of it. Missing: not known, or there is no cluster."""
    issuer: Issuer | None = None
    """Of ServiceAccount tokens: what proxies verify callers by. None: not known, or there is no cluster."""

    def labels_of(self, namespace: str) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": namespace, **self.namespace_labels.get(namespace, {})}


@dataclass(frozen=True, slots=True)
class AcceptedSpec:
    """A spec that was in force: what the ledger keeps of each object by UID."""

    uid: str
    generation: int
    spec_json: str

    @property
    def spec(self) -> Any:
        return json.loads(self.spec_json)


@dataclass(frozen=True, slots=True)
class RouteTotals:
    """A route's traffic in the current calendar month in UTC."""

    requests: int = 0
    successes: int = 0
    input_tokens: int = 0
    """Cached input included."""
    output_tokens: int = 0
    cost_nusd: int = 0


@dataclass(frozen=True, slots=True)
class ProxiesSeen:
    """What one fleet's proxies have reported in the last seconds."""

    ready: int
    """Those that say that they are ready, as their /readyz does."""
    serving: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """By shard: how many of the ready ones have the config of each digest in force."""
    keys: Mapping[str, bool] = field(default_factory=dict)
    """By channel of the upstream: False where a proxy says that the channel's key is missing or cannot be used."""
    pods: int = 0
    """Those that were heard, ready or not."""
    down: Mapping[str, int] = field(default_factory=dict)
    """By model, as the upstream is asked for it: how many of the ready ones leave it alone, after it failed in a row."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger knows at one moment."""

    balances: Mapping[str, Balance] = field(default_factory=dict)
    """By account id: current, next and recent accounts."""
    accepted: Mapping[str, AcceptedSpec] = field(default_factory=dict)
    """By UID (`uid_of`)."""
    totals: Mapping[str, RouteTotals] = field(default_factory=dict)
    """By route (`namespace/name`)."""
    proxies: Mapping[str, ProxiesSeen] = field(default_factory=dict)
    """By RoutingProxy (`namespace/name`): those of which any proxy was heard."""
    settled: bool = True
    """False: this process began so lately that proxies may not have reported yet. Then what an object's own status says of them
    stays, so that a restart of the operator is not written into every status, twice."""

    def overruns(self, now_s: float) -> dict[str, int]:
        """By model: the largest sum by which a request of any Hard budget has lately cost more than its worst case."""
        since_day, found = day_of(now_s) - OVERRUN_DAYS, dict[str, int]()
        for balance in self.balances.values():
            for each in balance.overruns:
                if each.day >= since_day:
                    found[each.model] = max(each.nusd, found.get(each.model, 0))
        return found


AnyObject = ModelRoute | SpendBudget | RoutingProxy | ModelCatalog


def uid_of(thing: AnyObject | Invalid) -> str:
    """The object's UID; where no API server has given one, and for catalogs, which are known by name alone, kind and key.

    A catalog that vanished is looked up by the name that a RoutingProxy still gives, hence no UID there.
    """
    if isinstance(thing, Invalid):
        kind, uid = thing.kind, thing.uid
    else:
        kind, uid = thing.kind, thing.metadata.uid
    return uid if uid and kind != "ModelCatalog" else f"{kind}/{thing.key}"
