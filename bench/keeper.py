"""`python -m bench.keeper`: the ledger's keeper for the bench. A fresh ledger, one policy, sync over a Unix socket."""

import argparse
import asyncio
import hashlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bench.policy import one_route
from stepdown.ledger import Ledger
from stepdown.model.money import usd_to_nusd
from stepdown.sync.http import SyncServer
from stepdown.sync.service import SyncService

LIMIT_USD = "100000000.00"
"""Hard, and far more than any run can spend: every request is reserved in it, none is refused."""


async def keep(
    socket: Path, ledger: Path, base_url: str, key: str, limit_usd: str, clock: Callable[[], float], *, budget: bool = True
) -> None:
    service = SyncService(Ledger.open(ledger, create=True), clock)
    key_sha256 = hashlib.sha256(key.encode()).hexdigest()
    policy = one_route(base_url, usd_to_nusd(limit_usd), clock(), key_sha256=key_sha256, budget=budget)
    await service.bind([policy.binding] if budget else [])
    service.publish(policy.fleet, {policy.shard.index: policy.shard})
    server = SyncServer(service, socket)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop()
    await service.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.keeper", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--key", required=True, help="what callers of the route must send")
    parser.add_argument("--limit-usd", default=LIMIT_USD)
    parser.add_argument("--unbudgeted", action="store_true", help="the route has no budget")
    given = parser.parse_args()
    clock = time.time  # noqa: TID251 - the edge of a process
    asyncio.run(
        keep(given.socket, given.ledger, given.base_url, given.key, given.limit_usd, clock, budget=not given.unbudgeted)
    )
