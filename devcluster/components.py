"""The command line of each part of the control plane. Pure: a Layout and a port give the flags; supervisor.py runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster.certificates import Authority, Pair, write_kubeconfig
from devcluster.layout import LOOPBACK, NODE_ADDRESS, NODE_NAME, POD_RANGE, SERVICE_FIRST, SERVICE_RANGE, Layout
from devcluster.options import Options

ETCD, APISERVER, CONTROLLER, SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
CONTROL_PLANE = (ETCD, APISERVER, CONTROLLER, SCHEDULER)


@dataclass(frozen=True, slots=True)
class Identities:
    """Everyone's certificates."""

    ca: Path
    server: Pair
    admin: Pair
    to_kubelet: Pair
    front_proxy: Pair
    kubelet_server: Pair
    tokens: Path


@dataclass(frozen=True, slots=True)
class Component:
    name: str
    command: tuple[str, ...]
    cwd: Path


def address(options: Options) -> str:
    """Where the API server listens: where pods can reach it too, if there will be pods."""
    return NODE_ADDRESS if options.size == "node" else LOOPBACK


def identities(layout: Layout, authority: Authority, server: str) -> Identities:
    """Signs for everyone, and writes the kubeconfigs of those who connect to the API server."""
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    hosts = (*names, LOOPBACK, NODE_ADDRESS, SERVICE_FIRST)
    made = Identities(
        ca=authority.cert,
        server=authority.sign("apiserver", "kube-apiserver", hosts=hosts),
        admin=authority.sign("admin", "devcluster-admin", "system:masters"),
        to_kubelet=authority.sign("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
        front_proxy=authority.sign("front-proxy", "front-proxy-client"),
        kubelet_server=authority.sign("kubelet-server", f"system:node:{NODE_NAME}", "system:nodes", (NODE_NAME, NODE_ADDRESS)),
        tokens=authority.signing_key("service-accounts"),
    )
    clients = {
        CONTROLLER: authority.sign(CONTROLLER, f"system:{CONTROLLER}"),
        SCHEDULER: authority.sign(SCHEDULER, f"system:{SCHEDULER}"),
        "kubelet": authority.sign("kubelet", f"system:node:{NODE_NAME}", "system:nodes"),
        "kube-proxy": authority.sign("kube-proxy", "system:kube-proxy"),
    }
    for name, pair in clients.items():
        write_kubeconfig(kubeconfig_of(layout, name), server, made.ca, pair)
    write_kubeconfig(layout.kubeconfig, server, made.ca, made.admin)
    return made


def kubeconfig_of(layout: Layout, name: str) -> Path:
    return layout.pki / f"{name}.kubeconfig"


def components(
    layout: Layout, programs: Mapping[str, Path], known: Identities, port: int, options: Options
) -> dict[str, Component]:
    """In the order in which they start."""
    flags = {
        ETCD: _etcd(layout),
        APISERVER: _apiserver(layout, known, port, options),
        CONTROLLER: _controller(layout, known),
        SCHEDULER: _scheduler(layout),
    }
    return {name: Component(name, (str(programs[name]), *flags[name]), layout.etcd) for name in CONTROL_PLANE}


def _etcd(layout: Layout) -> tuple[str, ...]:
    """On unix sockets in the state folder: only its owner can open them, so etcd needs neither ports nor certificates.

    Nothing is synced to disk: what a test cluster holds need not outlive the machine, and it outlives etcd's own end without.
    """
    peer = "unix://peer.sock:0"  # in etcd's working directory; it insists on something like a port
    return (
        "--name=devcluster",
        f"--data-dir={layout.etcd}/data",
        "--unsafe-no-fsync",
        f"--listen-client-urls=unix://{layout.etcd}/client.sock",
        "--advertise-client-urls=unix://client.sock:0",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=devcluster={peer}",
        "--enable-grpc-gateway=false",
        "--auto-compaction-retention=10m",
        "--log-level=warn",
    )


def _apiserver(layout: Layout, known: Identities, port: int, options: Options) -> tuple[str, ...]:
    where = address(options)
    flags: tuple[str, ...] = (
        f"--etcd-servers=unix://{layout.etcd}/client.sock",
        f"--bind-address={where}",
        f"--advertise-address={where}",
        f"--secure-port={port}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={known.ca}",
        f"--tls-cert-file={known.server.cert}",
        f"--tls-private-key-file={known.server.key}",
        f"--kubelet-client-certificate={known.to_kubelet.cert}",
        f"--kubelet-client-key={known.to_kubelet.key}",
        f"--kubelet-certificate-authority={known.ca}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={known.tokens}",
        f"--service-account-signing-key-file={known.tokens}",
        f"--requestheader-client-ca-file={known.ca}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={known.front_proxy.cert}",
        f"--proxy-client-key-file={known.front_proxy.key}",
        # Without these, an API server that is told to end waits a minute for its watchers.
        "--shutdown-delay-duration=0s",
        "--shutdown-watch-termination-grace-period=0s",
    )
    if options.size == "control-plane":
        # Its own endpoint would be a loopback address, which the API refuses; nothing could reach it anyway.
        flags += ("--endpoint-reconciler-type=none",)
    if options.audit is not None:
        flags += (f"--audit-policy-file={options.audit}", f"--audit-log-path={layout.audit}", "--audit-log-mode=blocking")
    return (*flags, *options.apiserver_args)


def _controller(layout: Layout, known: Identities) -> tuple[str, ...]:
    own = kubeconfig_of(layout, CONTROLLER)
    return (
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--leader-elect=false",
        "--secure-port=0",
        "--use-service-account-credentials=true",
        "--kube-api-qps=500",  # it makes an account for each of its controllers first, and by default takes seconds over that
        "--kube-api-burst=500",
        f"--service-account-private-key-file={known.tokens}",
        f"--root-ca-file={known.ca}",
        f"--cluster-signing-cert-file={known.ca}",
        f"--cluster-signing-key-file={known.ca.with_suffix('.key')}",
        f"--cluster-cidr={POD_RANGE}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allocate-node-cidrs=false",
        "--controllers=*,-node-ipam-controller,-node-route-controller,-service-lb-controller,-cloud-node-lifecycle-controller",
    )


def _scheduler(layout: Layout) -> tuple[str, ...]:
    own = kubeconfig_of(layout, SCHEDULER)
    return (
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--leader-elect=false",
        "--secure-port=0",
    )
