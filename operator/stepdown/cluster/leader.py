"""Who leads, by a Lease as client-go does it. `watch` runs it; `sync` asks where the leader is.

A Lease does not fence: a process that was stopped may still believe. So `leading` asks the clock each time, and the ledger
has an epoch.
"""

from collections.abc import Callable
from typing import NamedTuple

from stepdown.cluster.client import Cluster


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
        clock: Callable[[], float] | None = None,
        lease_s: float = 15.0,
        renew_s: float = 10.0,
        retry_s: float = 2.0,
    ) -> None:
        """`identity` must be of this process alone (`unique_identity`). `wall`: Unix seconds, for people who read the Lease.
        `clock`: seconds that only grow, suspension included."""
        raise NotImplementedError

    async def run(self, on_started: Callable[[], None], on_stopped: Callable[[], None]) -> None:
        """Until cancelled: campaigns, leads, and campaigns again when it has lost. Cancelled, it stops, then releases."""
        raise NotImplementedError

    @property
    def leading(self) -> bool:
        raise NotImplementedError

    @property
    def leader(self) -> Leader | None:
        """As far as this candidate knows."""
        raise NotImplementedError


def unique_identity(pod: str) -> str:
    """A pod's name is not enough: a StatefulSet's pod that was forced away may still run beside its successor."""
    raise NotImplementedError
