"""Keeps a fleet's objects as desired: server-side apply, pruning, drift. `watch` calls it with what `render` made.

A child that somebody edits or deletes is noticed by a watch; the owner's next pass puts it back. Fields that we did not set are
left alone. Nothing is sent for a child that is as we left it. An object of a child's name that is not ours is never touched.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from stepdown.cluster import takeover
from stepdown.cluster.client import Change, Cluster, Listing
from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.errors import ClusterError, Conflict, Rejected, Unavailable
from stepdown.cluster.following import Following
from stepdown.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    SERVICE_ACCOUNT,
    KindRef,
    kind_of,
)
from stepdown.cluster.mirror import Child, Key, Mirror, child_of, key_of
from stepdown.cluster.patience import FREE_PUTS, Drifts, Failure

log = logging.getLogger(__name__)

KINDS = (
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    NETWORK_POLICY,
    SERVICE,
    POD_DISRUPTION_BUDGET,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
)
"""What a fleet is made of, in the order in which it is made: pods come after all that they need."""
LABELS = {"app.kubernetes.io/managed-by": "stepdown", "app.kubernetes.io/name": "stepdown-proxy"}
"""What every child carries, and what is watched."""
PROXY_LABEL = "stepdown.dev/proxy"
DELETING_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one `sync` did. Objects are named as in `Deployment shop/stepdown-web`."""

    applied: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why, in the API server's words and with what to do."""
    retry_s: float | None = None
    """Call again after so many seconds even if nothing has changed. None: nothing is left to do."""


class _Left(NamedTuple):
    """A child as we left it."""

    digest: bytes
    uid: str
    trace: str


class _Owner(NamedTuple):
    uid: str
    wanted: frozenset[Key]


class Children:
    """All fleets' objects."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespaces: Sequence[str] = ("*",),
        on_change: Callable[[str], None],
        clock: Callable[[], float] = elapsed_s,
    ) -> None:
        """`namespaces`: where fleets may be; `*` is everywhere. `on_change` is told the owner (`namespace/name`) of a child
        that is not as we left it, and of a Deployment whose status has changed: call `sync` soon."""
        self._cluster, self._on_change, self._clock = cluster, on_change, clock
        self._everywhere = "*" in namespaces
        self._namespaces = frozenset(("",) if self._everywhere else namespaces)
        self._mirror = Mirror()
        self._followings = {
            (kind, namespace): self._following(kind, namespace) for kind in KINDS for namespace in sorted(self._namespaces)
        }
        self._owners: dict[str, _Owner] = {}
        self._owner_of: dict[Key, str] = {}
        self._left: dict[Key, _Left] = {}
        self._failures: dict[Key, Failure] = {}
        self._drifts: dict[Key, Drifts] = {}
        self._busy: set[Key] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    # Seeing -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watches every kind of child, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self._followings.values():
                group.create_task(each.run())

    @property
    def listed(self) -> bool:
        """Whether every kind has been listed everywhere: only then is everything pruned that should be."""
        return all(each.listed for each in self._followings.values())

    @property
    def troubles(self) -> list[str]:
        """Why some kind is not in sight at this moment."""
        return sorted({each.trouble for each in self._followings.values() if each.trouble})

    def scaled_elsewhere(self, namespace: str, name: str) -> bool:
        """Whether somebody else (an autoscaler) has set the Deployment's `spec.replicas` since we did."""
        seen = self._mirror.get(Key(DEPLOYMENT, namespace, name))
        return seen is not None and seen.scaled_elsewhere

    def _following(self, kind: KindRef, namespace: str) -> Following:
        def listed(listing: Listing) -> None:
            changed = self._mirror.relist(kind, namespace, listing.items, listing.resource_version)
            self._notify(changed)

        def changed(change: Change) -> None:
            key = key_of(change.object, kind)
            if change.type == "DELETED":
                moved = self._mirror.remove(key, change.resource_version)
            else:
                moved = self._mirror.put(key, change.object["metadata"])
            if moved:
                self._notify({key})

        labels = ",".join(f"{label}={value}" for label, value in LABELS.items())
        return Following(self._cluster, kind, namespace, labels=labels, listed=listed, changed=changed)

    def _notify(self, keys: set[Key]) -> None:
        """Tells whose children are not as they should be. While one of them is being written its answer will tell."""
        owners = set()
        for key in keys - self._busy:
            owner = self._owner_of.get(key)
            if owner is None:  # nothing that we want: is it of a fleet that we know, and too much?
                seen = self._mirror.get(key)
                known = self._owners.get(seen.owner) if seen is not None else None
                if seen is not None and known is not None and known.uid == seen.owner_uid and not seen.deleting:
                    owners.add(seen.owner)
            elif key.kind is DEPLOYMENT or not self._as_left(key):  # how many of its pods are ready is news to the owner
                if key in self._failures:  # it has changed: what failed may work now
                    self._failures[key].until_s = 0.0
                owners.add(owner)
        for owner in sorted(owners):
            self._on_change(owner)

    def _as_left(self, key: Key) -> bool:
        seen, left = self._mirror.get(key), self._left.get(key)
        return seen is not None and left is not None and (seen.uid, seen.trace) == (left.uid, left.trace)

    # Doing ------------------------------------------------------------------------------------------------------------

    def forget(self, owner: str) -> None:
        """The RoutingProxy is gone; the garbage collector removes its children."""
        known = self._owners.pop(owner, None)
        for key in known.wanted if known is not None else ():
            self._unwanted(key)
        lock = self._locks.get(owner)
        if lock is not None and not lock.locked():
            del self._locks[owner]

    async def sync(self, owner: str, uid: str, desired: Sequence[Mapping[str, Any]]) -> Outcome:
        """Makes the children of RoutingProxy `owner` what is desired. Raises no ClusterError: `failed` says it.

        Every object has our labels, a controller reference to the owner, and a namespace where fleets may be."""
        async with self._locks.setdefault(owner, asyncio.Lock()):
            wanted = {self._checked(each, owner, uid): each for each in desired}
            before = self._owners.get(owner)
            for key in (before.wanted if before is not None else frozenset()) - wanted.keys():
                self._unwanted(key)
            self._owners[owner] = _Owner(uid, frozenset(wanted))
            self._owner_of.update(dict.fromkeys(wanted, owner))
            round_ = _Round(self._clock())
            for kind in KINDS:
                await asyncio.gather(
                    *(self._keep(key, obj, owner, uid, round_) for key, obj in wanted.items() if key.kind == kind)
                )
            await asyncio.gather(*(self._prune(key, round_) for key in self._surplus(owner, uid, wanted)))
            return round_.outcome()

    def _checked(self, obj: Mapping[str, Any], owner: str, uid: str) -> Key:
        """An object that would be applied but never be seen again by the watch is a mistake of the caller's."""
        key = key_of(obj, kind_of(obj))
        labels = obj["metadata"].get("labels") or {}
        owned = any(each.get("uid") == uid and each.get("controller") for each in obj["metadata"].get("ownerReferences") or ())
        if key.kind not in KINDS or not owned or any(labels.get(label) != value for label, value in LABELS.items()):
            raise ValueError(
                f"{key} is no child of RoutingProxy {owner}: kind {key.kind.kind}, labels {labels}, owned: {owned}"
            )
        if not self._everywhere and key.namespace not in self._namespaces:
            raise ValueError(f"{key}: no fleets in this namespace; there may be in {sorted(self._namespaces)}")
        return key

    def _unwanted(self, key: Key) -> None:
        self._owner_of.pop(key, None)
        self._left.pop(key, None)
        self._failures.pop(key, None)
        self._drifts.pop(key, None)

    async def _keep(self, key: Key, obj: Mapping[str, Any], owner: str, uid: str, round_: "_Round") -> None:
        """One child: left alone, put off, or applied."""
        digest = hashlib.blake2b(msgspec.json.encode(obj, order="sorted"), digest_size=16).digest()
        failure, left, seen = self._failures.get(key), self._left.get(key), self._mirror.get(key)
        if failure is not None and failure.digest == digest and round_.now_s < failure.until_s:
            return round_.fail(key, failure.message, failure.until_s - round_.now_s)
        if seen is not None and seen.deleting:  # it cannot be made what it should be before; the watch will tell
            message = f"{key} is being deleted: it is made anew once it is gone. If it stays, look at its finalizers"
            return round_.fail(key, message, DELETING_S)
        if left is not None and left.digest == digest:
            if self._as_left(key):
                return None
            wait_s = self._drifted(key, seen, round_.now_s)
            if wait_s > 0:
                return round_.later(wait_s)
        if round_.lost:
            return round_.fail(key, round_.lost, round_.lost_s)
        self._busy.add(key)
        try:
            await self._apply(key, obj, digest, owner, uid, seen)
        except ClusterError as error:
            self._failed(key, digest, error, round_)
        else:
            self._failures.pop(key, None)
            round_.applied.append(str(key))
        finally:
            self._busy.discard(key)
        if key not in self._failures and not self._as_left(key):
            self._notify({key})  # it was changed while we wrote
        return None

    async def _apply(self, key: Key, obj: Mapping[str, Any], digest: bytes, owner: str, uid: str, seen: Child | None) -> None:
        if seen is None or seen.owner_uid != uid:
            await takeover.check(self._cluster, key, owner, uid, {**LABELS, PROXY_LABEL: owner.partition("/")[2]})
        answer = await self._cluster.apply(obj, metadata_only=True)
        self._mirror.put(key, answer["metadata"])
        made = child_of(answer["metadata"])
        self._left[key] = _Left(digest, made.uid, made.trace)

    def _failed(self, key: Key, digest: bytes, error: ClusterError, round_: "_Round") -> None:
        failure = self._failures.get(key)
        if failure is None or failure.digest != digest:
            failure = self._failures[key] = Failure(digest)
        message = _explained(key, error)
        round_.fail(key, message, failure.again(message, error, self._clock()))
        if isinstance(error, Unavailable) and error.status in (0, 429):
            # No answer at all, or one that asks for peace: the others need not meet with the same.
            round_.lost, round_.lost_s = message, error.retry_after_s or 1.0

    def _drifted(self, key: Key, seen: Child | None, now_s: float) -> float:
        """A child is not as we left it: how long to wait before it is put back."""
        drifts = self._drifts.setdefault(key, Drifts())
        wait_s = drifts.put_back(now_s)
        if not wait_s:
            who = f"changed by {seen.changed_by or 'somebody'}" if seen is not None else "deleted"
            log.info("%s was %s: it is put back", key, who)
            if drifts.count == FREE_PUTS:
                log.warning("%s was %s again and again: from now on it is put back less often", key, who)
        return wait_s

    # Pruning ----------------------------------------------------------------------------------------------------------

    def _surplus(self, owner: str, uid: str, wanted: Mapping[Key, Any]) -> list[Key]:
        """Children of that very RoutingProxy that are not desired. Each was seen: a LIST that fails shows nothing to prune."""
        return [key for key in self._mirror.of(owner, uid) if key not in wanted]

    async def _prune(self, key: Key, round_: "_Round") -> None:
        seen = self._mirror.get(key)
        if seen is None or seen.deleting:
            return None
        if round_.lost:
            return round_.fail(key, round_.lost, round_.lost_s)
        try:
            # Exactly what we saw, or nothing: somebody may have taken it over since.
            await self._cluster.delete(key.kind, key.namespace, key.name, uid=seen.uid, resource_version=seen.version)
        except Conflict:
            return round_.later(1.0)
        except ClusterError as error:
            return round_.fail(key, str(error), 5.0)
        self._mirror.being_deleted(key)
        round_.deleted.append(str(key))
        return None


class _Round:
    """One `sync` while it runs."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self.applied: list[str] = []
        self.deleted: list[str] = []
        self._failed: dict[str, str] = {}
        self._retry_s: float | None = None
        self.lost = ""
        """Why the API server is out of reach; empty while it answers."""
        self.lost_s = 0.0

    def fail(self, key: Key, message: str, retry_s: float) -> None:
        self._failed[str(key)] = message
        self.later(retry_s)

    def later(self, seconds: float) -> None:
        self._retry_s = seconds if self._retry_s is None else min(self._retry_s, seconds)

    def outcome(self) -> Outcome:
        return Outcome(tuple(self.applied), tuple(self.deleted), self._failed, self._retry_s)


def _explained(key: Key, error: ClusterError) -> str:
    text = str(error)
    if isinstance(error, Rejected) and ("immutable" in text or "may not change" in text):
        command = f"kubectl delete {key.kind.plural} -n {key.namespace} {key.name}"
        return f"{text}. That field cannot change on an object that is there: `{command}`, and it is made anew"
    return text
