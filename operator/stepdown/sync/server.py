"""Sync over HTTPS, for the proxies of a cluster. `watch` starts it; see `sync.message` for what a message is answered."""

from collections.abc import Callable

from stepdown.sync.auth import Authenticator
from stepdown.sync.service import SyncService
from stepdown.sync.tls import Tls


class SyncHttps:
    """The listening socket."""

    def __init__(
        self,
        service: SyncService,
        authenticator: Authenticator,
        tls: Tls,
        *,
        leader: Callable[[], str | None],
        ready: Callable[[], bool],
        now_s: Callable[[], float],
    ) -> None:
        """`leader`: None where this process leads, else the leader's URL ("": nobody knows it). `ready`: whether every kind
        has been listed. `now_s`: Unix seconds, for certificates."""

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the address cannot be listened on."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        raise NotImplementedError

    async def stop(self, timeout_s: float = 5.0) -> None:
        """No new connections; messages that are being answered are answered."""
        raise NotImplementedError
