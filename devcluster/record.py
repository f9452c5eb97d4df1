"""Which processes a cluster has, a file each in its state folder: the guard and the next start read there what they may end."""

from devcluster.layout import Layout
from devcluster.processes import ProcessId


def read(layout: Layout) -> list[ProcessId]:
    found = []
    for file in layout.processes.glob("*"):
        pid, _, started = file.read_text().partition(" ")
        if pid and started:  # else it was cut off while it wrote
            found.append(ProcessId(int(pid), int(started)))
    return found


def write(layout: Layout, name: str, process: ProcessId) -> None:
    (layout.processes / name).write_text(f"{process.pid} {process.started}")
