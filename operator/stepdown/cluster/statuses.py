"""Writes status documents by server-side apply, only where they say something else than what is there. `watch` calls it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import KindRef


class Seen(NamedTuple):
    """An object's status as it was last seen."""

    resource_version: str
    status: Mapping[str, Any] | None


class StatusWriter:
    """Remembers what it wrote, so that a watch that lags behind does not make it write twice."""

    def __init__(self, cluster: Cluster) -> None:
        raise NotImplementedError

    async def write(self, kind: KindRef, key: str, uid: str, document: Mapping[str, Any], seen: Seen | None = None) -> bool:
        """Whether it was written: False where it says this already, or where that object (by UID) is no more. `key`:
        `namespace/name`, or the name of a cluster-scoped object. Raises ClusterError."""
        raise NotImplementedError

    def forget(self, uid: str) -> None:
        """The object is gone."""
        raise NotImplementedError
