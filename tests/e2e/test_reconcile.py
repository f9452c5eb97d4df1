"""A proxy that is lost with its log, and the upstream's own invoice. If this fails, a bill comes that nobody can book."""

import asyncio
import json
import shutil
from pathlib import Path

import uvloop
from bench.policy import FLEET, one_route
from click.testing import CliRunner

from stepdown.cli.app import stepdown
from stepdown.ledger import Ledger
from stepdown.model.money import usd_to_nusd
from stepdown.model.sync import SyncRequest
from stepdown.proxy.clock import Clock
from stepdown.proxy.identity import StateDir
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.server import ProxyServer, ServerConfig
from stepdown.proxy.syncer import Syncer
from stepdown.proxy.till import Till
from stepdown.sync.service import SyncService
from tests.e2e.crowd import ask
from tests.upstream import STANDARD_KEY, Simulator

BEGIN_S = 1_793_491_200 + 40_000.0
"""2026-11-01, late in the morning."""
LIMIT_NUSD = usd_to_nusd("0.05")
QUESTION = {"model": "bench", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 500}


def cli(*arguments: object) -> str:
    result = CliRunner().invoke(stepdown, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_upstream_s_own_invoice_closes_the_month(tmp_path: Path) -> None:
    """Answers that were paid and never reported, and leases that were never spent: the invoice tells one from the other."""

    async def scene() -> None:
        async with Simulator() as sim:
            began_s, later_s = Clock().boot_s(), 0.0
            path = tmp_path / "ledger.db"
            policy = one_route(sim.url, LIMIT_NUSD, BEGIN_S)
            service = SyncService(Ledger.open(path, create=True), lambda: BEGIN_S + Clock().boot_s() - began_s + later_s)
            await service.bind([policy.binding])
            service.publish(policy.fleet, {policy.shard.index: policy.shard})
            till = Till(StateDir(tmp_path / "state", Clock(now_s=BEGIN_S)), Clock(now_s=BEGIN_S))
            syncer = Syncer(till, service.sync, FLEET)
            assert await syncer.once()
            running = asyncio.create_task(syncer.run())
            server = ProxyServer(ServerConfig(), till, FixedKeys({"standard": STANDARD_KEY}), syncer)
            await server.start()
            for _ in range(5):
                assert (await ask(server.port, QUESTION)).status == 200
            await syncer.once()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            reported_nusd = sim.bill.total_nusd
            assert (await ask(server.port, QUESTION)).status == 200, "from its own lease, and nobody will hear of it"
            await sim.idle()
            await server.drain(1.0)
            till.state.close(finished=False)
            shutil.rmtree(tmp_path / "state")

            later_s = 86_400.0
            await service.sync(SyncRequest(instance="another", fleet=FLEET, seq=1))
            bill = tmp_path / "bill.csv"
            bill.write_text(sim.bill.invoice())
            where = ("--month", "2026-11", "--ledger", path)
            before = json.loads(cli("statement", *where, "-o", "json"))["byKindUSD"]
            assert usd_to_nusd(before["metered"]) == reported_nusd and usd_to_nusd(before["unreconciled"]) > 0
            made = json.loads(cli("reconcile", "--invoice", bill, *where, "--through", "2026-11-01", "-o", "json"))
            assert made["agrees"] and made["unexplainedUSD"] == "0.00" and not made["notSettled"]
            after = json.loads(cli("statement", *where, "-o", "json"))
            assert usd_to_nusd(after["totalUSD"]) == sim.bill.total_nusd, "the statement is the bill, to the nano-dollar"
            assert usd_to_nusd(after["byKindUSD"]["invoiced"]) == sim.bill.total_nusd - reported_nusd
            balance = (await service.call(lambda ledger: ledger.balances(BEGIN_S)))[policy.binding.account]
            assert (balance.unreconciled_nusd, balance.spent_nusd) == (0, sim.bill.total_nusd)
            await service.close()

    uvloop.run(asyncio.wait_for(scene(), 60))
