"""The kinds that Stepdown speaks of to the API server, and their paths. Whoever names a kind to `cluster` uses these constants.

They are written down rather than discovered: a handful of stable kinds, and no request at start.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote


class KindRef(NamedTuple):
    """One kind as the API server serves it."""

    group: str
    """Empty for the core group."""
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL's path: of one object, or of all of a namespace (all namespaces: "")."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts)


MODEL_ROUTE = KindRef("stepdown.dev", "v1alpha1", "ModelRoute", "modelroutes")
SPEND_BUDGET = KindRef("stepdown.dev", "v1alpha1", "SpendBudget", "spendbudgets")
ROUTING_PROXY = KindRef("stepdown.dev", "v1alpha1", "RoutingProxy", "routingproxies")
MODEL_CATALOG = KindRef("stepdown.dev", "v1alpha1", "ModelCatalog", "modelcatalogs", namespaced=False)

CONFIG_MAP = KindRef("", "v1", "ConfigMap", "configmaps")
EVENT = KindRef("", "v1", "Event", "events")
NAMESPACE = KindRef("", "v1", "Namespace", "namespaces", namespaced=False)
POD = KindRef("", "v1", "Pod", "pods")
SERVICE = KindRef("", "v1", "Service", "services")
SERVICE_ACCOUNT = KindRef("", "v1", "ServiceAccount", "serviceaccounts")
DEPLOYMENT = KindRef("apps", "v1", "Deployment", "deployments")
REPLICA_SET = KindRef("apps", "v1", "ReplicaSet", "replicasets")
HORIZONTAL_POD_AUTOSCALER = KindRef("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
LEASE = KindRef("coordination.k8s.io", "v1", "Lease", "leases")
NETWORK_POLICY = KindRef("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET = KindRef("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CUSTOM_RESOURCE_DEFINITION = KindRef(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
TOKEN_REVIEW = KindRef("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", namespaced=False)

OURS = (MODEL_ROUTE, SPEND_BUDGET, ROUTING_PROXY, MODEL_CATALOG)
"""The four kinds of the group stepdown.dev."""

ALL = (
    *OURS,
    CONFIG_MAP,
    EVENT,
    NAMESPACE,
    POD,
    SERVICE,
    SERVICE_ACCOUNT,
    DEPLOYMENT,
    REPLICA_SET,
    HORIZONTAL_POD_AUTOSCALER,
    LEASE,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    CUSTOM_RESOURCE_DEFINITION,
    TOKEN_REVIEW,
)
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in ALL}


def kind_of(obj: Mapping[str, Any]) -> KindRef:
    """The kind of an object by its apiVersion and kind. Raises ValueError for one that is not written down here."""
    name = (obj.get("apiVersion"), obj.get("kind"))
    if name not in _BY_NAME:
        raise ValueError(f"apiVersion and kind are {name}; known are {sorted(_BY_NAME)}")
    return _BY_NAME[name]


def named(kind: KindRef, namespace: str, name: str) -> str:
    """An object in words, as messages name it: `Deployment shop/stepdown-web`."""
    return f"{kind.kind} {namespace}/{name}" if namespace and kind.namespaced else f"{kind.kind} {name}"


def reference_of(obj: Mapping[str, Any]) -> str:
    """The same, of an object."""
    meta = obj.get("metadata") or {}
    where, name = meta.get("namespace", ""), meta.get("name", "?")
    return f"{obj.get('kind', '?')} {where}/{name}" if where else f"{obj.get('kind', '?')} {name}"
