"""The last config, kept beside the log: a proxy that starts while the keeper is away serves from it what needs no lease.
`app` wraps its sync with it.

One file for the fleet and one a shard, written behind the answer in a thread, each under another name and then renamed. A
file that cannot be read is left out and said so: sync brings it again.
"""

import asyncio
import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from stepdown.model.config import Fleet, Shard
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.syncer import Sync
from stepdown.proxy.table import BadConfig, Table

T = TypeVar("T", Fleet, Shard)

_log = logging.getLogger("stepdown.proxy")


class StoredConfig:
    """A directory of config files of one fleet."""

    def __init__(self, path: Path, fleet: str) -> None:
        self._path = path
        self._fleet = fleet
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self) -> Table | None:
        """The table as it was; None: there is none that could be used."""
        fleet = self._read(self._path / "fleet.json", Fleet)
        if fleet is None or fleet.name != self._fleet:
            return None
        shards = [self._read(path, Shard) for path in sorted(self._path.glob("shard-*.json"))]
        try:
            return Table(fleet, {shard.index: shard for shard in shards if shard is not None})
        except BadConfig as error:
            _log.warning("the stored config is not used: %s", error)
            return None

    def keeping(self, sync: Sync) -> Sync:
        """The same sync; what it brings is kept."""

        async def kept(request: SyncRequest) -> SyncAnswer:
            answer = await sync(request)
            if answer.fleet is not None or answer.shards:
                task = asyncio.get_running_loop().create_task(self._keep(answer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return answer

        return kept

    async def finish(self) -> None:
        """Waits for what is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _keep(self, answer: SyncAnswer) -> None:
        async with self._writing:
            try:
                await asyncio.to_thread(self._write, answer)
            except OSError as error:
                _log.warning("the config could not be stored; it is in force all the same: %s", error)

    def _write(self, answer: SyncAnswer) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if answer.fleet is not None:
            self._put("fleet.json", msgspec.json.encode(answer.fleet))
        for shard in answer.shards:
            self._put(f"shard-{shard.index:02}.json", msgspec.json.encode(shard))

    def _put(self, name: str, data: bytes) -> None:
        draft = self._path / f".{name}"
        draft.write_bytes(data)
        draft.replace(self._path / name)

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("the stored config %s is not used: %s", path, error)
            return None
