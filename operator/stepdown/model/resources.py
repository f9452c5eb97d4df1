"""The four kinds by their names. Everyone who reads or writes objects imports from here.

Each kind is defined in a module of its own: ModelRoute in `route`, SpendBudget in `spend`, RoutingProxy in `fleet`,
ModelCatalog in `pricelist`; what they share is in `base`.
"""

from stepdown.model.base import API_VERSION, GROUP, VERSION, Column, LabelSelector, Metadata, Resource, Rule
from stepdown.model.fleet import CatalogRef, ProxySpec, RoutingProxy, SecretRef, Upstream, UpstreamChannel
from stepdown.model.pricelist import CatalogSpec, DatedPrice, ModelCatalog, ModelEntry, Tasks
from stepdown.model.route import (
    Caller,
    ModelRoute,
    Models,
    Parameters,
    Premium,
    ProviderRule,
    ProxyRef,
    Requirements,
    RouteSpec,
    StepDown,
)
from stepdown.model.spend import DEFAULT_STEPS, BudgetSpec, Override, SpendBudget, Step, TargetRef

AnyResource = ModelRoute | SpendBudget | RoutingProxy | ModelCatalog

KINDS: dict[str, type[ModelRoute] | type[SpendBudget] | type[RoutingProxy] | type[ModelCatalog]] = {
    "ModelRoute": ModelRoute,
    "SpendBudget": SpendBudget,
    "RoutingProxy": RoutingProxy,
    "ModelCatalog": ModelCatalog,
}

__all__ = [
    "API_VERSION",
    "DEFAULT_STEPS",
    "GROUP",
    "KINDS",
    "VERSION",
    "AnyResource",
    "BudgetSpec",
    "Caller",
    "CatalogRef",
    "CatalogSpec",
    "Column",
    "DatedPrice",
    "LabelSelector",
    "Metadata",
    "ModelCatalog",
    "ModelEntry",
    "ModelRoute",
    "Models",
    "Override",
    "Parameters",
    "Premium",
    "ProviderRule",
    "ProxyRef",
    "ProxySpec",
    "Requirements",
    "Resource",
    "RouteSpec",
    "RoutingProxy",
    "Rule",
    "SecretRef",
    "SpendBudget",
    "Step",
    "StepDown",
    "TargetRef",
    "Tasks",
    "Upstream",
    "UpstreamChannel",
]
