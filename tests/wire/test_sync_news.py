"""A proxy hears of another config at once: over real sockets, as in a cluster."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from stepdown.model.config import Shard, digest
from stepdown.model.news import Have
from stepdown.model.sync import SyncUnavailable
from stepdown.proxy.app import App
from stepdown.proxy.keys import EnvKeys
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.syncclient import SyncClient
from stepdown.proxy.syncline import HttpsLine
from tests.unit.sync_api import FLEET
from tests.wire.proxy_world import model
from tests.wire.sync_world import CHAT, CONFIG, Operator, Pod, run

HAVE = Have(fleet_digest=digest(CONFIG), digests={CHAT.index: digest(CHAT)})


def publish(operator: Operator, shard: Shard) -> None:
    operator.service.publish(CONFIG, {shard.index: shard})
    operator.https.board.publish(FLEET, digest(CONFIG), {shard.index: digest(shard)})


def edited(generation: int) -> Shard:
    (route,) = CHAT.routes.values()
    routes = {route.name: msgspec.structs.replace(route, generation=generation)}
    return msgspec.structs.replace(CHAT, routes=routes, models={"m": model("m", "1")})


def test_a_question_is_answered_when_something_else_is_published(tmp_path: Path) -> None:
    async def main() -> None:
        async with Operator(tmp_path) as operator:
            publish(operator, CHAT)
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            asked = asyncio.create_task(pod.sync.wait(HAVE))
            done, _ = await asyncio.wait([asked], timeout=0.3)
            assert not done, "what it has is what is published"
            publish(operator, edited(2))
            assert (await asyncio.wait_for(asked, 1)).changed
            assert (await pod.sync.wait(HAVE)).changed, "and whoever has the former hears it at once"
            pod.sync.close()

    run(main())


def test_a_question_is_no_way_round_the_proof_of_who_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with Operator(tmp_path) as operator:
            publish(operator, CHAT)
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle, "nobody")
            with pytest.raises(SyncUnavailable, match="401"):
                await pod.sync.wait(HAVE)

    run(main())


def test_an_operator_that_stops_keeps_no_question_open(tmp_path: Path) -> None:
    """It would wait for its proxies until it is killed, and its successor for the Lease."""

    async def main() -> None:
        async with Operator(tmp_path) as operator:
            publish(operator, CHAT)
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            asked = asyncio.create_task(pod.sync.wait(HAVE))
            await asyncio.sleep(0.2)
            began_s = time.monotonic()
            await operator.https.stop(5.0)
            assert time.monotonic() - began_s < 2.0
            assert not (await asked).changed
            pod.sync.close()

    run(main())


def test_an_idle_proxy_serves_by_a_new_config_long_before_its_next_message(tmp_path: Path) -> None:
    """One that only syncs once a second serves by the old one for a second: a step that was reached would cost that much."""

    async def main() -> None:
        async with Operator(tmp_path) as operator:
            publish(operator, edited(1))
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            line = HttpsLine(f"https://localhost:{operator.port}", pod.ca, pod.token)
            server = ServerConfig(host="127.0.0.1", port=0)
            app = App(server, pod.sync, tmp_path / "state", FLEET, EnvKeys(), listen=SyncClient(line).wait)
            await app.start()
            try:
                took_s = []
                for generation in range(2, 8):
                    await asyncio.sleep(0.45)  # it is idle, and its question is open again
                    began_s = time.monotonic()
                    publish(operator, edited(generation))
                    await served(app, edited(generation))
                    took_s.append(time.monotonic() - began_s)
                assert sorted(took_s)[len(took_s) // 2] < 0.4, "a message goes every second"
            finally:
                await app.drain(0.1, 1.0)

    async def served(app: App, shard: Shard) -> None:
        async with asyncio.timeout(5):
            while app.till.table is None or app.till.table.shards[shard.index].digest != digest(shard):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    run(main())
