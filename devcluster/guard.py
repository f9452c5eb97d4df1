"""A process beside the supervisor that outlives it for one purpose: to clean up, also when the supervisor was killed.

It reads from a pipe that only the supervisor can write to. The pipe's end means that the supervisor is no more, and then the
kernel has killed its children. What the kernel does not know of is done here: a node's network, its cgroups, the state folder.
If both are killed, the next start does the same.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from devcluster import network, record
from devcluster.layout import Layout


def start(state: Path, node: bool, inherited: Iterable[int]) -> tuple[subprocess.Popen[bytes], int]:
    """The guard, and the end of the pipe that the supervisor keeps open. `inherited`: locks that last as long as the guard."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "devcluster.guard", str(state), "node" if node else "control-plane"]
    with Layout(state).log("guard").open("ab") as log:  # still there if it could not do its work
        process = subprocess.Popen(
            command,
            stdin=reading,
            stdout=log,
            stderr=log,
            pass_fds=tuple(inherited),
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
        )
    os.close(reading)
    return process, writing


def clean(layout: Layout, node: bool) -> None:
    """Ends what the folder's record says was started, undoes what a node did to the machine, and removes the folder."""
    for process in record.read(layout):
        process.end()
    if node:
        network.remove()
    if layout.ours:
        _remove(layout.state)


def _remove(folder: Path, tries: int = 50) -> None:
    """The last of a node's mounts goes with its last process, moments after that was killed; until then some files are busy."""
    for _ in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(folder)


def main() -> None:
    while os.read(0, 4096):
        pass
    clean(Layout(Path(sys.argv[1])), node=sys.argv[2] == "node")


if __name__ == "__main__":
    main()
