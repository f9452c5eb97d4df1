"""The last config on disk: a proxy that starts while the keeper is away serves from it what needs no lease. `app` wraps its
sync with it.

There may be two: what sync brought last, kept beside the log, and in a cluster the fleet's ConfigMaps as mounted. Config has no
revision to tell which is newer, but each has a time by the clock of this node: `current` is touched while sync answers, so
what is stored was in force then; the kubelet writes all files of the mount anew when one of them changes, so the mount was in
force at the time of its files. The later one is used, whole, and becomes what is stored.

What is stored is one file for the fleet and one a shard, written behind the answer in a thread, each under another name and
then renamed. A file that cannot be read is left out and said so: sync brings it again.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from stepdown.model.config import Fleet, Shard
from stepdown.model.mounted import FLEET_FILE, shard_file, unpack
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.syncer import Sync
from stepdown.proxy.table import BadConfig, Table

T = TypeVar("T", Fleet, Shard)

_log = logging.getLogger("stepdown.proxy")


_TOUCH_S = 5.0
"""How often `current` is touched."""


class StoredConfig:
    """A directory of config files of one fleet, and the mount beside it."""

    def __init__(self, path: Path, fleet: str, *, mount: Path | None = None, pod_uid: str = "") -> None:
        self._path = path
        self._fleet = fleet
        self._mount = mount
        self._pod_uid = pod_uid
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complete = True
        """False: something that sync brought could not be stored, and sync will not bring it again."""
        self._touched_s: float | None = None

    @property
    def was_synced(self) -> bool:
        """Whether this pod has completed a sync, be it in the life of a process before this one."""
        try:
            return bool(self._pod_uid) and (self._path / "pod").read_text(encoding="utf-8") == self._pod_uid
        except (OSError, ValueError):
            return False

    def load(self) -> Table | None:
        """The table as it was; None: there is none that could be used. What is stored is then what the table is made of."""
        stored, mounted = (self._path, _time_ns(self._path / "current")), (self._mount, _time_ns(_fleet_of(self._mount)))
        for path, _ in (mounted, stored) if mounted[1] > stored[1] else (stored, mounted):
            config = self._read_all(path) if path is not None else None
            if config is not None:
                try:
                    table = Table(config[0], {shard.index: shard for shard in config[1]})
                except BadConfig as error:
                    _log.warning("the config in %s is not used: %s", path, error)
                    continue
                if path is not self._path:
                    self._become(*config, mounted[1])
                return table
        self._become(None, (), 0)
        return None

    def keeping(self, sync: Sync) -> Sync:
        """The same sync; what it brings is kept, and that it answers."""

        async def kept(request: SyncRequest) -> SyncAnswer:
            answer = await sync(request)
            if answer.verdict == "ok" and not request.closing and (answer.fleet or answer.shards or self._is_due()):
                task = asyncio.get_running_loop().create_task(self._keep(answer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return answer

        return kept

    async def finish(self) -> None:
        """Waits for what is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Writing ----------------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        return self._touched_s is None or now_s - self._touched_s >= _TOUCH_S

    async def _keep(self, answer: SyncAnswer) -> None:
        self._touched_s = asyncio.get_running_loop().time()
        async with self._writing:
            try:
                await asyncio.to_thread(self._write, answer)
            except OSError as error:
                self._failed(error)

    def _write(self, answer: SyncAnswer) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._put_config(answer.fleet, answer.shards)
        if self._complete:
            (self._path / "current").touch()
        if self._pod_uid and not self.was_synced:
            self._put("pod", self._pod_uid.encode())

    def _become(self, fleet: Fleet | None, shards: Sequence[Shard], current_ns: int) -> None:
        """What is stored is this and nothing else: a shard that was taken away must not come back."""
        try:
            if fleet is not None:
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._path.glob("*.json"):
                path.unlink()
            self._put_config(fleet, shards)
            if fleet is not None:
                (self._path / "current").touch()
                os.utime(self._path / "current", ns=(current_ns, current_ns))
        except OSError as error:
            self._failed(error)

    def _put_config(self, fleet: Fleet | None, shards: Sequence[Shard]) -> None:
        if fleet is not None:
            self._put(FLEET_FILE, msgspec.json.encode(fleet))
        for shard in shards:
            self._put(shard_file(shard.index), msgspec.json.encode(shard))

    def _put(self, name: str, data: bytes) -> None:
        draft = self._path / f".{name}"
        draft.write_bytes(data)
        draft.replace(self._path / name)

    def _failed(self, error: OSError) -> None:
        self._complete = False
        _log.warning("the config could not be stored; it is in force all the same: %s", error)

    # Reading ----------------------------------------------------------------------------------------------------------

    def _read_all(self, path: Path) -> tuple[Fleet, list[Shard]] | None:
        fleet = self._read(path / FLEET_FILE, Fleet)
        if fleet is None or fleet.name != self._fleet:
            return None
        shards = [self._read(each, Shard) for each in sorted((*path.glob("shard-*.json"), *path.glob("shard-*.json.gz")))]
        return fleet, [shard for shard in shards if shard is not None]

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(unpack(path.name, path.read_bytes()), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError) as error:
            _log.warning("the stored config %s is not used: %s", path, error)
            return None


def _fleet_of(mount: Path | None) -> Path | None:
    return mount / FLEET_FILE if mount is not None else None


def _time_ns(path: Path | None) -> int:
    """When it was written; 0: it is not there."""
    try:
        return path.stat().st_mtime_ns if path is not None else 0
    except OSError:
        return 0
