"""An invoice against the ledger, on both databases. If one fails, money that was lost stays lost, or is given away twice."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from stepdown.budget.account import Invoiced
from stepdown.budget.invoice import Billed
from stepdown.ledger import Ledger, errors
from stepdown.ledger.settlement import Reconciled, Statement
from stepdown.model.config import account_id
from stepdown.model.sync import Counter
from tests.postgres import Server
from tests.unit.test_ledger import FLEET, HORIZON_S, Keeper, ask, binding, chat, lease
from tests.unit.test_ledger_witness import START_S as WITNESSED_S
from tests.unit.test_ledger_witness import Keeper as Witnessed
from tests.unit.test_ledger_witness import lease as witness_lease

DAY_S = 86_400
FIRST = 20_758
"""2026-11-01."""
START_S = FIRST * DAY_S
TEAM, LAB = account_id("shop/team", START_S), account_id("lab/team", START_S)
MONTH, LAST = "2026-11", FIRST + 29
NOON_S = START_S + 10.5 * DAY_S
AFTER_S = START_S + 31.0 * DAY_S


def bill(nusd: int, *, digest: str = "one", through: int = LAST, slack: int = 0, model: str = "m") -> Statement:
    return Statement(MONTH, digest, FIRST, through, (Billed(model, nusd, slack),))


@pytest.fixture
def keeper(ledger_url: str) -> Iterator[Keeper]:
    made = at_work(ledger_url)
    yield made
    made.ledger.close()


def at_work(url: str | Path) -> Keeper:
    """Two budgets; a proxy that has gone on the tenth with 60 reserved and 40 idle of the first, and one that works."""
    made = Keeper(url)
    made.now_s = NOON_S
    made.bind(binding(1000, "shop/chat", start_s=START_S), binding(1000, "lab/x", budget="lab/team", start_s=START_S))
    made.ledger.publish(FLEET, made.publish("one"), HORIZON_S)
    gone = made.say("gone", ask(1, 200, accounts=(TEAM,)), acknowledged=made.digests)
    assert gone.asks[0].rung == 0
    made.say(
        "gone",
        leases=(lease(TEAM, granted=200, consumed=100, reserved=60),),
        counters=(on_tenth("shop/chat", 100),),
        acknowledged=made.digests,
    )
    return made


def on_tenth(route: str, cost: int, **more: int) -> Counter:
    return msgspec.structs.replace(chat(cost, FIRST + 10, route), **more)


def lose(keeper: Keeper, *others: str) -> None:
    """Time goes on until the one that is gone has been given up."""
    keeper.now_s += 3 * DAY_S
    keeper.say("works")
    for each in others:
        keeper.say(each)
    assert {each.name: each.state for each in keeper.ledger.instances()}["gone"] == "lost"


def reconcile(keeper: Keeper, said: Statement, **more: bool) -> Reconciled:
    done = keeper.ledger.reconcile(said, keeper.now_s, **more)
    assert keeper.ledger.verify() == []
    return done


def test_what_was_billed_is_charged_and_the_rest_can_be_spent_again(keeper: Keeper) -> None:
    """A pod whose disk was lost would lock its lease up for the rest of the month."""
    lose(keeper)
    assert keeper.balance(TEAM).unreconciled_nusd == 100
    done = reconcile(keeper, bill(130, through=FIRST + 12))
    assert done.changed and done.closed == ("gone",) and not done.waiting
    balance = keeper.balance(TEAM)
    assert (balance.spent_nusd, balance.unreconciled_nusd, balance.invoiced_nusd) == (130, 0, 30)
    assert balance.headroom_nusd == 870
    assert keeper.say("works", ask(1, 870, accounts=(TEAM,))).asks[0].rung == 0
    assert keeper.say("gone").verdict == "fenced", "it must not spend what is somebody else's now"


def test_the_same_invoice_twice_changes_nothing(keeper: Keeper) -> None:
    """A job that runs every night must not charge every night."""
    lose(keeper)
    first, before = reconcile(keeper, bill(130, through=FIRST + 12)), keeper.balance(TEAM)
    second = reconcile(keeper, bill(130, through=FIRST + 12))
    assert (first.changed, second.changed, second.supersedes, second.closed) == (True, False, "", ())
    assert keeper.balance(TEAM) == before and second.settlement == first.settlement


def test_a_corrected_invoice_takes_the_place_of_the_first(keeper: Keeper) -> None:
    """Upstreams correct their bills: what was charged by the wrong one has to be right in the end."""
    lose(keeper)
    reconcile(keeper, bill(130, through=FIRST + 12))
    for nusd, charged in ((190, 90), (105, 5), (500, 100), (100, 0)):
        done = reconcile(keeper, bill(nusd, digest=f"{nusd}", through=FIRST + 12))
        assert (done.changed, done.supersedes) == (True, "2026-11-14")
        balance = keeper.balance(TEAM)
        assert (balance.invoiced_nusd, balance.unreconciled_nusd, balance.spent_nusd) == (charged, 0, 100 + charged)
        assert balance.invoice is not None and balance.invoice.released_nusd == 100 - charged


def test_a_dry_run_changes_nothing(keeper: Keeper) -> None:
    """Somebody looks before they sign."""
    lose(keeper)
    before = keeper.balance(TEAM)
    done = reconcile(keeper, bill(130, through=FIRST + 12), dry_run=True)
    assert done.settlement.shares[0].charged_nusd == 30
    assert keeper.balance(TEAM) == before
    assert {each.name: each.state for each in keeper.ledger.instances()}["gone"] == "lost"


def test_what_may_still_be_billed_is_not_released(keeper: Keeper) -> None:
    """A bill up to the ninth says nothing of the tenth, nor one up to noon."""
    lose(keeper)
    for through in (FIRST + 8, FIRST + 9):
        done = reconcile(keeper, bill(0, digest=f"{through}", through=through))
        assert "instance gone may have spent from 2026-11-11T" in done.waiting[0] and not done.closed
        assert keeper.balance(TEAM).unreconciled_nusd == 100
    assert not reconcile(keeper, bill(100, digest="three", through=FIRST + 10)).waiting
    assert keeper.balance(TEAM).unreconciled_nusd == 0


def test_who_is_only_silent_is_not_settled(keeper: Keeper) -> None:
    """It may come back and say what it has spent: only its keeper knows when it cannot any more."""
    keeper.now_s += 3 * DAY_S
    done = reconcile(keeper, bill(100, through=FIRST + 12))
    assert not done.closed and not done.settlement.shares
    keeper.say("gone", leases=(lease(TEAM, granted=200, consumed=160),), counters=(on_tenth("shop/chat", 160),))
    assert keeper.balance(TEAM).spent_nusd == 160


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (bill(1, through=FIRST + 13), "2026-11-14 is not over in UTC"),
        (bill(1, through=LAST), "2026-11-30 is not over in UTC"),
        (replace(bill(1), first_day=FIRST + 40, through_day=FIRST + 50), "2026-12-21 is not over"),
    ],
)
def test_a_bill_of_days_that_are_not_over_is_refused(keeper: Keeper, said: Statement, message: str) -> None:
    """Half a day's bill would release what the other half has taken."""
    lose(keeper)
    before = keeper.balance(TEAM)
    with pytest.raises(errors.LedgerRefused, match=message):
        keeper.ledger.reconcile(said, keeper.now_s)
    assert keeper.balance(TEAM) == before


def test_a_bill_that_says_less_than_the_one_before_is_refused(keeper: Keeper) -> None:
    """Yesterday's file by mistake would take back what today's has settled."""
    lose(keeper)
    reconcile(keeper, bill(130, through=FIRST + 12))
    with pytest.raises(errors.LedgerRefused, match="complete up to 2026-11-13 was read on 2026-11-14"):
        keeper.ledger.reconcile(bill(130, digest="two", through=FIRST + 11), keeper.now_s)


def test_two_budgets_that_held_money_go_on_holding_what_is_in_doubt(keeper: Keeper) -> None:
    """Nobody can tell which of them the bill was for: none of them may be given what the other has spent."""
    keeper.say("gone", ask(2, 50, accounts=(LAB,)), leases=(lease(TEAM, granted=200, consumed=100, reserved=60),))
    lose(keeper)
    done = reconcile(keeper, bill(115, through=FIRST + 12))
    team, lab = keeper.balance(TEAM), keeper.balance(LAB)
    assert (team.invoiced_nusd, lab.invoiced_nusd) == (10, 5)
    assert (team.unreconciled_nusd, lab.unreconciled_nusd) == (5, 10)
    assert done.settlement.kept_nusd == 15


def test_what_was_charged_without_usage_pays_for_what_is_billed(keeper: Keeper) -> None:
    """It is in the spend already, and the bill has the truth of it."""
    keeper.say(
        "works",
        leases=(lease(TEAM, granted=80, consumed=80, estimated=80),),
        counters=(on_tenth("shop/chat", 80, estimated_nusd=80),),
    )
    lose(keeper)
    reconcile(keeper, bill(200, through=FIRST + 12))
    assert (keeper.balance(TEAM).invoiced_nusd, keeper.balance(TEAM).spent_nusd) == (20, 200)


def test_after_a_settlement_a_later_loss_is_settled_by_a_later_bill(keeper: Keeper) -> None:
    """Pods are lost all month long, and upstreams tell their usage day by day."""
    lose(keeper)
    reconcile(keeper, bill(130, through=FIRST + 12))
    keeper.say("works", ask(1, 300, accounts=(TEAM,)))
    keeper.now_s += 3 * DAY_S
    keeper.say("another")
    assert keeper.balance(TEAM).unreconciled_nusd == 300
    done = reconcile(keeper, bill(180, digest="two", through=FIRST + 15))
    assert done.closed == ("works",)
    balance = keeper.balance(TEAM)
    assert (balance.invoiced_nusd, balance.unreconciled_nusd, balance.spent_nusd) == (80, 0, 180)


def test_the_account_says_what_the_invoice_of_its_month_has_come_to(keeper: Keeper) -> None:
    """The budget's status tells it to whoever looks at the object."""
    lose(keeper)
    reconcile(keeper, bill(230, through=FIRST + 12, slack=5))
    assert keeper.balance(TEAM).invoice == Invoiced(
        month=MONTH,
        through="2026-11-13",
        billed_nusd=230,
        metered_nusd=100,
        excess_nusd=30,
        short_nusd=0,
        slack_nusd=5,
        charged_nusd=100,
        kept_nusd=0,
        released_nusd=0,
    )
    books = keeper.ledger.books(FIRST, LAST)
    assert {each.balance.account: each.balance.invoiced_nusd for each in books.accounts} == {TEAM: 100, LAB: 0}


def test_no_proxy_can_be_an_invoice(keeper: Keeper) -> None:
    """It would have the money that the bill has charged."""
    lose(keeper)
    reconcile(keeper, bill(130, through=FIRST + 12))
    with pytest.raises(errors.LedgerRefused, match="it says fleet"):
        keeper.say("invoice 2026-11")


def test_a_bill_is_settled_beside_a_keeper_on_another_machine(postgres: Server) -> None:
    """In PostgreSQL nobody holds a file's lock: keeper and settlement must wait for each other, and none be fenced."""
    url = postgres.database()
    keeper = Keeper(url)
    keeper.now_s = NOON_S
    keeper.ledger.take_epoch("stepdown-0")
    keeper.bind(binding(1000, "shop/chat", start_s=START_S))
    keeper.say("gone", ask(1, 200, accounts=(TEAM,)))
    lose(keeper)
    beside = Ledger.open(url, create=False, beside=True)
    done = beside.reconcile(bill(30, through=FIRST + 12), keeper.now_s)
    beside.close()
    assert done.closed == ("gone",)
    assert keeper.balance(TEAM).invoiced_nusd == 30
    assert keeper.say("works", ask(1, 970, accounts=(TEAM,))).asks[0].rung == 0
    keeper.ledger.close()


@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL"])
def test_a_keeper_that_knows_the_account_by_heart_sees_what_a_bill_has_released(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """It would go on refusing with the numbers that it remembers, or give away what the bill has charged."""
    place = tmp_path / "ledger.db" if kind == "SQLite" else request.getfixturevalue("postgres").database()
    keeper = at_work(place)
    lose(keeper)
    has = {"acknowledged": keeper.digests}
    assert keeper.say("works", ask(1, 800, accounts=(TEAM,)), **has).asks[0].rung == 0
    assert (
        keeper.say("works", ask(2, 70, accounts=(TEAM,)), leases=(lease(TEAM, granted=800, consumed=800),), **has).asks[0].rung
        < 0
    )
    beside = Ledger.open(place, create=False, beside=True)
    beside.reconcile(bill(30, through=FIRST + 12), keeper.now_s)
    beside.close()
    said = keeper.say("works", ask(3, 70, accounts=(TEAM,)), leases=(lease(TEAM, granted=800, consumed=800),), **has)
    assert said.asks[0].rung == 0
    assert keeper.ledger.verify() == []
    keeper.ledger.close()


def test_what_an_older_copy_cannot_account_for_is_settled_too(tmp_path: Path) -> None:
    """Else it is locked up until the month ends, though the upstream says to the cent what became of it."""
    keeper = Witnessed(tmp_path)
    keeper.grant("a", 1_000)
    old = keeper.backup()
    keeper.grant("b", 500)
    keeper.say("b", leases=(witness_lease(granted=500, consumed=480),), closing=True)
    keeper.restore(old)
    keeper.say("a", leases=(witness_lease(granted=1_000),), whole=True)
    day = WITNESSED_S // DAY_S
    said = Statement("2024-10", "one", day, day, (Billed("m", 480, 0),))
    keeper.now_s += DAY_S
    keeper.say("a", leases=(witness_lease(granted=1_000),))
    held = keeper.balance().unreconciled_nusd
    assert held >= 480
    early = keeper.ledger.reconcile(replace(said, first_day=day + 1, through_day=day), keeper.now_s)
    assert "an older copy of the ledger cannot account for" in early.waiting[0]
    assert keeper.balance().unreconciled_nusd == held
    done = keeper.ledger.reconcile(said, keeper.now_s)
    balance = keeper.balance()
    assert (balance.unreconciled_nusd, balance.invoiced_nusd, done.settlement.excess_nusd) == (0, 480, 0)
    keeper.restore(old)
    keeper.say("a", leases=(witness_lease(granted=1_000),), whole=True)
    assert keeper.balance().committed_nusd >= balance.committed_nusd, "a copy from before the bill gives nothing away"
