"""Writes statuses and Events, behind the passes and at the pace of `status.pace`. `lead` starts it.

The documents of the last pass are what there is to write, however many passes there were meanwhile. A write that fails is tried
again with the latest; one that somebody else has written over comes back. Events are told of each pass, once: what they say is
what its documents say that those before did not. Some wait a moment first (`status.patience`).
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from stepdown.cluster import statuses
from stepdown.cluster.errors import ClusterError, Unavailable
from stepdown.cluster.events import ObjectRef, Recorder
from stepdown.cluster.kinds import OURS, KindRef
from stepdown.cluster.statuses import StatusWriter
from stepdown.plan.world import ObjectKey
from stepdown.reconcile import Pass
from stepdown.status.events import Event
from stepdown.status.pace import Pace, Write
from stepdown.status.patience import HOLD_S, Patience
from stepdown.sync import log
from stepdown.watch.store import Seen, Store

AT_ONCE = 8
"""Writes under way, at most: what is urgent waits for one of them to end, and not for a hundred."""
PAUSE_S = 0.5
"""How often it is asked whether writing is allowed again."""
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)

_KINDS: Mapping[str, KindRef] = {kind.kind: kind for kind in OURS}


class Shown:
    """`tell` after each pass; `run` writes until cancelled."""

    def __init__(
        self, writer: StatusWriter, recorder: Recorder, store: Store, *, may_write: Callable[[], bool], pace: Pace | None = None
    ) -> None:
        self._writer, self._recorder, self._store, self._may_write = writer, recorder, store, may_write
        self._pace, self._patience = pace or Pace(), Patience()
        self._made: Pass | None = None
        self._written: dict[ObjectKey, Mapping[str, Any]] = {}
        self._woken = asyncio.Event()
        self._under_way = 0
        self._writing: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._wrong = ""
        self.wrote: Callable[[bool], None] = lambda well: None
        """Told of each write that was sent."""
        self.broken: Callable[[BaseException], None] = lambda error: None
        """Told of a mistake in here, which must end the process."""

    def tell(self, made: Pass) -> None:
        self._made = made
        self._woken.set()
        self._record(self._patience.told(made.events, time.monotonic()))

    def seen(self, seen: Seen) -> None:
        """An object as the API server has it: what its status says may be somebody else's."""
        name: ObjectKey = (seen.kind, seen.key)
        written = self._written.get(name)
        if written is None or self._made is None or _canonical(_decoded(seen.status)) == _canonical(written):
            return
        del self._written[name]
        self._pace.changed_by_others(name, self._made.plan, time.monotonic())
        self._woken.set()

    def gone(self, kind: str, key: str, uid: str) -> None:
        self._written.pop((kind, key), None)
        self._writer.forget(uid)

    async def run(self) -> None:
        try:
            while True:
                await self._once()
        finally:
            for task in self._writing:
                task.cancel()
            await asyncio.gather(*self._writing, return_exceptions=True)

    async def _once(self) -> None:
        wait_s: float | None = None
        self._woken.clear()
        now_s = time.monotonic()
        if self._made is not None:
            self._record(self._patience.due(self._made.made.documents, now_s))
        if not self._may_write():
            wait_s = PAUSE_S
        elif self._made is not None:
            due = self._pace.look(self._made.made, self._made.plan, now_s, AT_ONCE - self._under_way)
            for write in due.writes:
                self._under_way += 1
                task = asyncio.create_task(self._write(write))
                self._writing.add(task)
                task.add_done_callback(self._ended)
            if due.again_s is not None and self._under_way < AT_ONCE:
                wait_s = max(0.01, due.again_s - now_s)
        ripe_s = self._patience.next_s()
        if ripe_s is not None:
            wait_s = min(wait_s or HOLD_S, max(0.01, ripe_s - now_s))
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broken(error)

    async def _write(self, write: Write) -> None:
        """One of those under way."""
        kind, key = write.name
        seen = self._store.get(kind, key)
        there = statuses.Seen(str(seen.version), _decoded(seen.status), seen.uid) if seen is not None else None
        # A plan knows catalogs by name: one that vanished and came back is the same to it.
        uid = write.uid if kind != "ModelCatalog" else seen.uid if seen is not None else ""
        try:
            sent = bool(uid) and await self._writer.write(_KINDS[kind], key, uid, write.document, there)
        except ClusterError as error:
            self._failed(write, error)
            return
        finally:
            self._under_way -= 1
            self._woken.set()
        self._failures = 0
        if self._wrong:
            self._wrong = ""
            log.info("statuses can be written again", event="status")
        if sent:
            self.wrote(True)
        assert self._made is not None
        self._written[write.name] = write.document
        self._pace.wrote(write, self._made.plan, time.monotonic())

    def _failed(self, write: Write, error: ClusterError) -> None:
        """Says it once; the pace brings the latest document again."""
        assert self._made is not None
        self.wrote(False)
        retry_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            retry_s = max(retry_s, error.retry_after_s)
        if self._wrong != type(error).__name__:
            self._wrong = type(error).__name__
            kind, key = write.name
            log.error(f"{kind} {key}: its status cannot be written, and is tried again until it can: {error}", event="status")
        self._pace.failed(write, self._made.plan, time.monotonic(), retry_s)

    def _record(self, events: Iterable[Event]) -> None:
        for event in events:
            uid = self._uid((event.kind, event.key))
            if uid:
                namespace, _, name = event.key.rpartition("/")
                reference = ObjectRef(_KINDS[event.kind], namespace, name, uid)
                self._recorder.record(reference, event.type, event.reason, event.message)

    def _uid(self, name: ObjectKey) -> str:
        seen = self._store.get(*name)
        return seen.uid if seen is not None else ""


def _decoded(status: bytes) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = msgspec.json.decode(status) if status else None
    return found


def _canonical(document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Without the order of conditions, which is the API server's."""
    if document is None or "conditions" not in document:
        return document
    return {**document, "conditions": sorted(document["conditions"], key=lambda each: str(each.get("type")))}
