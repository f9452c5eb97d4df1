"""The first process of a node's own pid and mount namespaces: runs containerd, the kubelet and kube-proxy in them.

    python -m devcluster.nodespace STATE      (node.py has written what to run to STATE/node/plan.json)

When it ends, however it ends, the kernel kills every process of the namespace, the pods' too, and their mounts go with them.
It ends with the supervisor: the kernel kills the outer process, and that one's end kills this one.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from devcluster import network, processes, record
from devcluster.layout import Layout

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_AGAIN_S = 1.0


def main() -> int:
    layout = Layout(Path(sys.argv[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    go, ready = os.pipe()
    inner = os.fork()
    if inner == 0:
        os.close(ready)
        processes.dies_with_parent()
        if not os.read(go, 1):
            return 1  # the outer process was killed before the line above
        os.close(go)
        _enter(layout)
        _serve(layout)
    record.write(layout, "node's first", processes.identify(inner))
    os.write(ready, b".")
    os.waitpid(inner, 0)
    return 1


def _enter(layout: Layout) -> None:
    """Mounts that are nobody else's. They are shared within, since pods get mounts that the kubelet makes later."""
    _mount("--make-rprivate", "/")
    _mount("--make-rshared", "/")
    _mount("-t", "proc", "proc", "/proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for point in network.MOUNT_POINTS:
        own = layout.node / "mounts" / point.name
        own.mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(own), str(point))


def _serve(layout: Layout) -> None:
    """Runs the node's parts for ever, each again when it ends, and takes in what lost its parent."""
    plan: dict[str, list[str]] = json.loads((layout.node / "plan.json").read_text())
    running: dict[int, str] = {}
    children: list[subprocess.Popen[bytes]] = []  # kept: a Popen that is thrown away waits for its process by itself

    def start(name: str) -> None:
        child = processes.spawn(plan[name], layout.log(name))
        children.append(child)
        running[child.pid] = name

    start("containerd")
    while not layout.containerd_socket.exists():  # the kubelet gives up without
        time.sleep(0.05)
    start("kubelet")
    start("kube-proxy")
    while True:
        pid, _ = os.wait()
        if (name := running.pop(pid, None)) is not None:
            time.sleep(_AGAIN_S)
            start(name)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
