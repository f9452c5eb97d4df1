"""Whether this machine can be a node at all: `python -m devcluster can-node`, before minutes are spent. `.ci/run` asks.

What a node needs of the kernel is tried, not guessed, and undone at once. Docker's kind needs none of it.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from devcluster import debian, kind
from devcluster.errors import MachineError

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_PROBE = "stepdown-probe"


def check_node() -> None:
    """Raises MachineError with what is lacking."""
    if kind.docker_answers():
        return
    if sys.platform != "linux":
        raise MachineError("A node needs Linux, or a Docker engine for kind.")
    debian.install(debian.NODE)
    if not _own_namespaces():
        raise MachineError("A node needs pid and mount namespaces of its own, and unshare(2) is refused here.")
    made = subprocess.run(["ip", "link", "add", _PROBE, "type", "bridge"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise MachineError(f"A node needs a bridge of its own, and none can be made here: {made.stderr.strip()}")
    subprocess.run(["ip", "link", "delete", _PROBE], check=False)
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise MachineError(f"A node needs nftables, and the kernel has none for us: {listed.stderr.strip()}")
    if not os.access(Path("/proc/sys/net/ipv4/ip_forward"), os.W_OK):
        raise MachineError("A node forwards packets, and /proc/sys/net/ipv4/ip_forward cannot be written here.")


def _own_namespaces() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(_CLONE_NEWNS | _CLONE_NEWPID) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0
