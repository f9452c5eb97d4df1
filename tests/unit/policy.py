"""Objects for the tests of plan, render, status and reconcile: made through `parse`, as every object is."""

from typing import Any

from stepdown.budget.account import Balance, Binding
from stepdown.model.errors import parse
from stepdown.model.money import usd_to_nusd
from stepdown.model.resources import ModelCatalog, ModelRoute, RoutingProxy, SpendBudget
from stepdown.plan.world import LedgerView, World
from stepdown.reconcile import Pass, reconcile

NOW_S = 1_795_435_200
"""2026-11-23T12:00:00Z."""
CHANNELS = [
    {"name": "standard", "apiKeySecretRef": {"name": "upstream"}},
    {"name": "pro", "modelPrefix": "Pro/", "apiKeySecretRef": {"name": "upstream-pro"}},
]


def _object(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> Any:
    meta = {"name": name, "namespace": "shop", "generation": 1, **metadata}
    return parse({"apiVersion": "stepdown.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec})


def route(name: str = "chat", default: str = "DeepSeek-V3.2", *, meta: dict[str, Any] | None = None, **spec: Any) -> ModelRoute:
    models = {"default": default, **spec.pop("models", {})}
    made: ModelRoute = _object("ModelRoute", name, {"models": models, **spec}, **(meta or {}))
    return made


def budget(name: str = "team", usd: str = "100.00", *, meta: dict[str, Any] | None = None, **spec: Any) -> SpendBudget:
    made: SpendBudget = _object("SpendBudget", name, {"monthlyLimitUSD": usd, **spec}, **(meta or {}))
    return made


def proxy(name: str = "default", *, meta: dict[str, Any] | None = None, **spec: Any) -> RoutingProxy:
    made: RoutingProxy = _object("RoutingProxy", name, {"upstream": {"channels": CHANNELS}, **spec}, **(meta or {}))
    return made


def catalog(name: str, *models: dict[str, Any], **spec: Any) -> ModelCatalog:
    made: ModelCatalog = _object("ModelCatalog", name, {"models": list(models), **spec}, namespace="")
    return made


def targets(*names: str) -> list[dict[str, str]]:
    return [{"group": "stepdown.dev", "kind": "ModelRoute", "name": name} for name in names]


def balance(binding: Binding, usd: str, **fields: Any) -> Balance:
    """The account of a binding with that much settled."""
    fields.setdefault("enforced", True)
    return Balance(
        account=binding.account,
        budget=binding.budget,
        start_s=binding.start_s,
        end_s=binding.end_s,
        limit_nusd=binding.limit_nusd,
        settled_nusd=usd_to_nusd(usd),
        **fields,
    )


def spent(world: World, now_s: float = NOW_S, previous: Pass | None = None, **usd: str) -> LedgerView:
    """A ledger in which budgets of `shop` have spent that much in the period of `now`; the rest nothing."""
    made = reconcile(world, LedgerView(), now_s, previous)
    balances = [
        balance(binding, usd.get(binding.budget.partition("/")[2], "0") if binding.start_s <= now_s < binding.end_s else "0")
        for binding in made.bindings
    ]
    return LedgerView({each.account: each for each in balances}, dict(made.accept))


def world(*things: Any, **fields: Any) -> World:
    """Any objects, with the fleet `shop/default` where none is given."""
    proxies = tuple(each for each in things if isinstance(each, RoutingProxy)) or (proxy(),)
    return World(
        routes=tuple(each for each in things if isinstance(each, ModelRoute)),
        budgets=tuple(each for each in things if isinstance(each, SpendBudget)),
        proxies=proxies,
        catalogs=tuple(each for each in things if isinstance(each, ModelCatalog)),
        **fields,
    )
