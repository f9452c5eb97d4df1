"""Records Kubernetes Events without ever holding up or failing its caller. `watch` calls it; a task of its own writes.

Events are for people: one that cannot be written is worth a log line and no more.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from stepdown.cluster.backoff import Backoff, retrying
from stepdown.cluster.client import FIELD_MANAGER, Cluster
from stepdown.cluster.correlate import Correlator, Decision, Occurrence
from stepdown.cluster.errors import AlreadyExists, ClusterError, NotFound
from stepdown.cluster.kinds import EVENT, KindRef, named

log = logging.getLogger(__name__)

MOST_WAITING = 1000
MOST_MESSAGE_BYTES = 1024
"""What the API server takes."""
ATTEMPTS = 4

EventType = Literal["Normal", "Warning"]


class ObjectRef(NamedTuple):
    """Whom an Event is about."""

    kind: KindRef
    namespace: str
    """Empty for a cluster-scoped object; its Events are in `default`."""
    name: str
    uid: str

    def __str__(self) -> str:
        return named(self.kind, self.namespace, self.name)


class _Record(NamedTuple):
    ref: ObjectRef
    what: Occurrence
    at_s: float


class Recorder:
    """`record` from anywhere on the event loop; `run` writes."""

    def __init__(self, cluster: Cluster, instance: str, clock: Callable[[], float]) -> None:
        """`instance`: this process (the pod's name). `clock`: Unix seconds."""
        self._cluster, self._instance, self._clock = cluster, instance, clock
        self._correlator = Correlator()
        self._waiting: asyncio.Queue[_Record] = asyncio.Queue(MOST_WAITING)
        self._dropped = 0

    def record(self, ref: ObjectRef, type: EventType, reason: str, message: str) -> None:
        """Never raises, never waits: what cannot be written is dropped with a log line."""
        what = Occurrence(f"{ref} {ref.uid}", type, reason, _fitting(message))
        try:
            self._waiting.put_nowait(_Record(ref, what, self._clock()))
        except asyncio.QueueFull:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # at 1, 2, 4, 8, …: an outage is not a flood of lines too
                log.warning("%d Events were dropped: %d wait for the API server already", self._dropped, MOST_WAITING)

    async def run(self) -> None:
        """Writes, until cancelled."""
        while True:
            record = await self._waiting.get()
            try:
                await self._write(record)
            except ClusterError as error:
                log.warning("an Event was dropped (%s: %s): %s", record.what.reason, record.what.message, error)
            finally:
                self._waiting.task_done()

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Waits until all that was recorded is written or dropped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._waiting.join()

    async def _write(self, record: _Record) -> None:
        decision = self._correlator.decide(record.what, record.at_s)
        if decision is None:
            log.debug("%s: too many Events: %s: %s", record.ref, record.what.reason, record.what.message)
            return
        namespace = record.ref.namespace if record.ref.kind.namespaced else "default"
        if decision.name:
            patch = {"count": decision.times, "lastTimestamp": _rfc3339(record.at_s), "message": decision.message}
            try:
                await self._patched(namespace, decision.name, patch)
                self._correlator.written(decision, decision.name)
                return
            except NotFound:
                self._correlator.lost(decision)
                decision = decision._replace(times=1, first_s=record.at_s)
        event = self._event(record, decision, namespace)
        with contextlib.suppress(AlreadyExists):  # of an attempt that seemed to fail: the name is ours alone
            await self._retried(lambda: self._cluster.create(event))
        self._correlator.written(decision, event["metadata"]["name"])

    async def _patched(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None:
        await self._retried(lambda: self._cluster.merge_patch(EVENT, namespace, name, patch))

    async def _retried(self, call: Callable[[], Any]) -> None:
        await retrying(call, attempts=ATTEMPTS, backoff=Backoff(0.5, 10.0))

    def _event(self, record: _Record, decision: Decision, namespace: str) -> Mapping[str, Any]:
        ref = record.ref
        involved = {"apiVersion": ref.kind.api_version, "kind": ref.kind.kind, "name": ref.name, "uid": ref.uid}
        if ref.kind.namespaced:
            involved["namespace"] = ref.namespace
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            # Random, not the time: two replicas may say the same at the same moment.
            "metadata": {"name": f"{ref.name[:200].rstrip('.-')}.{secrets.token_hex(8)}", "namespace": namespace},
            "involvedObject": involved,
            "type": record.what.type,
            "reason": record.what.reason,
            "message": decision.message,
            "count": decision.times,
            "firstTimestamp": _rfc3339(decision.first_s),
            "lastTimestamp": _rfc3339(record.at_s),
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._instance,
        }


def _fitting(message: str) -> str:
    """At most what the API server takes, with room for the words that combine several."""
    encoded = message.encode()
    most = MOST_MESSAGE_BYTES - 64
    return message if len(encoded) <= most else encoded[: most - 3].decode("utf-8", "ignore") + "…"


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
