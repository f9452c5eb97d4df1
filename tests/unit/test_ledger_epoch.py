"""Who may write. If these fail, two leaders grant the same money: a Lease alone does not stop the one that was paused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger, errors
from stepdown.model.sync import Ask, LeaseReport, SyncRequest

ACCOUNT = "shop/team@0"
BINDING = Binding("shop/team", 0, 10**9, 1000, True, frozenset({"shop/chat"}))


def ask(seq: int, nusd: int, instance: str = "a", consumed: int = 0) -> SyncRequest:
    report = LeaseReport(account=ACCOUNT, granted=0, returned=0, consumed=consumed, estimated=0, reserved=0, want=0)
    return SyncRequest(
        instance=instance, fleet="shop/default", seq=seq, asks=(Ask(id=seq, rungs=({ACCOUNT: nusd},)),), leases=(report,)
    )


@pytest.fixture
def two(ledger_url: str, tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    """Two processes with the same ledger, as two replicas have it; the first leads."""
    where = str(tmp_path / "ledger") if ledger_url == ":memory:" else ledger_url
    first = Ledger.open(where, create=True)
    first.take_epoch("stepdown-0")
    first.bind([BINDING], 100.0)
    second = Ledger.open(where, create=False, beside=True)
    yield first, second
    first.close()
    second.close()


WRITES: dict[str, Callable[[Ledger], object]] = {
    "sync": lambda ledger: ledger.sync([ask(1, 400)], 101.0),
    "bind": lambda ledger: ledger.bind([BINDING, Binding("shop/all", 0, 10**9, 9, True, frozenset({"shop/x"}))], 101.0),
    "accept": lambda ledger: ledger.accept({"u": (1, "{}")}),
    "settle": lambda ledger: ledger.settle_instance("lost", None, 10**6),
}


@pytest.mark.parametrize("write", WRITES)
def test_an_earlier_leader_writes_nothing_more(two: tuple[Ledger, Ledger], write: str) -> None:
    """It was paused while another took over, and wakes up in the middle of a grant."""
    first, second = two
    first.sync([ask(1, 5, "lost")], 100.0)
    assert second.take_epoch("stepdown-1") == 2
    before = second.balances(10**6), second.instances(), second.accepted(), second.revision
    with pytest.raises(errors.LedgerFenced, match="stepdown-1 took epoch 2, this process had epoch 1"):
        WRITES[write](first)
    assert (second.balances(10**6), second.instances(), second.accepted(), second.revision) == before
    WRITES[write](second)


def test_a_follower_writes_nothing_before_it_leads(two: tuple[Ledger, Ledger]) -> None:
    """Else a replica that only looks on could grant."""
    first, second = two
    with pytest.raises(errors.LedgerFenced, match="stepdown-0 took epoch 1, this process has taken none"):
        second.sync([ask(1, 400)], 101.0)
    assert second.balances(101.0)[ACCOUNT].committed_nusd == 0, "it may look"
    assert first.sync([ask(1, 400)], 101.0)[0].asks[0].rung == 0


def test_who_takes_over_goes_on_where_the_other_was(two: tuple[Ledger, Ledger]) -> None:
    """What the earlier leader granted, and how far the clock and the bindings had come, must be known to the next."""
    first, second = two
    first.sync([ask(1, 700)], 5_000.0)
    first.bind([BINDING, Binding("shop/all", 0, 10**9, 9, True, frozenset({"shop/x"}))], 5_000.0)
    second.take_epoch("stepdown-1")
    assert second.revision == first.revision
    (answer,) = second.sync([ask(1, 400, "b")], 200.0)
    assert (answer.now_s, answer.asks[0].rung) == (5_000.0, -1)
    assert first.take_epoch("stepdown-0") == 3
    with pytest.raises(errors.LedgerFenced):
        second.sync([ask(2, 1, "b")], 5_001.0)


def test_the_epoch_outlives_a_restart(tmp_path: Path) -> None:
    """A number that began at one again would let a leader of last week write."""
    path = tmp_path / "ledger"
    for number in (1, 2, 3):
        ledger = Ledger.open(path, create=True)
        assert ledger.take_epoch("stepdown-0") == number
        ledger.close()
    ledger = Ledger.open(path, create=False)
    with pytest.raises(errors.LedgerFenced, match="has taken none"):
        ledger.bind([BINDING], 100.0)
    ledger.close()
