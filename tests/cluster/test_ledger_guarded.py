"""The ledger, its service and the witness on a real API server. If these fail, an old backup of a volume refills a budget."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from devcluster import Cluster as DevCluster
from devcluster import ControlPlane

from stepdown.budget.account import Binding
from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import CONFIG_MAP
from stepdown.cluster.wire import Limits
from stepdown.cluster.witness import ConfigMapWitness
from stepdown.ledger import Ledger
from stepdown.model.sync import Ask, LeaseReport, SyncAnswer, SyncRequest
from stepdown.sync.service import HOLD_S, SyncService
from tests.cluster.fleet import run

NOW_S = 1_793_500_000.0
ACCOUNT = "shop/team@1793491200"
BINDING = Binding("shop/team", 1_793_491_200, 1_796_083_200, 10_000, True, frozenset({"shop/chat"}))


class Kept:
    """A service that keeps a ledger file by a real ConfigMap, and messages to it."""

    def __init__(self, service: SyncService, ledger: Ledger) -> None:
        self.service, self._ledger = service, ledger

    async def say(self, instance: str, seq: int, *rungs: int, whole: bool = True, **numbers: int) -> SyncAnswer:
        plain = {"granted": 0, "returned": 0, "consumed": 0, "estimated": 0, "reserved": 0, "want": 0}
        report = LeaseReport(account=ACCOUNT, **{**plain, **numbers})
        asks = (Ask(id=seq, rungs=tuple({ACCOUNT: rung} for rung in rungs)),) if rungs else ()
        request = SyncRequest(instance=instance, fleet="shop/web", seq=seq, asks=asks, leases=(report,), whole=whole)
        return await self.service.sync(request)

    async def committed(self) -> int:
        return await self.service.call(lambda ledger: ledger.balances(NOW_S)[ACCOUNT].committed_nusd)

    async def die(self) -> None:
        """As kill -9: the ledger hears no last word."""
        await self.service.call(lambda ledger: ledger._database.close())


@contextlib.asynccontextmanager
async def keeping(cluster: Cluster, namespace: str, path: Path) -> AsyncIterator[Kept]:
    ledger = Ledger.open(path, create=True)
    ledger.take_epoch("stepdown-0")
    service = SyncService(ledger, lambda: NOW_S, ConfigMapWitness(cluster, namespace))
    try:
        await service.begin()
        await service.bind([BINDING])
        yield Kept(service, ledger)
    finally:
        await service.close()


def test_a_backup_that_is_put_back_refills_nothing(cluster: DevCluster, namespace: str, tmp_path: Path) -> None:
    """The whole way: a volume's copy of before is put in its place, and the month goes on where it truly was."""
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"

    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            async with keeping(client, namespace, path) as kept:
                assert (await kept.say("a", 1, 1_000)).asks[0].rung == 0
                await kept.service.call(lambda ledger: ledger._database._connection.execute(f"VACUUM INTO '{copy}'"))  # type: ignore[attr-defined]
                assert (await kept.say("a", 2, 7_000, granted=1_000, consumed=1_000)).asks[0].rung == 0
                found = await client.get(CONFIG_MAP, namespace, "stepdown-witness")
                assert found is not None
                assert "8100" in found["data"].values(), "the mark was there before the grant: 8,000 and a block"
                await kept.die()
            path.with_name("ledger.db-wal").unlink(missing_ok=True)
            shutil.copy(copy, path)
            async with keeping(client, namespace, path) as kept:
                assert await kept.committed() == 8_100
                assert (await kept.say("b", 1, 2_500)).asks[0].rung == -1
                assert (await kept.say("a", 3, whole=False, granted=8_000, consumed=2_000)).whole
                assert not (await kept.say("a", 4, granted=8_000, consumed=2_000)).whole
                assert await kept.committed() == 8_000
                assert (await kept.say("b", 2, 2_000)).asks[0].rung == 0
            async with keeping(client, namespace, path) as kept:
                assert await kept.committed() == 10_000, "it ended in order, and nothing is held back"

    run(scene())


def test_an_api_server_that_hangs_delays_what_fits_under_the_mark_by_nothing(own_cluster: ControlPlane, tmp_path: Path) -> None:
    """etcd loses its disk for a minute: proxies go on, the mark holds, and all is well again by itself."""

    async def scene() -> None:
        limits = Limits(total_s=15.0)
        async with (
            Cluster.connect(own_cluster.kubeconfig, limits=limits) as client,
            keeping(client, "default", tmp_path / "ledger.db") as kept,
        ):
            assert (await kept.say("a", 1, 1_000)).asks[0].rung == 0
            own_cluster.pause("kube-apiserver")
            assert (await kept.say("a", 2, 60, granted=1_000, consumed=1_000)).asks[0].rung == 0
            began_s = time.monotonic()
            answer = await kept.say("a", 3, 5_000, 30, granted=1_060, consumed=1_060)
            assert answer.asks[0].rung == 1, "after a second it takes what fits"
            for seq in range(4, 9):
                answer = await kept.say("a", seq, 5_000, 1, granted=1_090 + seq - 4, consumed=1_090 + seq - 4)
                assert answer.asks[0].rung == 1
            assert time.monotonic() - began_s < 3 * HOLD_S, "one has waited, and then nobody does"
            assert await kept.committed() == 1_095
            own_cluster.resume("kube-apiserver")
            for seq in range(9, 200):
                answer = await kept.say("a", seq, 5_000, granted=1_095, consumed=1_095)
                if answer.asks[0].rung == 0:
                    break
                await asyncio.sleep(0.1)
            assert kept.service.standstill == ""
            assert await kept.committed() == 6_095

    run(scene())
