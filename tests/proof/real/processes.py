"""Processes of a schedule: their output goes to a file that is kept, and the kernel ends them with us."""

import asyncio
import contextlib
import inspect
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START_S = 120.0
"""How long a process may take to begin on a machine that is busy."""

BOOT_ID = "/proc/sys/kernel/random/boot_id"


async def until(true: Callable[[], Any], what: str, timeout_s: float = START_S) -> Any:
    """Waits for something true, or to be awaited for it, and returns it. Raises TimeoutError: that is nobody's money."""
    until_s = time.monotonic() + timeout_s
    while True:
        found = true()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > until_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        await asyncio.sleep(0.05)


class Ended(Exception):
    """It ended before it said what was waited for."""


def on_another_boot(boot_id: Path) -> list[str]:
    """What to begin a command with, so that its process finds another boot id than the machine's. Needs root."""
    inner = f'mount --bind "$0" {BOOT_ID} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", inner, str(boot_id)]


class Process:
    """One process, and those that take its place in the same log."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self.wanted = False
        """Whoever keeps processes running starts it again when it ends."""
        self._process: subprocess.Popen[bytes] | None = None
        self._from = 0

    def launch(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """`setpriv` has the kernel kill it when we die, however; all that it runs before the command is by exec, so that the
        pid is the command's."""
        assert not self.alive
        self.wanted = True
        with self.log.open("ab") as output:
            output.write(b"--- started\n")
            output.flush()
            self._from = output.tell()
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: int) -> None:
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As the kernel does it for want of memory. Returns when it is gone."""
        self.wanted = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self, timeout_s: float = START_S) -> int:
        """As Kubernetes does it; the exit code."""
        self.wanted = False
        self.send(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await until(lambda: not self.alive, f"{self.name} ends", timeout_s)
        if self.alive:
            self.kill()
        code = self.code
        assert code is not None
        return code

    def said(self, part: str) -> str:
        """The last line with this in it, of those that this process has written; empty if there is none."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if part in line), "")

    async def hear(self, part: str, timeout_s: float = START_S) -> str:
        """Waits for a line. Raises Ended, TimeoutError."""
        line: str = await until(lambda: self.said(part) or self.ended(part), f"{self.name} says {part!r}", timeout_s)
        return line

    def ended(self, before: str) -> str:
        """Raises Ended, if it has."""
        if not self.alive:
            raise Ended(f"{self.name} ended with {self.code} before it said {before!r}")
        return ""
