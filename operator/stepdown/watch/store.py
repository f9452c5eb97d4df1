"""Every object as it was last seen, and the World made of it. `handlers` and `resync` put in, `engine` takes out.

Objects come by three ways that know nothing of each other: watch events, whole LISTs and single GETs. What decides is the
resourceVersion, which the API server counts up over all objects of a kind: older never overwrites newer, whichever way it
comes, and what a LIST lacks is gone unless it was seen later than the LIST was made. Until every kind has been listed whole
there is no World: unknown is never empty.

An object is parsed once a spec. A change that only touches its status, such as our own, leaves the very same value in the next
World, so that the plan can see by identity that there is nothing to do. One that is being deleted is there until it is gone: a
budget must bind for as long as somebody's finalizer holds it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import msgspec
from pydantic import TypeAdapter, ValidationError

from stepdown.model.base import API_VERSION
from stepdown.model.config import Issuer
from stepdown.model.errors import InvalidObject, parse
from stepdown.model.resources import KINDS
from stepdown.plan.world import AnyObject, FleetSeen, Invalid, Kind, World

NAMESPACE = "Namespace"
WATCHED: tuple[str, ...] = (*KINDS, NAMESPACE)
"""Every kind that a World is made of."""

_STATUS: Mapping[str, TypeAdapter[Any]] = {
    kind: TypeAdapter(cast("Any", model.model_fields["status"].annotation)) for kind, model in KINDS.items()
}


class HistoryWentBack(Exception):
    """The API server says that it is earlier than it was: its storage was restored, and what is known counts for nothing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object at one resourceVersion."""

    kind: str
    key: str
    """`namespace/name`, or `name` of a cluster-scoped object."""
    uid: str
    version: int
    generation: int
    labels: Mapping[str, str]
    thing: AnyObject | Invalid | None
    """None: a Namespace, of which only the labels matter."""
    deleting: bool = False
    status: bytes = b""
    """As JSON: what the object says of itself, which may not be what we wrote."""

    def like(self, other: "Seen") -> bool:
        """Whether a plan could not tell the two apart."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.labels == other.labels
            and self.deleting == other.deleting
        )


def read(raw: Mapping[str, Any], known: Seen | None = None) -> Seen:
    """An object as the API server gave it. With what is known of it, it is parsed only if its spec or labels have changed."""
    metadata = raw["metadata"]
    kind = raw["kind"]
    name, namespace = metadata["name"], metadata.get("namespace") or ""
    seen = Seen(
        kind=kind,
        key=f"{namespace}/{name}" if namespace else name,
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        generation=metadata.get("generation", 0),
        labels=metadata.get("labels") or _NO_LABELS,
        thing=None,
        deleting="deletionTimestamp" in metadata,
        status=msgspec.json.encode(raw["status"]) if kind != NAMESPACE and "status" in raw else b"",
    )
    if kind == NAMESPACE:
        return seen
    if known is not None and known.like(seen):
        return replace(seen, thing=known.thing)
    return replace(seen, thing=_parsed(raw, seen))


def key_of(metadata: Mapping[str, Any]) -> str:
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


_NO_LABELS: Mapping[str, str] = MappingProxyType({})


def _parsed(raw: Mapping[str, Any], seen: Seen) -> AnyObject | Invalid:
    """With only that metadata which counts: annotations may hold the whole object once more."""
    namespace, _, name = seen.key.rpartition("/")
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": dict(seen.labels),
        "uid": seen.uid,
        "generation": seen.generation,
    }
    content = {"apiVersion": raw.get("apiVersion", API_VERSION), "kind": seen.kind, "metadata": metadata}
    if "spec" in raw:
        content["spec"] = raw["spec"]
    try:
        thing = parse(content)
    except InvalidObject as error:
        message = "; ".join(f"{each.field} {each.message}".strip() for each in error.problems)
        kind: Kind = seen.kind  # type: ignore[assignment]  # of ours: the only ones that are watched beside namespaces
        whole = {**content, "status": raw["status"]} if "status" in raw else content
        return Invalid(kind, namespace, name, message, whole, seen.uid, seen.generation, seen.labels)
    if not raw.get("status"):
        return thing
    try:
        status = _STATUS[seen.kind].validate_python(raw["status"])
    except ValidationError:  # written by another version, or by hand: ours comes over it
        return thing
    return thing.model_copy(update={"status": status})


@dataclass(frozen=True, slots=True)
class Difference:
    """What a LIST says that the store does not."""

    newer: tuple[str, ...]
    """Keys to fetch."""
    gone: tuple[str, ...]


@dataclass(slots=True)
class _Objects:
    """Those of one kind."""

    seen: dict[str, Seen] = field(default_factory=dict)
    buried: dict[str, int] = field(default_factory=dict)
    """Keys whose deletion was seen later than the newest LIST was made."""
    listed: int = -1
    """The version of the newest whole LIST: what was older than it and is not here is gone."""
    newest: int = -1
    valid: tuple[Any, ...] | None = None
    invalid: tuple[Invalid, ...] = ()


class Store:
    """All of it. One thread calls."""

    def __init__(self, kinds: Iterable[str] = WATCHED) -> None:
        self._kinds = {kind: _Objects() for kind in kinds}
        self._labels: Mapping[str, Mapping[str, str]] | None = None

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed whole."""
        return all(objects.listed >= 0 for objects in self._kinds.values())

    def missing(self) -> tuple[str, ...]:
        """Kinds that have not been listed yet."""
        return tuple(kind for kind, objects in self._kinds.items() if objects.listed < 0)

    def get(self, kind: str, key: str) -> Seen | None:
        return self._kinds[kind].seen.get(key)

    def newest(self, kind: str) -> int:
        """The largest version that was seen of the kind."""
        return self._kinds[kind].newest

    def count(self, kind: str) -> int:
        return len(self._kinds[kind].seen)

    # In ----------------------------------------------------------------------------------------------------------------

    def put(self, seen: Seen, alive: int | None = None) -> bool:
        """An object as it was at its version, and known to be there at `alive` (else then). True: a plan may differ."""
        objects = self._kinds[seen.kind]
        objects.newest = max(objects.newest, seen.version)
        known = objects.seen.get(seen.key)
        if known is None:
            alive = max(alive or 0, seen.version)
            if alive < objects.listed or alive <= objects.buried.get(seen.key, -1):
                return False  # it had gone before something that is known already
        elif seen.version <= known.version:
            return False
        same = known is not None and known.like(seen)
        objects.seen[seen.key] = replace(seen, thing=known.thing) if same and known is not None else seen
        if not same:
            self._changed(objects)
        return not same

    def remove(self, kind: str, key: str, version: int) -> bool:
        """The object was deleted at that version."""
        objects = self._kinds[kind]
        objects.newest = max(objects.newest, version)
        known = objects.seen.get(key)
        if known is not None and known.version > version:
            return False  # another of its name has come since
        if version > objects.listed:
            objects.buried[key] = max(version, objects.buried.get(key, -1))
        if known is None:
            return False
        del objects.seen[key]
        self._changed(objects)
        return True

    def replace(self, kind: str, everything: Iterable[Seen], version: int, since: int) -> bool:
        """A whole LIST, made at `version`; `since`: `newest` before it was asked for. Raises HistoryWentBack."""
        seen = list(everything)
        difference = self.compare(kind, ((each.key, each.uid, each.version) for each in seen), version, since)
        changed = [self.put(each, version) for each in seen]
        changed += [self.remove(kind, key, version) for key in difference.gone]
        self.settle(kind, version)
        return any(changed)

    def compare(self, kind: str, entries: Iterable[tuple[str, str, int]], version: int, since: int) -> Difference:
        """What a LIST of (key, uid, version) says that is not known. Raises HistoryWentBack."""
        if version < since:
            raise HistoryWentBack(f"a list of {kind}s was made at version {version}, after version {since} had been seen")
        objects = self._kinds[kind]
        newer, listed = [], set()
        for key, uid, at in entries:
            listed.add(key)
            known = objects.seen.get(key)
            if known is None:
                if version > objects.buried.get(key, -1):
                    newer.append(key)
            elif at > known.version or (known.uid != uid and known.version <= version):
                newer.append(key)
        gone = tuple(key for key, known in objects.seen.items() if key not in listed and known.version <= version)
        return Difference(tuple(newer), gone)

    def settle(self, kind: str, version: int) -> None:
        """All that a LIST said has been taken over."""
        objects = self._kinds[kind]
        objects.listed = max(objects.listed, version)
        objects.newest = max(objects.newest, version)
        objects.buried = {key: at for key, at in objects.buried.items() if at > objects.listed}

    # Out ---------------------------------------------------------------------------------------------------------------

    def world(
        self,
        *,
        operator_namespace: str,
        allowed_upstreams: tuple[str, ...],
        fleet_namespaces: tuple[str, ...],
        secrets: Mapping[str, bool | None],
        fleets: Mapping[str, FleetSeen],
        issuer: Issuer | None = None,
    ) -> World | None:
        """None until every kind has been listed."""
        if not self.complete:
            return None
        things = {kind: self._things(kind) for kind in KINDS}
        return World(
            routes=things["ModelRoute"],
            budgets=things["SpendBudget"],
            proxies=things["RoutingProxy"],
            catalogs=things["ModelCatalog"],
            invalid=tuple(each for kind in KINDS for each in self._kinds[kind].invalid),
            namespace_labels=self._namespace_labels(),
            secrets=secrets,
            operator_namespace=operator_namespace,
            allowed_upstreams=allowed_upstreams,
            fleet_namespaces=fleet_namespaces,
            fleets=fleets,
            issuer=issuer,
        )

    def _things(self, kind: str) -> tuple[Any, ...]:
        """In the order of their names, so that the same objects make the same config whatever came first."""
        objects = self._kinds[kind]
        if objects.valid is None:
            things = [seen.thing for _, seen in sorted(objects.seen.items())]
            objects.valid = tuple(thing for thing in things if not isinstance(thing, Invalid))
            objects.invalid = tuple(thing for thing in things if isinstance(thing, Invalid))
        return objects.valid

    def _namespace_labels(self) -> Mapping[str, Mapping[str, str]]:
        if self._labels is None:
            self._labels = {key: seen.labels for key, seen in self._kinds[NAMESPACE].seen.items()}
        return self._labels

    def _changed(self, objects: _Objects) -> None:
        objects.valid = None
        if objects is self._kinds[NAMESPACE]:
            self._labels = None
