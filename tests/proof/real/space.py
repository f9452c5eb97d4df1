"""What only root can give a schedule: small disks that get full, and a network of its own for one proxy.

`python -m tests.proof.real` starts each worker in a mount namespace of its own, so that its disks are nobody else's. Neither
they nor the network have a name: the kernel takes them away after the last process in them, and these end with the worker,
also after kill -9. Only a cable may stay for some minutes, while a connection of the dead is still given up: cables bear the
worker's pid, and those of workers that are no more are swept up by the next.
"""

import contextlib
import errno
import os
import re
import subprocess
import time
from pathlib import Path

from tests.proof.real.processes import Process

_FILL = 64 * 1024
_CABLE = re.compile(r"sp(\d+)[ds]")


def run(*command: str) -> None:
    """Raises OSError with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class Disk:
    """A folder that can be filled up, where it is a file system of its own."""

    def __init__(self, path: Path, size_mib: int, *, apart: bool) -> None:
        self.path, self.apart = path, apart
        path.mkdir(parents=True)
        if apart:
            run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(path))

    def fill(self) -> None:
        """To the last byte."""
        assert self.apart
        with (self.path / "filler").open("ab", buffering=0) as file:
            size = _FILL
            while size:
                try:
                    file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def remove(self) -> None:
        if self.apart:
            with contextlib.suppress(OSError):
                run("umount", "--lazy", str(self.path))


class Network:
    """A network namespace with two cables to this machine: one to the upstream and the clients, one to the operator."""

    def __init__(self, log: Path) -> None:
        mark = os.getpid()
        block = f"10.231.{mark % 250}"
        self.here, self.there = f"{block}.1", f"{block}.2"
        """The upstream is asked at `here`, the proxy at `there`."""
        self.operator = f"{block}.5"
        self._data, self._sync = f"sp{mark}d", f"sp{mark}s"
        _sweep()
        self._holder = Process("network", log)
        self._holder.launch(["unshare", "--net", "sleep", "infinity"], dict(os.environ))
        self._wait_apart()
        self._inside("ip", "link", "set", "lo", "up")
        self._cable(self._data, self.here, self.there)
        self._cable(self._sync, self.operator, f"{block}.6")

    @property
    def enter(self) -> list[str]:
        """What to begin a command with that is to run there."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def pull(self) -> None:
        """The operator's cable: what is sent is lost, and nobody says so."""
        run("ip", "link", "set", self._sync, "down")

    def plug(self) -> None:
        run("ip", "link", "set", self._sync, "up")

    def remove(self) -> None:
        self._holder.kill()
        for cable in (self._data, self._sync):
            _cut(cable)

    def _wait_apart(self) -> None:
        own = Path("/proc/self/ns/net").readlink()
        for _ in range(1000):
            if Path(f"/proc/{self._holder.pid}/ns/net").readlink() != own:
                return
            time.sleep(0.01)
        raise OSError("unshare --net made no network namespace")

    def _inside(self, *command: str) -> None:
        run(*self.enter, *command)

    def _cable(self, name: str, here: str, there: str) -> None:
        peer = f"{name}p"
        run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
        run("ip", "link", "set", peer, "netns", str(self._holder.pid))
        run("ip", "addr", "add", f"{here}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        self._inside("ip", "addr", "add", f"{there}/30", "dev", peer)
        self._inside("ip", "link", "set", peer, "up")


def _sweep() -> None:
    for link in Path("/sys/class/net").iterdir():
        owner = _CABLE.fullmatch(link.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            _cut(link.name)


def _cut(cable: str) -> None:
    """Both ends; if the kernel was faster, so much the better."""
    with contextlib.suppress(OSError):
        run("ip", "link", "delete", cable)
