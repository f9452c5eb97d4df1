"""A proxy as a pod's only process: sync over HTTPS, ready by the pod's life, leaving before draining, PID 1."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stepdown.model.config import Account, Budget, Channel, Fleet
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.app import App
from stepdown.proxy.clock import Clock
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.server import ServerConfig
from stepdown.sync.service import SyncService
from tests.unit.proxy_money import NOW_S
from tests.unit.sync_api import FLEET
from tests.wire.proxy_world import EXACT, MODELS, PRICES, STANDARD_KEY, Client, Simulator, World, route, run, shards
from tests.wire.sync_world import ACCOUNT, BINDING, Operator, Pod

LIMIT_NUSD = 10**12


async def _away(request: SyncRequest) -> SyncAnswer:
    raise ConnectionRefusedError("nobody listens")


async def published(service: SyncService, base_url: str) -> None:
    """One route under a Hard budget that has money, for as long as anyone runs this test."""
    account = Account(id=ACCOUNT, start_s=0, end_s=10**10, limit_nusd=LIMIT_NUSD)
    budget = Budget(name="shop/team", hard=True, accounts=(account,))
    await service.bind([replace(BINDING, limit_nusd=LIMIT_NUSD)])
    channels = (Channel(name="standard"), Channel(name="pro", model_prefix="Pro/"))
    service.publish(
        Fleet(name=FLEET, namespace="shop", base_url=base_url, channels=channels), shards([route()], MODELS, (budget,))
    )


class Container:
    """`python -m stepdown.proxy` with what a Deployment says."""

    def __init__(self, path: Path, pod: Pod, operator_port: int, *, within: Sequence[str] = ()) -> None:
        self._path, self._within = path, within
        keys = path / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "standard").write_text(STANDARD_KEY + "\n")
        self._arguments = ["--listen", "127.0.0.1:0", "--fleet", FLEET, "--sync-url", f"https://localhost:{operator_port}"]
        self._arguments += ["--sync-ca", str(pod.ca), "--sync-token", str(pod.token), "--config-dir", str(path / "config")]
        self._arguments += ["--state-dir", str(path / "state"), "--key-dir", str(keys), "--pod-uid", "pod-1"]
        self._arguments += ["--accept-s", "1"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
        process = await asyncio.create_subprocess_exec(
            *self._within, sys.executable, "-m", "stepdown.proxy", *self._arguments,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "UPSTREAM_API_KEY": "", "UPSTREAM_API_KEY_PRO": ""},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = (await process.stdout.readline()).decode()
            assert said.startswith("listening on 127.0.0.1:"), said
            yield process, int(said.rpartition(":")[2])
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def test_a_pod_from_its_start_to_its_end(tmp_path: Path) -> None:
    """The chain that every other test has a link of: without it a fleet serves nobody, or leaves its leases behind."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim, Operator(tmp_path) as operator:
            await published(operator.service, sim.url)
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            async with Container(tmp_path / "pod", pod, operator.port).running() as (process, port):
                async with Client(port) as client:
                    assert (await client.get("/readyz")).status == 200
                    assert (await client.chat()).status == 200
                await asyncio.sleep(1.5)
                seen = operator.service.proxies(operator.clock.now_s())[FLEET]
                assert (seen.ready, seen.pods, seen.keys) == (1, 1, {"standard": True, "pro": False})
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
                for _ in range(2):
                    async with Client(port) as client:
                        answer = await client.get("/readyz")
                        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "draining", "close")
                    async with Client(port) as client:
                        assert (await client.chat()).status == 200, "whoever has not heard yet is served"
                assert operator.service.proxies(operator.clock.now_s())[FLEET].ready == 0, "the operator has heard"
                assert await process.wait() == 0
            (instance,) = await operator.service.call(lambda ledger: ledger.instances(closed=True))
            assert (instance.state, instance.fleet) == ("closed", FLEET)
            balance = await operator.service.call(lambda ledger: ledger.balances(operator.clock.now_s())[ACCOUNT])
            assert balance.settled_nusd == sim.bill.total_nusd > 0

    run(scene())


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-pf", "true"], check=False, capture_output=True).returncode,
    reason="a PID namespace needs root",
)
def test_the_first_process_of_a_container_hears_signals(tmp_path: Path) -> None:
    """The kernel drops a signal to PID 1 that it does not listen for: every rollout would wait for the whole grace period and
    then kill the pod with its leases."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim, Operator(tmp_path) as operator:
            await published(operator.service, sim.url)
            pod = Pod(tmp_path / "pod", operator.port, operator.authority.bundle)
            container = Container(tmp_path / "pod", pod, operator.port, within=("unshare", "-pf", "--kill-child"))
            async with container.running() as (process, _):
                os.kill(_first_of_its_namespace(process.pid), signal.SIGTERM)
                assert await process.wait() == 0

    run(scene())


def _first_of_its_namespace(parent: int) -> int:
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert Path(f"/proc/{child}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    return int(child)


def test_ready_again_after_a_restart_in_an_outage_and_only_in_the_same_pod(tmp_path: Path) -> None:
    """A container that crashes while the operator is away would take its pod out of the Service, one after the other; and a
    rollout in the same outage must not replace pods that hold leases."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim:
            world = World([route("shop/free", budgets=())], upstream=sim)
            world.publish(world._routes)
            keys = FixedKeys({"standard": STANDARD_KEY})

            async def ready(pod: str, state: str, sync: object = _away) -> tuple[int, str]:
                clock = Clock(now_s=NOW_S)
                app = App(ServerConfig(), sync, tmp_path / state, "shop/proxy", keys, clock=clock, pod_uid=pod)  # type: ignore[arg-type]
                await app.start()
                async with Client(app.port) as client:
                    answer = await client.get("/readyz")
                await app._stop_syncing()
                app._state.close(finished=False)  # as kill -9 would leave it
                await app.server.drain(0.0)
                return answer.status, "" if answer.status == 200 else answer.error["code"]

            assert await ready("pod-1", "state") == (503, "not_synced")
            assert await ready("pod-1", "state", world.keeper.sync) == (200, "")
            assert await ready("pod-1", "state") == (200, "")
            assert await ready("pod-2", "state") == (503, "not_synced")
            for path in (tmp_path / "state" / "config").glob("*.json"):
                path.unlink()
            assert await ready("pod-1", "state") == (503, "no_config"), "it could serve nobody"

    run(scene())


def test_a_new_pod_in_an_outage_serves_from_the_mount_what_needs_no_lease(tmp_path: Path) -> None:
    """And does not claim to be ready."""

    async def scene() -> None:
        async with Simulator(model=EXACT, prices=PRICES) as sim:
            world = World([route(), route("shop/free", budgets=())], upstream=sim)
            world.publish(world._routes)
            keys = FixedKeys({"standard": STANDARD_KEY})
            first = App(ServerConfig(), world.keeper.sync, tmp_path / "first", "shop/proxy", keys, clock=Clock(now_s=NOW_S))
            await first.start()
            await first.drain(1.0, 1.0)
            app = App(
                ServerConfig(), _away, tmp_path / "second", "shop/proxy", keys,
                clock=Clock(now_s=NOW_S), pod_uid="pod-2", config_dir=tmp_path / "first" / "config",
            )  # fmt: skip
            await app.start()
            async with Client(app.port) as client:
                assert (await client.chat(model="free")).status == 200
                assert (await client.chat()).error["code"] == "ledger_unreachable"
                assert (await client.get("/readyz")).error["code"] == "not_synced"
            await app.drain(0.1, 0.1)

    run(scene())


def test_leaving_tells_the_keeper_at_once_and_serves_on(tmp_path: Path) -> None:
    """`Programmed` would count pods that are on their way out, and requests that are still routed here would be cut off."""

    async def scene() -> None:
        async with World() as world:
            port = world.port
            async with Client(port) as kept:
                assert (await kept.chat()).status == 200
                before = len(world.keeper.messages)
                assert world.keeper.messages[-1].ready
                world._drained = True
                draining = asyncio.create_task(world.app.drain(5.0, 1.0, accept_s=0.3))
                await asyncio.sleep(0.1)
                assert [each.ready for each in world.keeper.messages[before:]][-1] is False
                answer = await kept.chat()
                assert (answer.status, answer.headers["connection"]) == (200, "close"), "it goes elsewhere with its next"
                assert await kept.ended() == b""
                async with Client(port) as late:
                    assert (await late.chat()).status == 200
                assert await draining is True
                with pytest.raises(ConnectionRefusedError):
                    await Client(port).__aenter__()

    run(scene())
