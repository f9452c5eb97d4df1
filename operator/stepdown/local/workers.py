"""`stepdown run --workers N`: N proxy processes on one address, which sync with this process over a Unix socket.

They are what a pod is in a cluster, a process with a log of its own; the kernel spreads connections over them (SO_REUSEPORT).
Keys reach them as files in a folder that only this user can read, as mounted Secrets would, and leave with it.
"""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from stepdown.local.secrets import ENVIRONMENT, ChannelKey
from stepdown.sync import log
from stepdown.sync.http import SyncServer
from stepdown.sync.service import SyncService

_RESTART_S = 1.0


class WorkersFailed(Exception):
    """A proxy process did not start."""


class Workers:
    """The proxy processes, what they share, and their end."""

    def __init__(self, service: SyncService, count: int, host: str, port: int, state_dir: Path, fleet: str) -> None:
        self._count, self._host, self._port, self._state_dir, self._fleet = count, host, port, state_dir, fleet
        # A short path of its own: a Unix socket's may not be longer than 107 bytes.
        self._shared = Path(tempfile.mkdtemp(prefix="stepdown-"))
        self._server = SyncServer(service, self._shared / "sync")
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._reserved: socket.socket | None = None
        self._stopping = False
        self.port = port

    def tell_keys(self, keys: tuple[ChannelKey, ...]) -> None:
        """The channels' keys, each in a file of its own, exchanged as a whole."""
        folder = self._shared / "keys"
        folder.mkdir(mode=0o700, exist_ok=True)
        for key in keys:
            fresh = folder / f".{key.channel}"
            fresh.write_text(key.value)
            fresh.replace(folder / key.channel)

    async def start(self) -> None:
        """All of them listen when this returns. Raises OSError for the address, WorkersFailed for anything else."""
        self._reserved = _reserve(self._host, self._port)
        self.port = self._reserved.getsockname()[1]
        await self._server.start()
        for index in range(self._count):
            await self._spawn(index)
            self._tasks.append(asyncio.create_task(self._keep(index)))

    async def stop(self, drain_s: float) -> bool:
        """They drain; True: the ledger has heard of the end of each."""
        self._stopping = True
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in self._processes.values()]
        if waits:
            await asyncio.wait(waits, timeout=drain_s)
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        self.clean()
        return all(process.returncode == 0 for process in self._processes.values())

    def kill(self) -> None:
        """At once, and nothing is left behind but what the logs say."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        self.clean()

    def clean(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
        shutil.rmtree(self._shared, ignore_errors=True)

    async def _spawn(self, index: int) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "stepdown.proxy", "--listen", f"{host}:{self.port}", "--reuse-port", "--fleet", self._fleet),
            *("--sync-socket", str(self._shared / "sync"), "--key-dir", str(self._shared / "keys")),
            *("--state-dir", str(self._state_dir / f"worker-{index}")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process: it drains them
            env={name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)},
        )
        self._processes[index] = process
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line.startswith("listening on "):
            assert process.stderr is not None
            said = (await process.stderr.read()).decode().strip()
            raise WorkersFailed(f"proxy process {index} did not start: {said or 'it said nothing'}")

    async def _keep(self, index: int) -> None:
        """Passes on what it logs; starts it again when it dies. Its log resumes, and what was in flight is charged."""
        while True:
            process = self._processes[index]
            assert process.stderr is not None
            async for line in process.stderr:
                log.info(line.decode(errors="replace").strip(), event="worker", worker=index)
            code = await process.wait()
            if self._stopping:
                return
            log.error(f"proxy process {index} ended with {code}; it is started again", event="worker", worker=index)
            await asyncio.sleep(_RESTART_S)
            try:
                await self._spawn(index)
            except (OSError, WorkersFailed) as error:
                log.error(str(error), event="worker", worker=index)
                await asyncio.sleep(_RESTART_S)


def _reserve(host: str, port: int) -> socket.socket:
    """Holds the address without listening on it, so that port 0 becomes one port for all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held
