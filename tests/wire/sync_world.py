"""An operator's sync as its proxies meet it: real sockets, real TLS, a real ledger; the API server is one in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger
from stepdown.model.config import Channel, Fleet, Ladder, Route, Shard, shard_of
from stepdown.model.sync import SyncRequest
from stepdown.proxy.clock import Clock
from stepdown.proxy.syncclient import SyncClient
from stepdown.proxy.syncline import HttpsLine
from stepdown.sync.auth import Api, Authenticator
from stepdown.sync.cakept import OnVolume
from stepdown.sync.fleets import LiveFleet
from stepdown.sync.server import PATIENCE_S, SyncHttps
from stepdown.sync.service import SyncService
from stepdown.sync.tls import Authority
from tests.unit.sync_api import FLEET, TOKEN, FakeApi

NAMES = ("localhost",)
"""What the Service is called here. Its address is not in the certificate: who follows a leader must not ask for it."""

CONFIG = Fleet(name=FLEET, namespace="shop", base_url="https://x", channels=(Channel(name="standard"),))
CHAT = Shard(
    index=shard_of("shop/chat"), routes={"shop/chat": Route(name="shop/chat", ladders={"default": Ladder(rungs=("m",))})}
)
ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**10, 1000, True, frozenset({"shop/chat"}))


def request(instance: str = "a", seq: int = 1, fleet: str = FLEET, **more: object) -> SyncRequest:
    return SyncRequest(instance=instance, fleet=fleet, seq=seq, **more)  # type: ignore[arg-type]


class Operator:
    """One replica. Several may share a service, as they would a ledger."""

    def __init__(
        self,
        path: Path,
        service: SyncService | None = None,
        *,
        api: Api | None = None,
        leader: Callable[[], str | None] = lambda: None,
        ready: Callable[[], bool] = lambda: True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`path`: where the CA is; replicas that share it are one to their proxies. `api`: a real API server."""
        self.path = path
        self.clock = Clock()
        self._own = service is None
        self.service = service or SyncService(Ledger.open(":memory:", create=True), self.clock.now_s)
        self.api = FakeApi()
        self.fleets = {FLEET: LiveFleet("fleet-1", 600.0)}
        self.authority = Authority(OnVolume(path / "ca"), NAMES, self.clock.now_s())
        self.https = SyncHttps(
            lambda: self.service,
            Authenticator(api or self.api, self.fleets.get, self.clock.boot_s),
            self.authority,
            leader=leader,
            ready=ready,
            now_s=self.clock.now_s,
            patience_s=patience_s,
        )

    async def __aenter__(self) -> Self:
        if self._own:
            await self.service.bind([BINDING])
            self.service.publish(CONFIG, {CHAT.index: CHAT})
        await self.https.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.https.stop(0.1)
        if self._own:
            await self.service.close()

    @property
    def port(self) -> int:
        return self.https.port


class Pod:
    """What the kubelet mounts into a proxy's pod, and the client that uses it."""

    def __init__(self, path: Path, port: int, bundle: str, token: str = TOKEN) -> None:
        self.ca, self.token = path / "ca.crt", path / "token"
        path.mkdir(exist_ok=True)
        self.mount(bundle, token)
        self.line = HttpsLine(f"https://localhost:{port}", self.ca, self.token)
        self.sync = SyncClient(self.line)

    def mount(self, bundle: str = "", token: str = "") -> None:
        """As the kubelet does: another file in the place of the old one."""
        for path, text in ((self.ca, bundle), (self.token, token)):
            if text:
                fresh = path.with_suffix(".new")
                fresh.write_text(text)
                fresh.replace(path)


def run(main: "asyncio._CoroutineLike[None]", loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main, 60))  # type: ignore[arg-type]
