"""Who leads, by a Lease as client-go does it. `watch` runs it; `sync` asks where the leader is.

Times of other machines are never compared: a candidate waits until it has itself seen no change of the record for as long as
the record says. A leader stops by its own clock, five seconds before that, however its requests fare.

A Lease does not fence: a process that was stopped may still believe. So `leading` asks the clock each time, and the ledger
has an epoch.
"""

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from stepdown.cluster.client import Cluster, Object
from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.errors import AlreadyExists, ClusterError, Conflict, NotFound
from stepdown.cluster.kinds import LEASE, named

log = logging.getLogger(__name__)

ADDRESS = "stepdown.dev/address"
"""The annotation that says where the holder's sync listens: written with the holder's name, in one request."""
JITTER = 0.2
RELEASE_S = 3.0


class Leader(NamedTuple):
    identity: str
    address: str
    """Where its sync listens, as a URL; empty where it did not say."""


class Elector:
    """One candidate."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        address: str = "",
        wall: Callable[[], float],
        clock: Callable[[], float] = elapsed_s,
        lease_s: float = 15.0,
        renew_s: float = 10.0,
        retry_s: float = 2.0,
    ) -> None:
        """`identity` must be of this process alone (`unique_identity`). `wall`: Unix seconds, for people who read the Lease.
        `clock`: seconds that only grow, suspension included."""
        if not lease_s > renew_s > retry_s * (1 + JITTER):
            raise ValueError(
                f"a lease of {lease_s} s, renewed within {renew_s} s, tried every {retry_s} s: each must be shorter"
            )
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self._me = Leader(identity, address)
        self._wall, self._clock = wall, clock
        self._lease_s, self._renew_s, self._retry_s = lease_s, renew_s, retry_s
        self._until_s = -math.inf
        """We lead until then."""
        self._lease: Object | None = None
        """As last seen."""
        self._seen_s = -math.inf
        """When its record was first seen as it is."""
        self._said = ""

    @property
    def leading(self) -> bool:
        return self._clock() < self._until_s

    @property
    def leader(self) -> Leader | None:
        """As far as this candidate knows."""
        if self.leading:
            return self._me
        holder = _spec(self._lease).get("holderIdentity")
        if not holder or holder == self._me.identity or self._expired():
            return None
        annotations = (self._lease or {})["metadata"].get("annotations") or {}
        return Leader(holder, annotations.get(ADDRESS, ""))

    async def run(self, on_started: Callable[[], None], on_stopped: Callable[[], None]) -> None:
        """Until cancelled: campaigns, leads, and campaigns again when it has lost. Cancelled, it stops, then releases."""
        while True:
            await self._campaign()
            log.info("%s is held by %s", self, self._me.identity)
            try:
                on_started()
                await self._hold()
                log.warning("%s is lost", self)
            except asyncio.CancelledError:
                self._until_s = -math.inf
                on_stopped()
                await self._release()
                raise
            self._until_s = -math.inf
            on_stopped()

    def __str__(self) -> str:
        return named(LEASE, self._namespace, self._name)

    async def _campaign(self) -> None:
        while True:
            try:
                await self.attempt()
            except ClusterError as error:
                self._say(str(error))
            if self.leading:
                return
            await asyncio.sleep(self._retry_s * (1 + JITTER * random.random()))

    async def _hold(self) -> None:
        """Until it is lost: to the clock, or to somebody else."""
        while True:
            left_s = self._until_s - self._clock()
            await asyncio.sleep(max(0.0, min(self._retry_s, left_s)))
            left_s = self._until_s - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    if not await self.attempt():
                        return
            except TimeoutError:
                return
            except ClusterError as error:
                self._say(str(error))

    async def attempt(self) -> bool:
        """Takes or renews the lease, once; `run` does it every two seconds. False: it is another's. Raises ClusterError."""
        timeout_s = self._renew_s / 2  # a connection that is dead must leave time for a new one
        if self.leading and self._lease is not None:
            try:
                return await self._put(self._lease, timeout_s)
            except (Conflict, NotFound):
                pass  # it is not as we left it: look
        lease = await self._cluster.get(LEASE, self._namespace, self._name, timeout_s=timeout_s)
        if lease is None:
            return await self._create(timeout_s)
        self._observe(lease)
        holder = _spec(lease).get("holderIdentity")
        if holder and holder != self._me.identity and not self._expired():
            return False
        try:
            return await self._put(lease, timeout_s)
        except Conflict:
            return False  # somebody was faster; the next attempt sees who

    async def _put(self, lease: Object, timeout_s: float) -> bool:
        sent_s = self._clock()
        self._observe(await self._cluster.replace(self._taken(lease), timeout_s=timeout_s))
        return self._won(sent_s)

    async def _create(self, timeout_s: float) -> bool:
        sent_s = self._clock()
        metadata = {"name": self._name, "namespace": self._namespace}
        lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": {}}
        try:
            self._observe(await self._cluster.create(self._taken(lease), timeout_s=timeout_s))
        except AlreadyExists:
            return False
        return self._won(sent_s)

    def _won(self, sent_s: float) -> bool:
        """From when it was sent, not from when it was answered: others may count from the moment between."""
        self._until_s = sent_s + self._renew_s
        self._said = ""
        return True

    def _taken(self, lease: Object) -> Object:
        """The Lease with us as its holder."""
        before = _spec(lease)
        now = _micro(self._wall())
        same = before.get("holderIdentity") == self._me.identity
        spec = {
            **before,
            "holderIdentity": self._me.identity,
            "leaseDurationSeconds": math.ceil(self._lease_s),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if same else now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same else 1),
        }
        annotations = {**(lease["metadata"].get("annotations") or {}), ADDRESS: self._me.address}
        return {**lease, "metadata": {**lease["metadata"], "annotations": annotations}, "spec": spec}

    def _observe(self, lease: Object) -> None:
        if self._lease is None or _spec(self._lease) != _spec(lease):
            self._seen_s = self._clock()
        self._lease = lease

    def _expired(self) -> bool:
        said = _spec(self._lease).get("leaseDurationSeconds")
        lease_s = said if isinstance(said, int) and said > 0 else self._lease_s
        return self._clock() >= self._seen_s + lease_s

    async def _release(self) -> None:
        """So that the next one need not wait. What guards the leader's work has ended before this is called."""
        lease = self._lease
        try:
            async with asyncio.timeout(RELEASE_S):
                while lease is not None and _spec(lease).get("holderIdentity") == self._me.identity:
                    try:
                        await self._cluster.replace(self._free(lease), timeout_s=RELEASE_S)
                    except Conflict:  # a renewal that was cut short has arrived all the same
                        lease = await self._cluster.get(LEASE, self._namespace, self._name, timeout_s=RELEASE_S)
                    else:
                        log.info("%s is released", self)
                        return
        except (ClusterError, TimeoutError) as error:
            log.warning("%s could not be released, so that the next leader waits for its end: %s", self, error)

    def _free(self, lease: Object) -> Object:
        now = _micro(self._wall())
        spec = {**_spec(lease), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        return {**lease, "spec": spec}

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            log.warning("%s; it is tried again", trouble)
        self._said = trouble


def unique_identity(pod: str) -> str:
    """A pod's name is not enough: a StatefulSet's pod that was forced away may still run beside its successor."""
    return f"{pod}_{secrets.token_hex(4)}"


def _spec(lease: Object | None) -> dict[str, Any]:
    spec = lease.get("spec") if lease is not None else None
    return spec if isinstance(spec, dict) else {}


def _micro(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
