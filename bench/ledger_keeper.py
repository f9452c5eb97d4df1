"""`python -m bench.ledger_keeper`: the operator's sync with a ledger behind it, in a process of its own: for `bench.ledger`.

Everything that answers a proxy is the product's: HTTPS, tokens, the service, the witness's marks, the ledger. The API server is
one in memory, with the latency of a near one. Beside it the same HTTPS answers with nothing behind it: the yardstick.
"""

import argparse
import asyncio
import signal
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import uvloop
from aiohttp import web
from tests.unit.sync_api import FLEET, FakeApi, Review, owned

from stepdown.budget.account import Binding
from stepdown.cluster.kinds import POD
from stepdown.ledger import Ledger
from stepdown.model.config import Channel, Fleet, Ladder, Route, Shard, shard_of
from stepdown.sync.auth import Authenticator
from stepdown.sync.cakept import OnVolume
from stepdown.sync.fleets import LiveFleet
from stepdown.sync.server import SyncHttps
from stepdown.sync.service import SyncService
from stepdown.sync.tls import Authority

PROXIES = 16
ROUTES = 40
TEAMS = 4
"""Each route is under its team's budget and under that of all."""
API_S, WITNESS_S = 0.002, 0.01
"""How long the API server and a write of the witness's ConfigMap take."""

START_S = int(time.time()) // (20 * 86_400) * (20 * 86_400)  # noqa: TID251 - both processes come to the same
"""Of the accounts' period: one that runs, for the witness knows no mark of others."""
ROUTE_NAMES = tuple(f"shop/route-{number}" for number in range(ROUTES))
ACCOUNTS = (f"shop/all@{START_S}", *(f"shop/team-{number}@{START_S}" for number in range(TEAMS)))


def token(number: int) -> str:
    return f"t.o.{number}"


def pod_uid(number: int) -> str:
    return f"pod-{number}"


class Witness:
    """Marks in memory, as slow as a ConfigMap."""

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}

    async def read(self) -> Mapping[str, int]:
        return dict(self._marks)

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        await asyncio.sleep(WITNESS_S)
        self._marks |= {name: max(value, self._marks.get(name, 0)) for name, value in marks.items()}

    async def prune(self, now_s: float) -> int:
        return 0


def _bindings(limit_nusd: int) -> list[Binding]:
    def binding(name: str, routes: tuple[str, ...]) -> Binding:
        return Binding(f"shop/{name}", START_S, START_S + 40 * 86_400, limit_nusd, True, frozenset(routes))

    return [binding("all", ROUTE_NAMES), *(binding(f"team-{team}", ROUTE_NAMES[team::TEAMS]) for team in range(TEAMS))]


async def keep(folder: Path, place: str, port: int, echo_port: int, limit_nusd: int, clock: Callable[[], float]) -> None:
    ledger = Ledger.open(place if "://" in place else Path(place), create=True)
    ledger.take_epoch("bench")
    service = SyncService(ledger, clock, Witness())
    await service.begin()
    await service.bind(_bindings(limit_nusd))
    shards: dict[int, dict[str, Route]] = {}
    for name in ROUTE_NAMES:
        shards.setdefault(shard_of(name), {})[name] = Route(name=name, ladders={"default": Ladder(rungs=("m",))})
    fleet = Fleet(name=FLEET, namespace="shop", base_url="https://x", channels=(Channel(name="standard"),))
    service.publish(fleet, {index: Shard(index=index, routes=routes) for index, routes in shards.items()})
    authority = Authority(OnVolume(folder / "ca"), ("localhost",), clock())
    (folder / "ca.crt").write_text(authority.bundle)
    https = SyncHttps(
        lambda: service,
        Authenticator(_api(), {FLEET: LiveFleet("fleet-1", 600.0)}.get, time.monotonic),
        authority,
        leader=lambda: None,
        ready=lambda: True,
        now_s=clock,
    )
    await https.start("127.0.0.1", port)
    echo = await _echo(authority.context, echo_port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    echo.close()
    await https.stop()
    await service.close()


def _api() -> FakeApi:
    api = FakeApi()
    api.latency_s = API_S
    for number in range(PROXIES):
        api.tokens[token(number)] = Review(pod_name=f"web-{number}", pod_uid=pod_uid(number))
        api.put(POD, owned(f"web-{number}", pod_uid(number), "ReplicaSet", "stepdown-web-5d", "rs-1"))
    return api


async def _echo(context: ssl.SSLContext, port: int) -> asyncio.Server:
    """Takes a message of the same size over the same TLS and HTTP, and answers with as much as sync does."""
    answer = b'{"seq":1,"now_s":1.0,"leases":[' + b" " * 600 + b"]}"

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    server = web.Server(handle, access_log=None)
    return await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, ssl=context)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_keeper", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--echo-port", type=int, required=True)
    parser.add_argument("--limit-nusd", type=int, required=True)
    given = parser.parse_args()
    clock = time.time  # noqa: TID251 - the edge of a process
    uvloop.run(keep(given.folder, given.ledger, given.port, given.echo_port, given.limit_nusd, clock))
