"""The sync service and its socket. If these fail, proxies get stale config, wait for ever, or take a broken ledger's word."""

import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import httptools
import msgspec
import pytest

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger
from stepdown.model.config import Channel, Fleet, Ladder, Route, Shard, digest, shard_of
from stepdown.model.sync import Ask, LeaseReport, SyncAnswer, SyncRequest
from stepdown.sync.http import SocketInUse, SyncServer
from stepdown.sync.service import SyncRefused, SyncService, SyncUnavailable
from tests.unit.proxy_money import Proxy

ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**9, 1000, True, frozenset({"shop/chat"}))
FLEET = Fleet(name="shop/default", namespace="shop", base_url="https://x", channels=(Channel(name="standard"),))


def shard_with(name: str, generation: int = 1) -> Shard:
    route = Route(name=name, ladders={"default": Ladder(rungs=("m",))}, generation=generation)
    return Shard(index=shard_of(name), routes={name: route})


CHAT = shard_with("shop/chat")


def request(instance: str = "a", seq: int = 1, *asks: Ask, **more: object) -> SyncRequest:
    return msgspec.structs.replace(SyncRequest(instance=instance, fleet=FLEET.name, seq=seq, asks=asks), **more)


def run(work: Callable[[SyncService], Awaitable[None]], ledger: Ledger | None = None) -> None:
    async def main() -> None:
        service = SyncService(ledger or Ledger.open(":memory:", create=True), lambda: 100.0)
        try:
            await service.bind([BINDING])
            await work(service)
        finally:
            await service.close()

    asyncio.run(main())


def test_every_proxy_hears_how_many_they_are() -> None:
    """They share what the upstream allows the fleet in a minute."""

    async def work(service: SyncService) -> None:
        service.publish(FLEET, {})
        assert (await service.sync(request("a"))).proxies == 1
        assert (await service.sync(request("b"))).proxies == 2
        assert (await service.sync(request("a", 2))).proxies == 2
        assert (await service.sync(request("old", protocol=1))).proxies == 1, "protocol 1 does not know of it"
        await service.sync(request("b", 2, closing=True))
        assert (await service.sync(request("a", 3))).proxies == 2

    run(work)


def test_only_what_changed_goes_down() -> None:
    """With 10,000 routes, a whole config a second to every proxy would be all that the keeper does."""

    async def work(service: SyncService) -> None:
        assert (await service.sync(request())).fleet is None, "nothing is published yet"
        service.publish(FLEET, {CHAT.index: CHAT})
        first = await service.sync(request(seq=2))
        assert (first.fleet, first.shards) == (FLEET, (CHAT,))
        has = {"fleet_digest": digest(FLEET), "digests": {CHAT.index: digest(CHAT)}}
        same = await service.sync(request(seq=3, **has))
        assert (same.fleet, same.shards) == (None, ())
        edited = shard_with("shop/chat", generation=2)
        service.publish(FLEET, {CHAT.index: edited})
        assert (await service.sync(request(seq=4, **has))).shards == (edited,)
        service.publish(FLEET, {})
        assert (await service.sync(request(seq=5, **has))).shards == (Shard(index=CHAT.index),), "the route is gone"

    run(work)


def test_acknowledging_what_was_published_makes_the_budget_enforced() -> None:
    """The chain from the plan's binding to `Enforced=True`."""

    async def work(service: SyncService) -> None:
        service.publish(FLEET, {CHAT.index: CHAT})
        await service.sync(request())
        enforced = await service.call(lambda ledger: ledger.balances(100.0)[ACCOUNT].enforced)
        assert not enforced
        await service.sync(request(seq=2, acknowledged={CHAT.index: digest(CHAT)}))
        assert await service.call(lambda ledger: ledger.balances(100.0)[ACCOUNT].enforced)

    run(work)


def test_a_crowd_shares_transactions_and_the_limit() -> None:
    """Under concurrency each message gets its own answer, and all together never more than the limit."""

    async def work(service: SyncService) -> None:
        crowd = [service.sync(request(f"i{n}", 1, Ask(id=n, rungs=({ACCOUNT: 30},)))) for n in range(600)]
        answers = await asyncio.gather(*crowd)
        assert [answer.asks[0].id for answer in answers] == list(range(600))
        assert sum(answer.asks[0].rung == 0 for answer in answers) == 33

    run(work)


def test_one_bad_message_does_not_spoil_the_others() -> None:
    """One proxy with a broken log would stop the fleet."""

    async def work(service: SyncService) -> None:
        rubbish = LeaseReport(account="rubbish", granted=1, returned=0, consumed=1, estimated=0, reserved=0, want=0)
        negative = msgspec.structs.replace(rubbish, account=ACCOUNT, consumed=-1)
        results = await asyncio.gather(
            service.sync(request("a")),
            service.sync(request("b", leases=(rubbish,))),
            service.sync(request("c", leases=(negative,))),
            service.sync(request("d")),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [SyncAnswer, SyncRefused, SyncRefused, SyncAnswer]

    run(work)


def test_a_caller_that_gives_up_does_not_disturb_the_rest() -> None:
    """A proxy that times out is the moment when the others need their answers."""

    async def work(service: SyncService) -> None:
        gone = asyncio.create_task(service.sync(request("a")))
        stays = asyncio.create_task(service.sync(request("b")))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await stays).verdict == "ok"

    run(work)


def test_a_ledger_that_fails_is_no_answer(tmp_path: Path) -> None:
    """A proxy must go on within its lease then, and ask again: an error must not look like a refusal."""
    ledger = Ledger.open(tmp_path / "ledger", create=True)

    async def work(service: SyncService) -> None:
        ledger._database._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(SyncUnavailable, match="cannot be written"):
            await service.sync(request())
        ledger._database._connection.execute("PRAGMA query_only = OFF")
        assert (await service.sync(request())).verdict == "ok"

    run(work, ledger)


def test_a_proxy_in_the_same_process_outlives_a_ledger_that_fails(tmp_path: Path) -> None:
    """`stepdown run` on a disk that was full for a moment would serve on, and never sync again."""
    ledger = Ledger.open(tmp_path / "ledger", create=True)

    async def work(service: SyncService) -> None:
        proxy = Proxy(tmp_path / "proxy", wire=service.sync)
        ledger._database._connection.execute("PRAGMA query_only = ON")
        assert await proxy.syncer.once() is False
        ledger._database._connection.execute("PRAGMA query_only = OFF")
        assert await proxy.syncer.once() is True
        proxy.state.close(finished=False)

    run(work, ledger)


def test_after_closing_there_is_no_answer() -> None:
    """A late message must not hang the proxy that sent it."""

    async def work(service: SyncService) -> None:
        await service.close()
        with pytest.raises(SyncUnavailable):
            await service.sync(request())

    run(work)


def test_another_protocol_is_refused_in_words() -> None:
    """Two versions that do not understand each other must say so, not fail to decode."""

    async def work(service: SyncService) -> None:
        with pytest.raises(SyncRefused, match="sync protocol 9 is not spoken here, 1, 2 is"):
            await service.sync(request(protocol=9))

    run(work)


# The socket -----------------------------------------------------------------------------------------------------------


class Reply:
    """Parses one HTTP response."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.done = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> tuple[int, dict[str, object]]:
    writer.write(raw)
    reply = Reply()
    while not reply.done:
        data = await reader.read(65_536)
        assert data, "the server closed without an answer"
        reply.parser.feed_data(data)
    return reply.parser.get_status_code(), msgspec.json.decode(reply.body)


def post(body: bytes, target: str = "/v1/sync", method: str = "POST") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: keeper\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def served(path: Path, work: Callable[[SyncServer], Awaitable[None]]) -> None:
    async def main(service: SyncService) -> None:
        service.publish(FLEET, {CHAT.index: CHAT})
        server = SyncServer(service, path)
        await server.start()
        try:
            await work(server)
        finally:
            await server.stop()

    run(main)


def test_the_socket_is_its_owners_alone_and_carries_the_same_answers(tmp_path: Path) -> None:
    """Who can write to it can take a budget's money."""
    path = tmp_path / "sync.sock"

    async def work(server: SyncServer) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        message = msgspec.json.encode(request("a", 1, Ask(id=5, rungs=({ACCOUNT: 10},))))
        status, body = await exchange(reader, writer, post(message))
        answer = msgspec.convert(body, SyncAnswer, strict=False)
        assert (status, answer.asks[0].rung, answer.shards) == (200, 0, (CHAT,))
        status, body = await exchange(reader, writer, post(msgspec.json.encode(request("a", 2))))
        assert (status, body["seq"]) == (200, 2)
        writer.close()

    served(path, work)
    assert not path.exists()


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (post(b"{"), 400, "not a sync message"),
        (post(b'{"protocol": 7, "shape": []}'), 400, "sync protocol 7 is not spoken here"),
        (post(b'{"protocol": 1}'), 400, "missing required field"),
        (post(b"{}", target="/v2/sync"), 404, "only /v1/sync"),
        (post(b"", method="GET"), 405, "takes POST"),
        (b"rubbish\r\n\r\n", 400, "not HTTP/1.1"),
        (post(msgspec.json.encode(request("", 1))), 400, "instance has 0 characters"),
    ],
)
def test_what_is_no_message_is_told_why(tmp_path: Path, raw: bytes, status: int, says: str) -> None:
    """A proxy of another version must be diagnosable from its log."""
    path = tmp_path / "sync.sock"

    async def work(server: SyncServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        found, body = await exchange(reader, writer, raw)
        assert found == status
        error = body["error"]
        assert isinstance(error, dict)
        assert says in error["message"]
        writer.close()

    served(path, work)


def test_a_message_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    """One runaway process must not fill the keeper's memory."""
    path = tmp_path / "sync.sock"

    async def work(server: SyncServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"POST /v1/sync HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        with_answer = asyncio.create_task(exchange(reader, writer, b""))
        for _ in range(40):
            if with_answer.done() or writer.is_closing():
                break
            writer.write(chunk)
            await asyncio.sleep(0)
        status, _ = await with_answer
        assert status == 413
        writer.close()

    served(path, work)


def test_a_second_keeper_does_not_take_the_socket_but_a_dead_ones_is_taken_over(tmp_path: Path) -> None:
    """After a kill -9 the socket file is still there: `stepdown run` must start again all the same."""
    path = tmp_path / "sync.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()

    async def work(server: SyncServer) -> None:
        other = SyncServer(server._service, path)
        with pytest.raises(SocketInUse, match="another process answers"):
            await other.start()

    served(path, work)
    path.write_text("precious")
    with pytest.raises(SocketInUse, match="is not a socket"):
        served(path, work)
    assert path.read_text() == "precious"
