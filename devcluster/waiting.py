"""Waiting in steps, so that the supervisor can do other things in between: `yield from until(…)`."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from devcluster.errors import StartError
from devcluster.processes import tail

_WAIT_S = 120.0


def until(met: Callable[[], bool], what: str, logs: Sequence[Path] = ()) -> Iterator[None]:
    """Yields until it is so; StartError with the ends of the logs if that takes too long."""
    until_s = time.monotonic() + _WAIT_S
    while not met():
        if time.monotonic() > until_s:
            ends = "".join(f"\n--- {log.name}\n{tail(log)}" for log in logs)
            raise StartError(f"Waited {_WAIT_S:.0f} s for {what}.{ends}")
        yield


def done(command: Sequence[str]) -> Iterator[None]:
    """Yields until the command is through; StartError with what it said if it fails."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        yield from until(lambda: process.poll() is not None, " ".join(command))
        assert process.stderr is not None
        if process.returncode != 0:
            raise StartError(f"{' '.join(command)} failed: {process.stderr.read().strip()}")
