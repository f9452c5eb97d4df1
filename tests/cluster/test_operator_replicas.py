"""Two replicas of the operator, their ledger in one PostgreSQL. If these fail, a leader's end is the end of the budgets: money
is granted twice, forgotten, or not to be had.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster

from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from tests.cluster.operator_world import Operator, Proxy, World, free_port, install, until, world
from tests.cluster.service import Service
from tests.postgres import Server
from tests.postgres import postgres as postgres

TAKE_OVER_S = 60.0
"""A Lease is 15 s; the rest is for a machine that many share."""


class Replicas:
    """Both replicas, behind what proxies take for one Service."""

    def __init__(self, here: World, url: str) -> None:
        self.here, self.url = here, url
        ports = [free_port(), free_port()]
        self.service = Service(here.sync_port, ports)
        self.operators = [self._operator(number, port) for number, port in enumerate(ports)]

    def _operator(self, number: int, port: int) -> Operator:
        own = self.here.path / f"replica-{number}"
        return self.here.operator(
            None,
            *("--ledger", self.url, "--state-dir", str(own), "--identity", f"stepdown-{number}"),
            *("--listen", f"127.0.0.1:{port}", "--address", "127.0.0.1"),
        )

    def balance(self) -> Balance:
        ledger = Ledger.open(self.url, create=False, read_only=True)
        try:
            assert ledger.verify() == []
            return min(ledger.balances(0.0, ended=True).values(), key=lambda each: each.start_s)
        finally:
            ledger.close()

    def bill_is_booked(self) -> int:
        """Once nothing is in flight, what the upstream has billed is what the ledger has charged, to the nano-dollar."""
        bill: int = self.here.simulator.final_bill()["total_nusd"]
        until(lambda: self.balance().spent_nusd == bill, f"{bill} nUSD are charged: {self.here.said()}")
        return bill


@pytest.fixture
def replicas(cluster: Cluster, tmp_path: Path, postgres: Server) -> Iterator[Replicas]:
    install(cluster)
    with world(cluster, tmp_path) as here:
        both = Replicas(here, postgres.database())
        yield both
        both.service.close()


def serving(replicas: Replicas, count: int = 2) -> tuple[Operator, Operator, list[Proxy]]:
    """The leader, the follower, and proxies that have spent something."""
    leader, follower = replicas.operators
    leader.start()
    follower.launch().wait_for('"event": "listening"')
    here = replicas.here
    here.apply(here.proxy(), here.route(), here.budget(limit="1.00"))
    proxies = here.proxies(count)
    for proxy in proxies:
        assert proxy.chat()[0] == 200
    replicas.bill_is_booked()
    return leader, follower, proxies


@pytest.mark.timeout(300)
def test_a_leader_that_is_killed_is_followed_by_the_other_with_all_that_was_spent(replicas: Replicas) -> None:
    """Requests go on from what was leased; the next leader has the same ledger, and the proxies know its certificate."""
    leader, follower, proxies = serving(replicas)
    assert follower.get("/readyz")[0] == 200, "and a follower is no fault"
    before = replicas.balance()
    leader.kill()
    for proxy in proxies:
        assert proxy.chat()[0] == 200, "nobody leads, and requests are answered"
    follower.wait_for('"event": "ready"', TAKE_OVER_S)
    assert '"epoch": 2' in follower.wait_for('"event": "ledger"')
    here = replicas.here
    here.apply(here.route("second", "Qwen3-8B"))
    for proxy in proxies:
        until(lambda proxy=proxy: proxy.chat("second")[0] == 200, f"what the new leader decides is served\n{proxy.text}")
    replicas.bill_is_booked()
    after = replicas.balance()
    assert after.account == before.account
    assert after.unreconciled_nusd == 0
    assert not [line for proxy in proxies for line in proxy.lines if "does not vouch for" in line]


@pytest.mark.timeout(300)
def test_a_leader_that_was_paused_past_its_lease_grants_nothing_and_ends(replicas: Replicas) -> None:
    """A Lease does not stop it: it wakes up and still believes. The epoch in the ledger does."""
    leader, follower, proxies = serving(replicas)
    leader.process.send_signal(signal.SIGSTOP)
    try:
        follower.wait_for('"event": "ready"', TAKE_OVER_S)
    finally:
        leader.process.send_signal(signal.SIGCONT)
    assert leader.process.wait(30) in (1, 3), leader.text
    assert "another replica has the lease now" in "\n".join(leader.lines) or "another keeper" in "\n".join(leader.lines)
    for proxy in proxies:
        assert proxy.chat()[0] == 200
    replicas.bill_is_booked()


@pytest.mark.timeout(300)
def test_a_database_that_goes_away_for_a_while_costs_nobody_an_answer(replicas: Replicas, postgres: Server) -> None:
    """An upgrade of the database: proxies serve from their leases, and what they spent meanwhile is booked afterwards."""
    leader, follower, proxies = serving(replicas)
    postgres.stop()
    try:
        for _ in range(5):
            for proxy in proxies:
                assert proxy.chat()[0] == 200
        assert leader.get("/healthz")[0] == follower.get("/healthz")[0] == 200
    finally:
        postgres.start()
    replicas.bill_is_booked()
    here = replicas.here
    here.apply(here.route("second", "Qwen3-8B"))
    until(lambda: proxies[0].chat("second")[0] == 200, f"it goes on deciding\n{here.said()}")
    assert leader.process.poll() is None, "by the same leader"


@pytest.mark.timeout(300)
def test_an_upgrade_hands_over_at_once_and_in_order(replicas: Replicas) -> None:
    """SIGTERM gives the Lease back, and says in the ledger that this was all: the next holds nothing back."""
    leader, follower, proxies = serving(replicas)
    assert leader.stop() == 0
    follower.wait_for('"event": "ready"', 20)
    follower.wait_for("the ledger is whole", 5)
    for proxy in proxies:
        assert proxy.chat()[0] == 200
    replicas.bill_is_booked()
