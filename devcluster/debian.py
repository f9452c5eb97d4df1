"""What a node and its images need from Debian: installed when it is lacking, by a user who may."""

import os
import shutil
import subprocess
from collections.abc import Mapping

from devcluster import cache
from devcluster.errors import MachineError

NODE = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
}
"""By program: the package that has it."""
IMAGES = {"buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap"}


def install(programs: Mapping[str, str]) -> None:
    """Makes sure that the programs are there."""
    if os.geteuid() != 0:
        raise MachineError("A node, and an image for it, need root: mounts, network devices and cgroups are root's. Use sudo.")
    lacking = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not lacking:
        return
    if shutil.which("apt-get") is None:
        raise MachineError(f"This machine lacks {', '.join(lacking)} (Debian's names), and has no apt-get. Install them.")
    cache.say(f"installing {', '.join(lacking)} with apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *lacking]
    with cache.lock("apt"):
        for command in (install, ["apt-get", "update"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
            if done.returncode == 0 and command is install:
                return
    raise MachineError(f"apt-get could not install {', '.join(lacking)}: {done.stderr.strip()}")
