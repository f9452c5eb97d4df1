"""Writes status documents by server-side apply, only where they say something else than what is there. `watch` calls it.

Server-side apply takes away what an earlier document said and this one does not, and leaves what others wrote into the status.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import KindRef
from stepdown.cluster.mirror import newer


class Seen(NamedTuple):
    """An object's status as it was last seen."""

    resource_version: str
    status: Mapping[str, Any] | None
    uid: str = ""
    """Of that object; empty: not known, and then a first write has to ask."""


class _Written(NamedTuple):
    resource_version: str
    document: bytes


class StatusWriter:
    """Remembers what it wrote, so that a watch that lags behind does not make it write twice."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: dict[str, _Written] = {}

    async def write(self, kind: KindRef, key: str, uid: str, document: Mapping[str, Any], seen: Seen | None = None) -> bool:
        """Whether it was written: False where it says this already, or where that object (by UID) is no more. `key`:
        `namespace/name`, or the name of a cluster-scoped object. Raises ClusterError."""
        encoded = msgspec.json.encode(document, order="sorted")
        written = self._written.get(uid)
        if seen is not None and (written is None or newer(seen.resource_version, written.resource_version)):
            # What is there now counts, whoever wrote it.
            if seen.status is not None and msgspec.json.encode(seen.status, order="sorted") == encoded:
                self._written[uid] = _Written(seen.resource_version, encoded)
                return False
        elif written is not None and written.document == encoded:
            return False
        namespace, _, name = key.rpartition("/")
        version = written.resource_version if written is not None else ""
        if seen is not None and seen.uid == uid and newer(seen.resource_version, version):
            version = seen.resource_version
        answer = await self._cluster.apply_status(kind, namespace, name, uid, document, resource_version=version)
        if answer is None:
            self._written.pop(uid, None)
            return False
        self._written[uid] = _Written(answer["metadata"]["resourceVersion"], encoded)
        return True

    def forget(self, uid: str) -> None:
        """The object is gone."""
        self._written.pop(uid, None)
