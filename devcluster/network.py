"""What a node changes on the machine outside its state folder, and how it is undone: by the guard, and before the next start.

A bridge without ports, whose address is the node's, since that may not be loopback; a table that hides the pods behind the
machine; forwarding; kube-proxy's tables; a cgroup; mount points. The pods' own devices go with their network namespaces.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from devcluster.errors import MachineError
from devcluster.layout import NODE_ADDRESS, POD_RANGE, SERVICE_RANGE

BRIDGE = "stepdown0"
CGROUP = "stepdown-devcluster"
MOUNT_POINTS = (Path("/var/lib/kubelet"), Path("/var/lib/cni"), Path("/var/log/containers"), Path("/var/log/pods"))
"""Paths that the kubelet and the network plugins insist on: in the node's own mount namespace they are the state folder's."""
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_TABLES = (("ip", "stepdown-devcluster"), ("ip", "kube-proxy"), ("ip6", "kube-proxy"))
_MASQUERADE = f"""
table ip stepdown-devcluster {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_RANGE} ip daddr != {POD_RANGE} masquerade
  }}
}}
"""


def prepare() -> None:
    """Undoes what a killed node left, then makes its own."""
    ours = _bridge().exists()
    if not ours and _run("nft", "list", "table", "ip", "kube-proxy").returncode == 0:
        raise MachineError(
            "This machine is a node of another cluster (it has kube-proxy's table), and can be one cluster's only."
        )
    remove()
    _must("ip", "link", "add", BRIDGE, "type", "bridge")
    _must("ip", "link", "set", BRIDGE, "alias", f"ip_forward={_FORWARD.read_text().strip()}")
    _must("ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", BRIDGE)
    _must("ip", "link", "set", BRIDGE, "up")
    # The way to Services, from this machine too. What has no Service behind it ends on the bridge, not on some network.
    _must("ip", "route", "add", SERVICE_RANGE, "dev", BRIDGE, "src", NODE_ADDRESS)
    _must("nft", "-f", "-", stdin=_MASQUERADE)
    _FORWARD.write_text("1")
    for point in MOUNT_POINTS:
        with contextlib.suppress(FileExistsError):
            point.mkdir(parents=True)


def remove() -> None:
    """Everything; nothing, if there is nothing. A node of another cluster has no such bridge, and is left alone."""
    if not _bridge().exists():
        return
    for family, table in _TABLES:
        _run("nft", "delete", "table", family, table)
    _remove_cgroups()
    for point in MOUNT_POINTS:
        with contextlib.suppress(OSError):  # it was there before and has something in it
            point.rmdir()
    before = (_bridge() / "ifalias").read_text().strip().removeprefix("ip_forward=")
    if before in ("0", "1"):
        _FORWARD.write_text(before)
    _run("ip", "link", "delete", BRIDGE)  # last: as long as it is there, the rest may be


def _remove_cgroups() -> None:
    """Its processes were killed a moment ago; until the last is gone the kernel says that it is busy."""
    until_s = time.monotonic() + 10.0
    for root in (Path("/sys/fs/cgroup") / CGROUP, *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")):
        while root.exists() and time.monotonic() < until_s:
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if root.exists():
                time.sleep(0.05)


def _bridge() -> Path:
    return Path("/sys/class/net") / BRIDGE


def _run(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def _must(*command: str, stdin: str = "") -> None:
    done = _run(*command, stdin=stdin)
    if done.returncode != 0:
        raise MachineError(
            f"{' '.join(command)}: {done.stderr.strip()}. A node needs a machine that lets root change its network."
        )
