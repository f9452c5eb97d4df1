"""Keeps a fleet's objects as desired: server-side apply, pruning, drift. `watch` calls it with what `render` made.

A child that somebody edits or deletes is noticed by a watch; the owner's next pass puts it back. Fields that we did not set are
left alone. Nothing is sent for a child that is as we left it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepdown.cluster.client import Cluster


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one `sync` did. Objects are named as in `Deployment shop/stepdown-web`."""

    applied: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Why, in the API server's words and with what to do."""
    retry_s: float | None = None
    """Call again after so many seconds even if nothing has changed. None: nothing is left to do."""


class Children:
    """All fleets' objects."""

    def __init__(self, cluster: Cluster, *, namespaces: Sequence[str] = ("*",), on_change: Callable[[str], None]) -> None:
        """`namespaces`: where fleets may be; `*` is everywhere. `on_change` is told the owner (`namespace/name`) of a child
        that is not as we left it: call `sync` soon."""
        raise NotImplementedError

    async def run(self) -> None:
        """Watches every kind of child, until cancelled."""
        raise NotImplementedError

    async def sync(self, owner: str, uid: str, desired: Sequence[Mapping[str, Any]]) -> Outcome:
        """Makes the children of RoutingProxy `owner` what is desired. Raises no ClusterError: `failed` says it."""
        raise NotImplementedError

    def scaled_elsewhere(self, namespace: str, name: str) -> bool:
        """Whether somebody else (an autoscaler) has set the Deployment's `spec.replicas` since we did."""
        raise NotImplementedError

    def forget(self, owner: str) -> None:
        """The RoutingProxy is gone; the garbage collector removes its children."""
        raise NotImplementedError
