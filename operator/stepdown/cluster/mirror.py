"""The children of all fleets as the API server last showed them: metadata only. `children` keeps it by LIST, watch and the
answers to its own writes, which come in any order; the newest version of each object counts.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stepdown.cluster.client import FIELD_MANAGER, Object
from stepdown.cluster.kinds import ROUTING_PROXY, KindRef
from stepdown.cluster.managed import last_other, owned_elsewhere, trace

MOST_REMOVED = 1000


class Key(NamedTuple):
    """One object's place."""

    kind: KindRef
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


class Child(NamedTuple):
    """One object as last seen."""

    uid: str
    version: str
    trace: str
    """Of what we applied: see `managed`."""
    owner: str
    """`namespace/name` of the RoutingProxy that controls it; empty where none does."""
    owner_uid: str
    deleting: bool
    scaled_elsewhere: bool
    changed_by: str
    """Who wrote it last, but for us."""


class Mirror:
    """Children by place."""

    def __init__(self) -> None:
        self._children: dict[Key, Child] = {}
        self._removed: dict[Key, str] = {}
        """At which version an object was deleted: an answer to a write from before that is still on its way is no news."""

    def get(self, key: Key) -> Child | None:
        return self._children.get(key)

    def of(self, owner: str, uid: str) -> list[Key]:
        """Every child that is controlled by that very RoutingProxy."""
        return [key for key, each in self._children.items() if each.owner == owner and each.owner_uid == uid]

    def put(self, key: Key, metadata: Mapping[str, Any]) -> bool:
        """An object as a watch or a write shows it. False: that was known, or is older than what is."""
        child = child_of(metadata)
        known = self._children.get(key)
        newest = known.version if known is not None else self._removed.get(key, "")
        if newest and not newer(child.version, newest):
            return False
        self._removed.pop(key, None)
        self._children[key] = child
        return True

    def remove(self, key: Key, version: str) -> bool:
        """The object is no more since `version`. False: that was known, or there is a newer one."""
        known = self._children.get(key)
        if known is not None and newer(known.version, version):
            return False
        self._removed[key] = version
        if len(self._removed) > MOST_REMOVED:
            del self._removed[next(iter(self._removed))]
        return self._children.pop(key, None) is not None

    def being_deleted(self, key: Key) -> None:
        """Its deletion has been asked for."""
        if key in self._children:
            self._children[key] = self._children[key]._replace(deleting=True)

    def relist(self, kind: KindRef, namespace: str, items: Iterable[Object], version: str) -> set[Key]:
        """A whole LIST of a kind ("": of all namespaces). Returns what is not as it was."""
        changed, present = set(), set()
        for item in items:
            key = key_of(item, kind)
            present.add(key)
            if self.put(key, item["metadata"]):
                changed.add(key)
        for key in [key for key in self._children if key.kind == kind and (not namespace or key.namespace == namespace)]:
            # What was written after the LIST began is not in it, and is there all the same.
            if key not in present and not newer(self._children[key].version, version):
                del self._children[key]
                changed.add(key)
        for key in [key for key, at in self._removed.items() if key.kind == kind and not newer(at, version)]:
            del self._removed[key]
        return changed


def key_of(obj: Mapping[str, Any], kind: KindRef) -> Key:
    return Key(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def newer(one: str, other: str) -> bool:
    """Whether a resourceVersion is later than another. They are numbers; were they not, what came last would count."""
    if one.isdecimal() and other.isdecimal():
        return int(one) > int(other)
    return one != other


def child_of(metadata: Mapping[str, Any]) -> Child:
    """Of an object's metadata."""
    owner, owner_uid = "", ""
    for reference in metadata.get("ownerReferences") or ():
        group = str(reference.get("apiVersion", "")).partition("/")[0]
        if reference.get("controller") and (group, reference.get("kind")) == (ROUTING_PROXY.group, ROUTING_PROXY.kind):
            owner, owner_uid = f"{metadata.get('namespace', '')}/{reference.get('name')}", str(reference.get("uid"))
    return Child(
        uid=str(metadata.get("uid", "")),
        version=str(metadata.get("resourceVersion", "")),
        trace=trace(metadata, FIELD_MANAGER),
        owner=owner,
        owner_uid=owner_uid,
        deleting="deletionTimestamp" in metadata,
        scaled_elsewhere=owned_elsewhere(metadata, FIELD_MANAGER, "spec", "replicas"),
        changed_by=last_other(metadata, FIELD_MANAGER),
    )
