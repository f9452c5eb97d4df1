"""How a fleet is reached, and what it may reach itself: its Service and its NetworkPolicy. `render.objects` calls this."""

from urllib.parse import urlsplit

from stepdown.render.parts import Names, Object, Settings, made, selector

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def service(names: Names) -> Object:
    """What applications call: `http://NAME.NAMESPACE/v1`."""
    port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
    return made(names, "v1", "Service", names.name, spec={"type": "ClusterIP", "selector": selector(names), "ports": [port]})


def network_policy(names: Names, base_url: str, settings: Settings) -> Object:
    """In: HTTP from any pod; who may call a route is the route's to say, and Prometheus scrapes the same port. Out: names, the
    operator's sync, the upstream; nothing else, whatever a body that is forwarded makes a library do.
    """
    spec = {
        "podSelector": {"matchLabels": selector(names)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [_port("TCP", "http")]}],
        "egress": [
            # To any address: a node-local DNS cache is no pod, and its address is the cluster's own matter.
            {"ports": [_port("UDP", 53), _port("TCP", 53)]},
            _egress(settings.sync_url, names, settings.sync_port),
            _egress(base_url, names),
        ],
    }
    return made(names, "networking.k8s.io/v1", "NetworkPolicy", names.common, spec=spec)


def _egress(url: str, names: Names, pod_port: int | None = None) -> Object:
    """Out to a URL's port. A NetworkPolicy knows no names, so a host outside the cluster is any address.

    A host in the cluster is its namespace's pods, on `pod_port`: what the policy sees is the port of the pod behind a Service,
    which the URL does not say; None: any.
    """
    parts = urlsplit(url)
    _, _, rest = (parts.hostname or "").partition(".")
    namespace, _, kind = rest.partition(".")
    if kind == "svc" or kind.startswith("svc.") or not rest:
        namespace = namespace or names.namespace
        ports = {"ports": [_port("TCP", pod_port)]} if pod_port is not None else {}
        return {"to": [{"namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: namespace}}}], **ports}
    return {"ports": [_port("TCP", parts.port or (443 if parts.scheme == "https" else 80))]}


def _port(protocol: str, port: int | str) -> Object:
    return {"protocol": protocol, "port": port}
