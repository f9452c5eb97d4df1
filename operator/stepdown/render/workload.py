"""A fleet's pods: the Deployment and what goes with it. `render.objects` calls this.

The pod template changes, and every pod with it, for the image, resources, channels' keys and the operator's address: never for
a policy, which comes by sync and through the mounted ConfigMaps.
"""

from typing import Any

from stepdown.model.config import SHARDS
from stepdown.model.fleet import Autoscaling, ProxySpec, Resources
from stepdown.model.mounted import CA_FILE
from stepdown.render.parts import HTTP_PORT, Names, Object, Settings, labels, made, selector

CONFIG_DIR = "/etc/stepdown/config"
KEY_DIR = "/etc/stepdown/keys"
TOKEN_DIR = "/var/run/secrets/stepdown"
STATE_DIR = "/var/lib/stepdown"

SYNC_AUDIENCE = "stepdown"
TOKEN_LIFE_S = 3600
ACCEPT_S = 5
"""How long a pod goes on accepting after SIGTERM: until every node has heard that it is no longer an endpoint."""
GRACE_S = 800
"""More than accepting, draining the longest request (660 s) and telling the ledger of the end (120 s) take together."""
USER = 65532
"""Neither root nor anybody that an image has."""

REQUESTS = {"cpu": "250m", "memory": "256Mi"}
LIMITS = {"memory": "512Mi"}
"""For resources of which the RoutingProxy says nothing. No limit of CPU: throttling would show as latency, and nothing else."""


def service_account(names: Names) -> Object:
    """Who the pods are: sync knows a fleet by it. It needs no right to anything in the API."""
    return made(names, "v1", "ServiceAccount", names.common, automountServiceAccountToken=False)


def deployment(names: Names, spec: ProxySpec, settings: Settings, replicas: int | None) -> Object:
    """`replicas` None: the number is another's."""
    content: Object = {
        **({"replicas": replicas} if replicas is not None else {}),
        "selector": {"matchLabels": selector(names)},
        # Never fewer than there were: a pod's lease and its warm connections go with it, and its successor must be ready first.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
        "revisionHistoryLimit": 3,
        "template": {"metadata": {"labels": labels(names)}, "spec": _pod(names, spec, settings)},
    }
    return made(names, "apps/v1", "Deployment", names.common, spec=content)


def disruption_budget(names: Names) -> Object:
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(names)},
        # A pod that is not ready serves nobody: it must not keep a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return made(names, "policy/v1", "PodDisruptionBudget", names.common, spec=spec)


def autoscaler(names: Names, bounds: Autoscaling) -> Object:
    target = {"type": "Utilization", "averageUtilization": bounds.target_cpu_percent}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.common},
        "minReplicas": bounds.min_replicas,
        "maxReplicas": bounds.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return made(names, "autoscaling/v2", "HorizontalPodAutoscaler", names.common, spec=spec)


def resources(stated: Resources) -> dict[str, dict[str, str]]:
    """As stated; a resource of which nothing is said gets ours. Half a statement is left as it is: half a default could
    contradict it (a request above its limit), and the API server takes a request that is absent from the limit.
    """
    said = stated.requests.keys() | stated.limits.keys()
    both = {
        "requests": {**{name: each for name, each in REQUESTS.items() if name not in said}, **stated.requests},
        "limits": {**{name: each for name, each in LIMITS.items() if name not in said}, **stated.limits},
    }
    return {name: each for name, each in both.items() if each}


def _pod(names: Names, spec: ProxySpec, settings: Settings) -> Object:
    pod: Object = {
        "serviceAccountName": names.common,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            _spread(names, "kubernetes.io/hostname"),
            _spread(names, "topology.kubernetes.io/zone"),
        ],
        "containers": [_container(names, spec, settings)],
        "volumes": [
            {"name": "config", "projected": {"sources": _config_sources(names)}},
            {"name": "token", "projected": {"sources": [_token()]}},
            {"name": "keys", "projected": {"defaultMode": 0o440, "sources": _key_sources(spec)}},
            {"name": "state", "emptyDir": {}},
        ],
    }
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return pod


def _container(names: Names, spec: ProxySpec, settings: Settings) -> Object:
    arguments = {
        "--listen": f"0.0.0.0:{HTTP_PORT}",
        "--fleet": f"{names.namespace}/{names.name}",
        "--sync-url": settings.sync_url,
        "--sync-ca": f"{CONFIG_DIR}/{CA_FILE}",
        "--sync-token": f"{TOKEN_DIR}/token",
        "--config-dir": CONFIG_DIR,
        "--state-dir": STATE_DIR,
        "--key-dir": KEY_DIR,
        "--pod-uid": "$(POD_UID)",
        "--accept-s": str(ACCEPT_S),
    }
    return {
        "name": "proxy",
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", "stepdown.proxy"],
        "args": [word for pair in arguments.items() for word in pair],
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "ports": [{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        "resources": resources(spec.resources),
        # Alive: the process answers. Ready: it has money and config, or had them, and is not on its way out.
        "startupProbe": _probe("/healthz", period_s=1, timeout_s=1, failures=60),
        "livenessProbe": _probe("/healthz", period_s=10, timeout_s=5, failures=6),
        "readinessProbe": _probe("/readyz", period_s=2, timeout_s=2, failures=3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "token", "mountPath": TOKEN_DIR, "readOnly": True},
            {"name": "keys", "mountPath": KEY_DIR, "readOnly": True},
            {"name": "state", "mountPath": STATE_DIR},
        ],
    }


def _config_sources(names: Names) -> list[Object]:
    """Every shard that there can ever be, each optional: one that comes later is mounted without a new pod."""
    maps = [names.fleet_map, *(names.shard_map(index) for index in range(SHARDS))]
    return [{"configMap": {"name": name, "optional": True}} for name in maps]


def _key_sources(spec: ProxySpec) -> list[Object]:
    """A file a channel. Optional: a Secret that is missing must not keep the other channels from serving; proxies report it."""
    return [
        {
            "secret": {
                "name": channel.api_key_secret_ref.name,
                "optional": True,
                "items": [{"key": channel.api_key_secret_ref.key_or_default, "path": channel.name}],
            }
        }
        for channel in spec.upstream.channels
    ]


def _token() -> Object:
    return {"serviceAccountToken": {"audience": SYNC_AUDIENCE, "expirationSeconds": TOKEN_LIFE_S, "path": "token"}}


def _spread(names: Names, topology: str) -> Object:
    """Over nodes and zones as far as there are any: never so hard that a pod finds no place."""
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(names)},
    }


def _probe(path: str, *, period_s: int, timeout_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }
