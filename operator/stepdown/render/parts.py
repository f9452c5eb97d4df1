"""What every object of a fleet has in common: its names, its labels, what decides about it. `render.objects` and those that it
calls use this.
"""

from dataclasses import dataclass
from typing import Any, Literal

Object = dict[str, Any]
"""An object as JSON has it."""

PREFIX = "stepdown-"
PROXY_LABEL = "stepdown.dev/proxy"
APP = "stepdown-proxy"
HTTP_PORT = 8080
SYNC_PORT = 8443
"""Where the operator listens for proxies, if not told otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator's own configuration says of every fleet."""

    image: str
    sync_url: str
    """Where proxies reach the operator, such as `https://stepdown.stepdown-system.svc:8443`."""
    ca_bundle: str
    """PEM: whoever may have signed the operator's certificate."""
    sync_port: int = SYNC_PORT
    """Where the operator's pods listen for them: what stands behind `sync_url` where that is a Service."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in the fleet's namespace, for the image's registry."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the cluster has of the fleet, as far as it decides what is stated."""

    replicas: int | None = None
    """`spec.replicas` of the Deployment; None: there is no Deployment."""
    replicas_elsewhere: bool = False
    """An autoscaler has set that number last."""
    autoscaler: bool = False
    """The fleet's own HorizontalPodAutoscaler is there."""


@dataclass(frozen=True, slots=True)
class Names:
    """A RoutingProxy, and what its objects are called. No two RoutingProxies of a namespace share a name of an object: the
    name stands between a fixed beginning and an ending that no other object of that kind has.
    """

    namespace: str
    name: str
    """Of the RoutingProxy, and of its Service: at most 50 characters."""

    @property
    def common(self) -> str:
        """Of the Deployment and of all that there is one of."""
        return f"{PREFIX}{self.name}"

    @property
    def fleet_map(self) -> str:
        return f"{PREFIX}{self.name}-fleet"

    def shard_map(self, index: int) -> str:
        return f"{PREFIX}{self.name}-shard-{index:02}"


def selector(names: Names) -> dict[str, str]:
    """Labels that the fleet's pods have and no other pod has. A Deployment's can never change."""
    return {"app.kubernetes.io/name": APP, PROXY_LABEL: names.name}


def labels(names: Names) -> dict[str, str]:
    """Labels of every object of the fleet."""
    return {
        **selector(names),
        "app.kubernetes.io/instance": names.name,
        "app.kubernetes.io/managed-by": "stepdown",
    }


def made(names: Names, api_version: str, kind: str, name: str, **content: Any) -> Object:
    """An object with the metadata that all have."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": names.namespace, "labels": labels(names)},
        **content,
    }
