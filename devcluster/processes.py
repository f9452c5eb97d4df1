"""Processes that end with their parent, and ending none but our own: a pid counts only together with its start time."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ProcessId:
    pid: int
    started: int
    """In clock ticks since boot: no two processes of a machine share pid and start."""

    @property
    def alive(self) -> bool:
        return started(self.pid) == self.started

    def send(self, number: int) -> None:
        """Signals it; silently nothing if it is gone, or if its pid is another's now."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)  # from here on the pid cannot become another's
            try:
                if self.alive:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)

    def end(self, grace_s: float = 0.0) -> None:
        """SIGTERM if there is grace, then SIGKILL, and waits until it is gone."""
        if grace_s > 0:
            self.send(signal.SIGTERM)
            self._wait(grace_s)
        self.send(signal.SIGKILL)
        self._wait(10.0)

    def _wait(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < until_s:
            time.sleep(0.02)


def started(pid: int) -> int | None:
    """When the process started; None if there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessId:
    return ProcessId(pid, started(pid) or 0)


def dies_with_parent() -> None:
    """To be called in a new child: the kernel kills it when the thread that forked it ends, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """A child that writes to the end of `log` and that the kernel kills when we end. Only for a process without threads."""
    parent = os.getpid()

    def prepare() -> None:
        dies_with_parent()
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=prepare
        )


def mentioning(text: str) -> list[ProcessId]:
    """Every process but this one with `text` in its arguments: what a folder's cluster has running."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes() and started(int(entry.name)) is not None:
                    found.append(identify(int(entry.name)))
    return found


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
