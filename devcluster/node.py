"""A node on this machine: containerd, kubelet, kube-proxy and the cluster's DNS. supervisor.py starts it last."""

import http.client
import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from devcluster import archives, network, ports
from devcluster.client import Client
from devcluster.components import Component, Identities, kubeconfig_of
from devcluster.layout import LOOPBACK, NODE_ADDRESS, NODE_NAME, POD_RANGE, SERVICE_DNS, Layout
from devcluster.waiting import done, until

_SIGNALS = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")
_MANIFEST = Path(__file__).with_name("manifests") / "coredns.yaml"


class Node:
    def __init__(self, layout: Layout, programs: Mapping[str, Path]) -> None:
        self._layout = layout
        self._programs = programs
        self._ports: list[int] = []
        self._reserved: list[socket.socket] = []

    def prepare(self) -> None:
        """The machine's network, and what can be written before anything runs."""
        network.prepare()
        self._layout.node.mkdir(mode=0o711)
        for where in (NODE_ADDRESS, LOOPBACK, LOOPBACK):
            port, reserved = ports.reserve(where)
            self._ports.append(port)
            self._reserved.append(reserved)
        archives.write(self._archive("pause"), archives.PAUSE, self._programs["pause"])
        archives.write(self._archive("coredns"), archives.COREDNS, self._programs["coredns"])

    def component(self, known: Identities) -> Component:
        """One process for the supervisor: the first of the node's own namespaces."""
        folder = self._layout.node
        cni = folder / "cni"
        cni.mkdir()
        (cni / "10-devcluster.conflist").write_text(json.dumps(_cni(folder)))
        (folder / "containerd.toml").write_text(_containerd(self._layout, cni))
        (folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in _name_servers()))
        (folder / "kubelet.json").write_text(json.dumps(self._kubelet(known)))
        (folder / "kube-proxy.json").write_text(json.dumps(_proxy(self._layout, *self._ports[1:])))
        kubelet = [str(self._programs["kubelet"]), f"--config={folder}/kubelet.json", f"--root-dir={folder}/kubelet"]
        kubelet += [f"--kubeconfig={kubeconfig_of(self._layout, 'kubelet')}", f"--hostname-override={NODE_NAME}"]
        kubelet += [f"--node-ip={NODE_ADDRESS}", f"--cert-dir={folder}/kubelet-pki"]
        containerd = shutil.which("containerd") or "containerd"
        plan = {
            "containerd": [containerd, f"--config={folder}/containerd.toml"],
            "kubelet": kubelet,
            "kube-proxy": [str(self._programs["kube-proxy"]), f"--config={folder}/kube-proxy.json"],
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        command = (sys.executable, "-m", "devcluster.nodespace", str(self._layout.state))
        return Component("node", command, Path(__file__).parent.parent)

    def furnish(self, client: Client) -> Iterator[None]:
        """From a node that has just been started to one that runs pods."""
        logs = [self._layout.log(part) for part in ("node", "containerd", "kubelet", "kube-proxy")]
        yield from until(self._layout.containerd_socket.exists, "containerd to answer", logs)
        for name in ("pause", "coredns"):
            yield from done(images_import(self._layout, self._archive(name)))
        yield from until(lambda: _is(client, f"/api/v1/nodes/{NODE_NAME}", "Ready"), "the node to be Ready", logs)
        forward = f"forward . {' '.join(servers)}" if (servers := _name_servers()) else ""
        manifest = _MANIFEST.read_text().replace("FORWARD", forward)
        manifest = manifest.replace("COREDNS_IMAGE", archives.COREDNS).replace("CLUSTER_DNS", SERVICE_DNS)
        (self._layout.node / "coredns.yaml").write_text(manifest)
        kubectl = [str(self._programs["kubectl"]), f"--kubeconfig={self._layout.kubeconfig}", "--cache-dir=/dev/null"]
        yield from done([*kubectl, "apply", "--filename", str(self._layout.node / "coredns.yaml")])
        deployment = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
        yield from until(lambda: _is(client, deployment, "Available"), "the cluster's DNS to answer", logs)

    def _archive(self, name: str) -> Path:
        return self._layout.node / f"{name}.tar"

    def _kubelet(self, known: Identities) -> dict[str, Any]:
        folder = self._layout.node
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "port": self._ports[0],
            "healthzPort": 0,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(known.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(known.kubelet_server.cert),
            "tlsPrivateKeyFile": str(known.kubelet_server.key),
            "containerRuntimeEndpoint": f"unix://{self._layout.containerd_socket}",
            "clusterDNS": [SERVICE_DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(folder / "resolv.conf"),
            "volumePluginDir": str(folder / "volume-plugins"),
            # A machine of cgroup v1, without systemd, on which others run too: the node takes no part of it for itself.
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{network.CGROUP}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            # A full disk is not the node's to mend: it neither evicts pods nor deletes images, which nobody could pull again.
            "evictionHard": dict.fromkeys(_SIGNALS, "0%"),
            "imageGCHighThresholdPercent": 100,
        }


def images_import(layout: Layout, archive: Path) -> list[str]:
    """The command that gives the node the images of a docker-archive."""
    ctr = ["ctr", f"--address={layout.containerd_socket}", "--namespace=k8s.io"]
    return [*ctr, "images", "import", "--snapshotter=overlayfs", str(archive)]


def _is(client: Client, path: str, condition: str) -> bool:
    try:
        status, found = client.request("GET", path, timeout_s=2.0)
    except (OSError, http.client.HTTPException):
        return False
    said = found.get("status", {}).get("conditions", []) if status == 200 else []
    return any(one["type"] == condition and one["status"] == "True" for one in said)


def _containerd(layout: Layout, cni: Path) -> str:
    """TOML. What it keeps is in the state folder, but for what it insists to have under /run, which is the namespace's own."""
    folder = layout.node
    return f"""version = 2
root = "{folder}/containerd"
state = "{folder}/running"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{archives.PAUSE}"
# Without this every sandbox fails where root lacks CAP_SYS_RESOURCE: "can't get final child's PID from pipe".
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _cni(folder: Path) -> dict[str, Any]:
    """A wire from the machine to each pod, and no bridge: what goes from pod to pod passes kube-proxy's rules on its way.

    On a bridge it would not, on a kernel without br_netfilter, and a pod that is asked through a Service could not answer.
    """
    ranges = [[{"subnet": POD_RANGE}]]
    ipam = {"type": "host-local", "dataDir": str(folder / "addresses"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "0.4.0", "name": "devcluster", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def _proxy(layout: Layout, health: int, metrics: int) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig_of(layout, "kube-proxy"))},
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_RANGE,
        "nodePortAddresses": [f"{NODE_ADDRESS}/32"],  # in this mode, loopback is out of its reach
        "nftables": {"minSyncPeriod": "0.1s"},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": f"{LOOPBACK}:{health}",
        "metricsBindAddress": f"{LOOPBACK}:{metrics}",
    }


def _name_servers() -> list[str]:
    """The machine's, if a pod can reach them: not those on loopback."""
    for file in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and not words[1].startswith("127.")]
        if found:
            return found
    return []
