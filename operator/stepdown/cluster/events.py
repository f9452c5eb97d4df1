"""Records Kubernetes Events without ever holding up or failing its caller. `watch` calls it; a task of its own writes."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import KindRef

EventType = Literal["Normal", "Warning"]


class ObjectRef(NamedTuple):
    """Whom an Event is about."""

    kind: KindRef
    namespace: str
    """Empty for a cluster-scoped object; its Events are in `default`."""
    name: str
    uid: str


class Recorder:
    """`record` from anywhere on the event loop; `run` writes."""

    def __init__(self, cluster: Cluster, instance: str, clock: Callable[[], float]) -> None:
        """`instance`: this process (the pod's name). `clock`: Unix seconds."""
        raise NotImplementedError

    def record(self, ref: ObjectRef, type: EventType, reason: str, message: str) -> None:
        """Never raises, never waits: what cannot be written is dropped with a log line."""
        raise NotImplementedError

    async def run(self) -> None:
        """Writes, until cancelled."""
        raise NotImplementedError

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Waits until all that was recorded is written or dropped."""
        raise NotImplementedError
