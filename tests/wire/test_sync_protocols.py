"""Two versions of the protocol meet. If these fail, an upgrade or a `helm rollback` cuts the older half of the fleet off.

`protocol_1` is the other side as it was released, and takes no field that it did not know.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger
from stepdown.model.config import Issuer, TokenKey, digest
from stepdown.model.sync import SyncRequest
from stepdown.proxy.syncclient import SyncClient, UnixLine, understood
from stepdown.proxy.syncer import LOWERED_S, Syncer
from stepdown.sync.http import SyncServer
from stepdown.sync.message import answered
from stepdown.sync.service import SyncService
from tests.unit.proxy_money import TEAM, Keeper, Proxy, fleet, route, shards
from tests.unit.proxy_money import run as run_virtually
from tests.wire import protocol_1
from tests.wire.sync_world import CHAT, CONFIG, run

ACCOUNT = "shop/team@0"


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> tuple[int, bytes]:
    """One message, as any HTTP client sends it."""
    reader, writer = streams
    writer.write(b"POST /v1/sync HTTP/1.1\r\nhost: keeper\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


def test_an_older_proxy_is_served_by_a_newer_keeper(tmp_path: Path) -> None:
    """While the operator is upgraded, every pod of every fleet is the older one."""

    async def scene() -> None:
        service = SyncService(Ledger.open(":memory:", create=True), lambda: 100.0)
        await service.bind([Binding("shop/team", 0, 10**9, 1000, True, frozenset({"shop/chat"}))])
        service.publish(CONFIG, {CHAT.index: CHAT})
        server = SyncServer(service, tmp_path / "sync")
        await server.start()
        streams = await asyncio.open_unix_connection(str(tmp_path / "sync"))

        async def sync(seq: int, **more: Any) -> protocol_1.SyncAnswer:
            asked = protocol_1.SyncRequest(instance="old", fleet=CONFIG.name, seq=seq, **more)
            status, body = await ask(streams, msgspec.json.encode(asked))
            assert status == 200, body
            return msgspec.json.decode(body, type=protocol_1.SyncAnswer)

        first = await sync(1, asks=(protocol_1.Ask(id=1, rungs=({ACCOUNT: 30},)),))
        assert (first.protocol, first.asks[0].rung, first.leases[0].granted >= 30) == (1, 0, True)
        assert first.fleet is not None and first.fleet.name == CONFIG.name and set(first.shards[0].routes) == {"shop/chat"}
        has = {"fleet_digest": digest(CONFIG), "digests": {CHAT.index: digest(CHAT)}}
        assert (await sync(2, acknowledged=has["digests"], **has)).shards == ()
        assert await service.call(lambda ledger: ledger.balances(100.0)[ACCOUNT].enforced)
        seen = service.proxies(100.0)[CONFIG.name]
        assert (seen.ready, seen.serving[CHAT.index], seen.keys) == (1, {digest(CHAT): 1}, {})
        assert (await sync(1)).verdict == "stale"
        assert (await sync(3, closing=True)).verdict == "ok"
        fenced = await sync(4)
        assert (fenced.protocol, fenced.verdict) == (1, "fenced")
        streams[1].close()
        await server.stop()
        await service.close()

    run(scene())


def test_an_older_proxy_is_not_sent_what_it_does_not_know_and_is_up_to_date_all_the_same(tmp_path: Path) -> None:
    """It would get the same shard every second; no budget of that shard would be enforced until the last old pod is gone."""

    async def scene() -> None:
        service = SyncService(Ledger.open(":memory:", create=True), lambda: 100.0)
        await service.bind([Binding("shop/team", 0, 10**9, 1000, True, frozenset({"shop/chat"}))])
        route_ = msgspec.structs.replace(CHAT.routes["shop/chat"], api_key_sha256=(), service_accounts=("shop/web",))
        models = {name: msgspec.structs.replace(model, overrun_nusd=7) for name, model in CHAT.models.items()}
        shard = msgspec.structs.replace(CHAT, routes={"shop/chat": route_}, models=models)
        issuer = Issuer(url="https://issuer", keys=(TokenKey(kid="k", kty="RSA", n="AQAB", e="AQAB"),))
        service.publish(msgspec.structs.replace(CONFIG, issuer=issuer), {shard.index: shard})

        async def sync(seq: int, has: dict[str, Any]) -> protocol_1.SyncAnswer:
            asked = protocol_1.SyncRequest(instance="old", fleet=CONFIG.name, seq=seq, **has)
            _, body = await answered(service, msgspec.json.encode(asked))
            return msgspec.json.decode(body, type=protocol_1.SyncAnswer)

        first = await sync(1, {})
        old = first.shards[0]
        assert old.routes["shop/chat"].api_key_sha256 == (), "nobody's, rather than anybody's"
        has = {
            "fleet_digest": protocol_1_digest(first.fleet),
            "digests": {old.index: protocol_1_digest(old)},
            "acknowledged": {old.index: protocol_1_digest(old)},
        }
        assert (await sync(2, has)).shards == ()
        assert (await sync(3, has)).fleet is None
        assert await service.call(lambda ledger: ledger.balances(100.0)[ACCOUNT].enforced)
        assert service.proxies(100.0)[CONFIG.name].serving[shard.index] == {digest(shard): 1}
        newer = await service.sync(SyncRequest(instance="new", fleet=CONFIG.name, seq=1))
        assert newer.fleet is not None and newer.fleet.issuer == issuer and newer.shards == (shard,)
        await service.close()

    run(scene())


def protocol_1_digest(config: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()[:16]


class OldKeeper:
    """A keeper of the release before: it refuses what is not protocol 1, in the words of its time."""

    def __init__(self) -> None:
        self.keeper = Keeper({TEAM: 1_000})
        self.keeper.fleet, self.keeper.shards = fleet(), shards([route()])
        self.refused = 0
        self.is_old = True

    def answer(self, body: bytes) -> tuple[int, bytes]:
        protocol = msgspec.json.decode(body)["protocol"]
        if self.is_old and protocol != 1:
            self.refused += 1
            message = f"sync protocol {protocol} is not spoken here, 1 is: run proxies and keeper of versions that are ..."
            return 400, msgspec.json.encode({"error": {"code": "refused", "message": message}})
        if protocol == 1:
            msgspec.json.decode(body, type=protocol_1.SyncRequest)  # raises for a field that it does not know
        answer = msgspec.to_builtins(self.keeper.answer(msgspec.json.decode(body, type=SyncRequest)))
        return 200, msgspec.json.encode({**answer, "protocol": protocol})


@contextlib.asynccontextmanager
async def served(path: Path, answer: Callable[[bytes], tuple[int, bytes]]) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                status, body = answer(await reader.readexactly(size))
                writer.write(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    yield
    server.close()


def test_a_newer_proxy_is_served_by_an_older_keeper(tmp_path: Path) -> None:
    """After a `helm rollback` of the operator the newer pods stay: they would have money for one horizon, and then none."""

    async def scene() -> None:
        old = OldKeeper()
        async with served(tmp_path / "sync", old.answer):
            client = SyncClient(UnixLine(tmp_path / "sync"))
            proxy = Proxy(tmp_path / "state", keeper=old.keeper, wire=client)
            syncer = proxy.syncer
            syncer.is_ready, syncer.keys = lambda: True, lambda: {"standard": True}
            for _ in range(5):
                assert await syncer.once()
            assert (old.refused, syncer.failures, syncer.completed) == (1, 0, 5)
            assert {message.protocol for message in old.keeper.messages} == {1}
            assert proxy.till.table is not None and "shop/chat" in {each.name for each in proxy.till.table.routes}
            proxy.state.close(finished=False)
            client.close()

    run(scene())


def test_a_keeper_that_was_upgraded_is_found_out_within_a_minute(tmp_path: Path) -> None:
    """The operator would not hear of missing keys until the pods are replaced."""

    async def scene() -> None:
        old = OldKeeper()

        async def wire(request: SyncRequest) -> Any:
            await asyncio.sleep(0.001)
            status, body = old.answer(msgspec.json.encode(request))
            return understood(status, body)

        async with Proxy(tmp_path, keeper=old.keeper, wire=wire) as proxy:
            proxy.syncer.is_ready = lambda: True
            await asyncio.sleep(3 * LOWERED_S)
            assert proxy.syncer.failures == 0
            assert 3 <= old.refused <= 4, "it asks again once a minute"
            assert not any(message.ready for message in old.keeper.messages)
            old.is_old = False
            await asyncio.sleep(LOWERED_S + 2)
            assert (old.keeper.messages[-1].protocol, old.keeper.messages[-1].ready) == (2, True)

    run_virtually(scene())


def test_what_no_protocol_takes_is_a_failure_and_not_a_circle(tmp_path: Path) -> None:
    """A message that is refused for what it says would be sent for ever, without a pause."""

    async def scene() -> None:
        sent: list[int] = []

        async def wire(request: SyncRequest) -> Any:
            sent.append(request.protocol)
            await asyncio.sleep(0.001)
            return understood(400, b'{"error": {"code": "refused"}}')

        async with Proxy(tmp_path, wire=wire) as proxy:
            syncer: Syncer = proxy.syncer
            await asyncio.sleep(30)
            assert syncer.failures == len(sent) - sent.count(2)
            assert len(sent) <= 50

    run_virtually(scene())


def test_a_field_that_is_not_known_is_passed_over() -> None:
    """The next version will have one: it must not break this one."""
    newer = {"protocol": 2, "instance": "a", "fleet": "shop/web", "seq": 1, "novelty": {"a": [1]}}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=SyncRequest).instance == "a"
