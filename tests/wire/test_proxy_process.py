"""A proxy as a process: ready, metrics, a changed config, drain, the stored config, `python -m stepdown.proxy`, TLS."""

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from pathlib import Path

import msgspec
import pytest

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.app import App
from stepdown.proxy.clock import Clock
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.wire import Limits
from tests.unit.proxy_money import NOW_S, TEAM, Keeper
from tests.wire.proxy_world import (
    COMPLETION,
    EXACT,
    PRICES,
    STANDARD_KEY,
    Client,
    Scripted,
    Simulator,
    World,
    chunked,
    hello,
    plain,
    route,
    run,
)


def test_ready_means_synced_and_not_draining() -> None:
    """A rollout during an operator's outage would replace pods that hold leases by pods that can serve nobody."""

    async def scene() -> None:
        async with World() as world, world.client() as client:
            assert (await client.get("/readyz")).status == 200
            world.app.syncer.completed = 0
            answer = await client.get("/readyz")
            assert (answer.status, answer.error["code"]) == (503, "not_synced")
            assert (await client.get("/healthz")).status == 200
            world.app.syncer.completed = 1
            world.app.server.wire.draining = True
            answer = await client.get("/readyz")
            assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "draining", "close")

    run(scene())


def test_metrics_show_the_wire() -> None:
    """Nobody would see an outage, a breaker or a leak of connections."""

    async def scene() -> None:
        async with World([route(rungs=("big", "small"))]) as world, world.client() as client:
            await client.chat()
            await client.chat(b"{")
            world.sim.fault("status", model="up/big", status=429, retry_after="60", next=1)
            await client.chat()
            page = await client.get("/metrics")
            assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = page.body.decode().splitlines()
            for line in (
                'stepdown_answers_total{status="200"} 2',
                'stepdown_answers_total{status="400"} 1',
                'stepdown_breaker_open{model="big"} 1',
                "stepdown_retries_total 1",
                "stepdown_connections 1",
                "stepdown_upstream_connections_idle 1",
                "stepdown_attempts_in_flight 0",
                "stepdown_request_seconds_count 3",
                'stepdown_requests_total{route="shop/chat",model="small",class="default"} 1',
            ):
                assert line in lines, line

    run(scene())


def test_a_changed_config_is_in_force_without_dropping_a_stream() -> None:
    """Each edit of a route would cut the answers that are being written."""

    async def scene() -> None:
        upstream = Simulator(model=EXACT, prices=PRICES, per_chunk_s=0.02)
        async with World(upstream=upstream) as world, world.client() as client:
            client.send_chat(stream=True)
            assert (await client.head())[1]["x-stepdown-model"] == "big"
            world.publish([route(rungs=("mid",)), route("shop/new")])
            await world.app.syncer.once()
            assert (await world.chat()).headers["x-stepdown-model"] == "mid"
            assert (await world.chat(hello(model="new"))).status == 200
            rest = b""
            while chunk := await client.chunk():
                rest += chunk
            assert rest.endswith(b"data: [DONE]\n\n")

    run(scene())


def test_drain_answers_what_is_in_flight_and_closes_the_instance() -> None:
    """Every rollout would cut streams, and leave each old pod's lease charged as lost."""

    async def scene() -> None:
        upstream = Simulator(model=EXACT, prices=PRICES, per_chunk_s=0.02)
        async with World(upstream=upstream) as world:
            port = world.port
            idle, busy = world.client(), world.client()
            async with idle, busy:
                assert (await idle.get("/readyz")).status == 200
                busy.send_chat(stream=True)
                await busy.head()
                draining = asyncio.create_task(world.drain(5.0))
                assert await idle.ended() == b"", "idle connections are closed"
                with pytest.raises(ConnectionRefusedError):
                    await Client(port).__aenter__()
                rest = b""
                while chunk := await busy.chunk():
                    rest += chunk
                assert rest.endswith(b"data: [DONE]\n\n")
                assert await busy.ended() == b""
                assert await draining is True
            last = world.keeper.messages[-1]
            assert last.closing
            lease = next(each for each in last.leases if each.account == TEAM)
            assert (lease.consumed, lease.estimated, lease.reserved) == (world.sim.bill.total_nusd, 0, 0)

    run(scene())


def test_drain_does_not_wait_for_ever() -> None:
    """A stream that never ends would keep a pod until it is killed, and its lease with it."""

    async def scene() -> None:
        async with World(upstream=Scripted(chunked(b"data: {}\n\n", end=False))) as world, world.client() as client:
            client.send_chat(stream=True)
            await client.head()
            assert await world.drain(0.1) is True
            last = world.keeper.messages[-1]
            lease = next(each for each in last.leases if each.account == TEAM)
            assert last.closing and lease.reserved == 0 and lease.consumed == lease.estimated > 0

    run(scene())


async def _away(request: SyncRequest) -> SyncAnswer:
    raise ConnectionRefusedError("nobody listens")


def test_a_proxy_that_starts_while_the_keeper_is_away_serves_what_needs_no_lease(tmp_path: Path) -> None:
    """An operator's outage would become an outage of every route, also of those without a budget."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim:
            world = World([route(), route("shop/free", budgets=())], upstream=sim)
            world.publish(world._routes)
            keys = FixedKeys({"standard": STANDARD_KEY})
            state = tmp_path / "state"
            first = App(ServerConfig(), world.keeper.sync, state, "shop/proxy", keys, clock=Clock(now_s=NOW_S))
            await first.start()
            await first.drain(1.0, 1.0)
            for damage in (False, True):
                if damage:
                    for path in (state / "config").glob("shard-*.json"):
                        path.write_bytes(path.read_bytes()[:-5])
                app = App(ServerConfig(), _away, state, "shop/proxy", keys, clock=Clock(now_s=NOW_S))
                await app.start()
                async with Client(app.port) as client:
                    free, held = await client.chat(hello(model="free")), await client.chat()
                    ready = await client.get("/readyz")
                if damage:
                    assert (free.status, held.status, ready.status) == (404, 404, 503)
                else:
                    assert (free.status, held.status, ready.status) == (200, 503, 503)
                    assert held.error["code"] == "ledger_unreachable"
                await app.drain(0.1, 0.1)
            other = App(ServerConfig(), _away, tmp_path / "other", "shop/proxy", keys)
            await other.start()
            async with Client(other.port) as client:
                assert (await client.chat()).error["code"] == "no_config"
                assert (await client.get("/v1/models")).error["code"] == "no_config"
            await other.drain(0.1, 0.1)

    run(scene())


async def _keeper_socket(keeper: Keeper, path: Path) -> asyncio.Server:
    """Sync over a Unix socket, as `sync/http.py` serves it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"POST /v1/sync HTTP/1.1\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                request = msgspec.json.decode(await reader.readexactly(size), type=SyncRequest)
                writer.write(plain(msgspec.json.encode(keeper.answer(request))))
        writer.close()

    return await asyncio.start_unix_server(serve, path)


def test_a_process_of_its_own_syncs_over_a_socket_and_ends_in_good_order(tmp_path: Path) -> None:
    """`stepdown run --workers` would not start, not answer, or leave a lease behind at every stop."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim:
            world = World(upstream=sim)
            world.publish(world._routes)
            keys = tmp_path / "keys"
            keys.mkdir()
            (keys / "standard").write_text(STANDARD_KEY + "\n")
            keeper = await _keeper_socket(world.keeper, tmp_path / "sync")
            arguments = ["--listen", "127.0.0.1:0", "--sync-socket", str(tmp_path / "sync"), "--fleet", "shop/proxy"]
            arguments += ["--state-dir", str(tmp_path / "state"), "--key-dir", str(keys), "--reuse-port"]

            async def start() -> asyncio.subprocess.Process:
                return await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "stepdown.proxy", *arguments,
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "UPSTREAM_API_KEY": ""},
                )  # fmt: skip

            process = await start()
            assert process.stdout is not None and process.stderr is not None
            said = (await process.stdout.readline()).decode()
            assert said.startswith("listening on 127.0.0.1:")
            port = int(said.rpartition(":")[2])
            async with Client(port) as client:
                assert (await client.chat()).status == 200
            second = await start()
            assert await second.wait() == 1
            assert second.stderr is not None
            assert b"belongs to a proxy that is running" in await second.stderr.read()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            last = world.keeper.messages[-1]
            assert last.closing
            assert last.leases[0].consumed == sim.bill.total_nusd > 0
            keeper.close()

    run(scene())


CERTIFICATES = Path(__file__).with_name("data")


def test_the_upstream_is_verified() -> None:
    """Prompts and keys would go to whoever answers on the upstream's address."""

    async def scene() -> None:
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(CERTIFICATES / "upstream.pem")
        trusting = ssl.create_default_context(cafile=CERTIFICATES / "upstream.pem")
        upstream = Scripted(plain(COMPLETION), ssl=served)
        async with World([route(rungs=("big",))], upstream=upstream, ssl_context=trusting) as world:
            for _ in range(2):
                assert (await world.chat()).status == 200
            assert [heard.on_connection for heard in upstream.heard] == [0, 1]
        upstream = Scripted(plain(COMPLETION), ssl=served)
        async with World([route(rungs=("big",))], upstream=upstream, limits=Limits(connect_s=5)) as world:
            answer = await world.chat()
            assert answer.status == 502
            assert "certificate" in answer.error["message"].lower()
            assert (upstream.heard, world.consumed_nusd) == ([], 0)

    run(scene())
