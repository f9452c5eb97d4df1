"""Lists every kind: whole before anything is judged, then once a minute without the contents. `run` starts it.

A watch may lose a deletion while it reconnects, or go silent; a LIST does not. The minute's LIST asks for metadata only and
compares UIDs and resourceVersions: nothing has changed, as a rule, and what has is fetched. What a watcher should have told by
then is noted for the watchdog. Here is also said, once, that the API server does not answer or what it refuses.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from stepdown.cluster import kinds
from stepdown.cluster.client import Cluster, Listing
from stepdown.cluster.errors import ClusterError, Forbidden, NotServed
from stepdown.cluster.kinds import KindRef
from stepdown.sync import log
from stepdown.watch.store import Seen, Store, key_of, read
from stepdown.watch.watchdog import Deliveries

RESYNC_S = 60.0
RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0)

KINDS: dict[str, KindRef] = {kind.kind: kind for kind in (*kinds.OURS, kinds.NAMESPACE)}
"""By name: every kind that a World is made of."""


class Resync:
    """`list_everything` once, then `run` for as long as this process leads."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        deliveries: Deliveries,
        changed: Callable[[], None],
        seen: Callable[[Seen], None],
        *,
        interval_s: float = RESYNC_S,
    ) -> None:
        """`changed`: a plan may come out differently. `seen` is told of every object that was read."""
        self._interval_s = interval_s
        self._cluster, self._store, self._deliveries = cluster, store, deliveries
        self._changed, self._seen = changed, seen
        self._wrong: dict[str, str] = {}

    async def list_everything(self) -> None:
        """Until every kind has been listed, however long that takes."""
        await asyncio.gather(*(self._until_listed(name) for name in self._store.missing()))

    async def run(self) -> None:
        """Until cancelled. Raises HistoryWentBack."""
        while True:
            await asyncio.sleep(self._interval_s * (0.9 + 0.2 * random.random()))
            for name in KINDS:
                await self._attempt(name, self._compare)

    async def _until_listed(self, name: str) -> None:
        attempt = 0
        while not await self._attempt(name, self._take):
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)] * (0.75 + 0.5 * random.random()))
            attempt += 1

    async def _attempt(self, name: str, do: Callable[[str], Awaitable[None]]) -> bool:
        try:
            await do(name)
        except ClusterError as error:
            self._failed(name, error)
            return False
        if self._wrong.pop(name, None) is not None:
            log.info(f"{name}s can be listed again", event="resync", kind=name)
        return True

    async def _take(self, name: str) -> None:
        """A whole LIST, contents included."""
        since = self._store.newest(name)
        listing = await self._cluster.list(KINDS[name], owned=False)
        everything = await asyncio.to_thread(self._read, name, listing)
        changed = self._store.replace(name, everything, int(listing.resource_version), since)
        for seen in everything:
            self._seen(seen)
        if changed:
            self._changed()

    def _read(self, name: str, listing: Listing) -> list[Seen]:
        """In a thread: ten thousand objects take seconds."""
        return [read({**raw, "kind": name}, self._store.get(name, key_of(raw["metadata"]))) for raw in listing.items]

    async def _compare(self, name: str) -> None:
        since = self._store.newest(name)
        listing = await self._cluster.list(KINDS[name], metadata_only=True, owned=False)
        version = int(listing.resource_version)
        entries = [
            (key_of(each["metadata"]), each["metadata"]["uid"], int(each["metadata"]["resourceVersion"]))
            for each in listing.items
        ]
        difference = self._store.compare(name, entries, version, since)
        self._deliveries.listed(name, {key for key, _, _ in entries})
        at = {key: each for key, _, each in entries}
        changed = [self._store.remove(name, key, version) for key in difference.gone]
        for key in difference.newer:
            self._deliveries.expect(name, key, at[key], time.monotonic())
            changed.append(await self._fetch(name, key, version))
        self._store.settle(name, version)
        if any(changed):
            self._changed()

    async def _fetch(self, name: str, key: str, alive: int) -> bool:
        namespace, _, short = key.rpartition("/")
        raw = await self._cluster.get(KINDS[name], namespace, short)
        if raw is None:
            return False
        seen = read({**raw, "kind": name}, self._store.get(name, key))
        changed = self._store.put(seen, alive)
        self._seen(seen)
        return changed

    def _failed(self, name: str, error: ClusterError) -> None:
        """A line at the first failure, and at every other kind of failure after it."""
        what = type(error).__name__
        if self._wrong.get(name) == what:
            return
        self._wrong[name] = what
        if isinstance(error, NotServed):
            hint = f"there is no {name} in the API server yet: install the CRDs of stepdown"
        elif isinstance(error, Forbidden):
            hint = f"{name}s may not be listed: give the operator's ServiceAccount list and watch on {KINDS[name].plural}"
        else:
            hint = f"{name}s cannot be listed"
        log.error(f"{hint}; it is tried again until it works ({error})", event="resync", kind=name)
